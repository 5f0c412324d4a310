"""What `make test` leaves to `make proofs`; seeds; and the checks of `typechecks.py`, before anything is imported."""

import os
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import torch
from accelerator import Pretended
from typechecks import install

install()


@pytest.fixture(autouse=True, scope="session")
def _warnings_see_through_checks() -> None:
    """Warnings point to the caller's line; frames of the checks lie between, as those of PyTorch do."""
    import_module("optlayers.common.warn").INSIDE.add("jaxtyping")


@pytest.fixture
def started_ray() -> None:
    """Ray on two cores, which stays for later tests of the process: it takes seconds to start."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = import_module("ray")
    if not ray.is_initialized():
        examples = str(Path(__file__).parent.parent / "examples")
        quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        memory = 200 * 2**20  # of the objects; a share of the machine's by default
        ray.init(
            "local", num_cpus=2, object_store_memory=memory, runtime_env={"env_vars": {"PYTHONPATH": examples}}, **quiet
        )


@pytest.fixture(autouse=True)
def _same_draws_in_any_order() -> None:
    """A test draws the same numbers whichever tests ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _pretended_device(request: pytest.FixtureRequest) -> Iterator[None]:
    """There is one in tests whose module takes it for its ``DEVICE``."""
    if request.node.get_closest_marker("device") is not None and request.module.DEVICE.type == "meta":
        with Pretended():
            yield
    else:
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is slow: of a test with ``many(k)`` all cases but k, which lie evenly among them."""
    cases: defaultdict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        cases[item.nodeid.partition("[")[0]].append(item)
    for of_one in cases.values():
        mark = of_one[0].get_closest_marker("many")
        if mark is None:
            continue
        count, (kept,) = len(of_one), mark.args
        stay = {(2 * k + 1) * count // (2 * kept) for k in range(kept)}
        for number, item in enumerate(of_one):
            if number not in stay:
                item.add_marker(pytest.mark.slow)

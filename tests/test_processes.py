"""Threads, forks, worker processes and distributed training."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import cvxpy as cp
import jaxtyping
import numba
import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from systems import needs_fork
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

import optlayers as ol
from optlayers.common.caches import Cache, WeakCache, cached_property
from polytopes import arborescence, cube, matching, simplex


@pytest.fixture(autouse=True)
def _without_checks_of_types() -> Iterator[None]:
    """The checkers have locks of their own, which a forked child may find held for ever."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def some_scores(seed: int, batch: int = 8) -> torch.Tensor:
    return torch.randn(batch, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_python_threads_share_a_layer():
    layers = [ol.OptLayer(matching(4), ol.SparseMAP()), ol.OptLayer(arborescence(3), ol.Spigot())]
    expected = [[layer(some_scores(seed)) for seed in range(8)] for layer in layers]
    found: dict[int, list[list[torch.Tensor]]] = {}
    errors: list[BaseException] = []

    def work(name: int) -> None:
        try:
            found[name] = [[layer(some_scores(seed)) for seed in range(8)] for layer in layers]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(found) == 8
    for answers in found.values():
        for mine, theirs in zip(answers, expected, strict=True):
            torch.testing.assert_close(torch.stack(mine), torch.stack(theirs), atol=1e-9, rtol=1e-9)


class Solved(Dataset):
    """Solves in the worker that loads it."""

    def __init__(self) -> None:
        self.hard = ol.OptLayer(matching(4), ol.Pipeline())
        self.soft = ol.OptLayer(matching(4), ol.SparseMAP())

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        scores = some_scores(index)
        return torch.stack([self.hard(scores), self.soft(scores)])


@needs_fork
def test_data_loader_workers_are_forked_after_solving():
    data = Solved()
    expected = torch.stack([data[k] for k in range(len(data))])  # threads and solvers exist before the fork
    loader = DataLoader(data, batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=60)
    torch.testing.assert_close(torch.cat(list(loader)), expected, atol=1e-9, rtol=1e-9)


class Matcher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.score = nn.Linear(3, 16, dtype=torch.float64)
        self.layer = ol.OptLayer(matching(4), ol.SparseMAP())

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layer(self.score(features).reshape(-1, 4, 4))


def features() -> torch.Tensor:
    return torch.randn(8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def distributed_worker(rank: int, folder: str) -> None:
    store = torch.distributed.FileStore(os.path.join(folder, "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    model = DistributedDataParallel(Matcher())
    model(features()[rank::2]).square().mean().backward()
    if rank == 0:
        torch.save(model.module.score.weight.grad, os.path.join(folder, "gradient"))
    torch.distributed.barrier()  # nobody leaves while another one still speaks to it
    del model  # before the group that it speaks over: its threads end with it
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_equals_one_process(tmp_path):
    torch.multiprocessing.spawn(distributed_worker, args=(str(tmp_path),), nprocs=2)
    model = Matcher()
    model(features()).square().mean().backward()
    torch.testing.assert_close(torch.load(tmp_path / "gradient"), model.score.weight.grad)


# Forked children


def backward_of_a_family() -> None:
    layer = ol.OptLayer(ol.Family(arborescence), ol.Pipeline())
    layer(torch.zeros(3, 5, 5, requires_grad=True), sizes=[4, 2, 3]).square().sum().backward()


def backward_of_many() -> None:
    layer = ol.OptLayer(simplex(20), ol.SparseMAP())
    layer(torch.ones(3000, 20, requires_grad=True)).square().sum().backward()


def backward_by(projector: ol.AbstractProjector, maximizer: ol.AbstractMaximizer | None = None) -> None:
    x, load = cp.Variable((3, 4)), cp.Parameter(4, name="load", nonneg=True)
    polytope = ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x, axis=1) == 2, cp.sum(x, axis=0) <= load])
    rule = ol.SparseMAP() if maximizer is None else ol.LPGD(1.0)
    load_now = torch.full((4,), 2.5, requires_grad=True)
    layer = ol.OptLayer(polytope, rule, projector=projector, maximizer=maximizer)
    layer(torch.ones(16, 3, 4, requires_grad=True), load=load_now).square().sum().backward()


def exit_code(work: Callable[[], None], seconds: float = 60.0) -> int | None:
    """Of a forked child; None when it does not end."""

    def watched() -> None:
        faulthandler.register(signal.SIGUSR1)
        work()

    child = multiprocessing.get_context("fork").Process(target=watched)
    child.start()
    child.join(seconds)
    code = child.exitcode
    if code is None:
        os.kill(child.pid, signal.SIGUSR1)  # it says where it hangs
        time.sleep(1.0)
        child.kill()
        child.join()
    return code


@contextmanager
def threads_of_openmp() -> Iterator[None]:
    """Whatever other tests have set, so that torch has threads that a child lacks."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def knapsack() -> ol.Polytope:
    x = cp.Variable(6, boolean=True)
    return ol.Polytope(x, [np.array([3, 5, 7, 2, 4, 6]) @ x <= 12])


def backward_of_booleans(maximizer: ol.AbstractMaximizer) -> None:
    scores = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ol.OptLayer(knapsack(), ol.SparseMAP(), maximizer=maximizer)(scores).square().sum().backward()


def distribution_of_booleans() -> None:
    scores = torch.zeros(24, 6, requires_grad=True)
    found = ol.Gibbs(knapsack(), scores)
    found.entropy().sum().backward()
    assert found.sample((3,)).shape == (3, 24, 6) and found.top_k(2).counts.tolist() == [2] * 24


WORK = {
    "branch and bound": partial(backward_of_booleans, ol.BranchAndBound()),
    "a diagram": partial(backward_of_booleans, ol.Diagram()),
    "a distribution": distribution_of_booleans,
    "a family": backward_of_a_family,
    "a large batch": backward_of_many,
    "Clarabel": partial(backward_by, ol.Clarabel()),
    "HiGHS": partial(backward_by, ol.Clarabel(), ol.Highs()),
    "cvxpylayers": partial(backward_by, ol.CvxpyLayers()),
    "dense": partial(backward_by, ol.Dense()),
}


@needs_fork
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_a_forked_child_goes_backward_after_its_parent(work):
    with threads_of_openmp():
        work()
        assert exit_code(work) == 0


@needs_fork
def test_a_child_of_a_child_goes_backward_too():
    def work() -> None:
        backward_of_many()
        assert exit_code(backward_of_many) == 0

    with threads_of_openmp():
        backward_of_many()
        assert exit_code(work) == 0


@needs_fork
def test_a_child_forked_in_a_thread_goes_backward_too():
    codes = []

    def work() -> None:
        backward_of_many()
        codes.append(exit_code(backward_of_many))

    with threads_of_openmp():
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert codes == [0]


@needs_fork
def test_data_loader_workers_go_backward():
    class Learned(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            backward_of_a_family()
            backward_of_many()
            return index

    with threads_of_openmp():
        Learned()[0]
        loader = DataLoader(Learned(), num_workers=2, multiprocessing_context="fork", timeout=60)
        assert torch.cat(list(loader)).tolist() == [0, 1, 2, 3]


@contextmanager
def others(*work: Callable[[], None]) -> Iterator[None]:
    """Threads that are at work meanwhile."""
    over = threading.Event()

    def loop(one: Callable[[], None]) -> None:
        while not over.is_set():
            one()

    threads = [threading.Thread(target=loop, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


@needs_fork
def test_a_fork_while_other_threads_solve():
    def work() -> None:
        for one in WORK.values():
            one()

    work()
    with threads_of_openmp(), others(backward_of_many, WORK["HiGHS"], WORK["cvxpylayers"], WORK["cvxpylayers"]):
        assert [exit_code(work) for _ in range(2)] == [0, 0]


def compile_something() -> None:
    @numba.njit
    def fresh(values):
        return values.sum() + np.sort(values)[0]

    assert fresh(np.ones(3)) == 4.0


@needs_fork
def test_a_fork_while_another_thread_compiles():
    with others(compile_something):
        assert [exit_code(compile_something) for _ in range(4)] == [0] * 4


# Caches


@contextmanager
def switching() -> Iterator[None]:
    """Threads that are interrupted as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-7)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def in_threads(work: Callable[[int], None], count: int = 8) -> None:
    errors: list[BaseException] = []

    def safely(name: int) -> None:
        try:
            work(name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=safely, args=(name,)) for name in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_threads_may_bind_batches_of_many_sizes():
    compiled, until = ol.compile_polytope(simplex(3)), time.monotonic() + 3.0

    def work(name: int) -> None:
        size = name
        while time.monotonic() < until:
            size = (7 * size + 3) % 101
            assert compiled.bind({}, None, size).numbers.batch == size

    with switching():
        in_threads(work)


def test_threads_may_share_a_layer_with_all_that_it_keeps():
    """Batches, families of few kept sizes, relaxations, vertices of many parameters, and states of solvers."""
    x, budget = cp.Variable(4), cp.Parameter(name="budget")
    polytope = ol.Polytope(x, [x >= 0, x <= 1, cp.sum(x) == budget])
    family = ol.OptLayer(ol.Family(simplex, cache_size=2), ol.SparseMAP())
    soft = ol.OptLayer(polytope, ol.StructuredAttention())
    relaxed = ol.OptLayer(simplex(4), ol.Spigot(relaxation=cube(4)))
    loss = ol.StructuredHingeLoss(ol.Family(simplex))

    def work(name: int) -> None:
        for k in range(3):
            size = (name + k) % 4 + 1
            leaf = torch.zeros(size, 4, requires_grad=True)
            relaxed(leaf).sum().backward()
            assert family(torch.zeros(2, 4), sizes=[size, 4]).sum(1).tolist() == [1.0, 1.0]
            counts = torch.tensor([size, 0.25 * (8 * k + name)])  # of these, all but the first have 24 values
            assert torch.allclose(soft(torch.zeros(2, 4), budget=counts.clamp(max=4.0)).sum(1), counts.clamp(max=4.0))
            loss(leaf, torch.eye(4)[:size], sizes=[4] * size)

    with switching():
        in_threads(work)


def test_a_cache_keeps_what_was_used_last():
    made: list[int] = []
    cache: Cache[int, str] = Cache(2)

    def make(key: int) -> str:
        made.append(key)
        return str(key)

    assert [cache.get(key, make) for key in (1, 2, 1, 3, 1, 2)] == ["1", "2", "1", "3", "1", "2"]
    assert made == [1, 2, 3, 2] and len(cache) == 2


def test_a_cache_gives_all_threads_the_same_value():
    for cache in (Cache(3), Cache(), WeakCache()):
        keys = [frozenset([k]) for k in range(3)]
        found: list[set[int]] = [set() for _ in keys]
        kept: list[object] = []

        def make(key: frozenset[int], kept: list[object] = kept) -> object:
            time.sleep(0.001)
            kept.append(object())  # so that no address is used twice
            return kept[-1]

        def work(name: int, cache=cache, keys=keys, found=found, make=make) -> None:
            for _ in range(5):
                for place, key in enumerate(keys):
                    found[place].add(id(cache.get(key, make)))

        with switching():
            in_threads(work)
        assert [len(values) for values in found] == [1, 1, 1]


@needs_fork
def test_a_cache_of_a_forked_child_is_open_and_full():
    cache: Cache[int, int] = Cache(2)
    cache.get(1, lambda key: 10)

    def work() -> None:
        assert cache.get(1, lambda key: 20) == 10 and cache.get(2, lambda key: 30) == 30

    with others(lambda: cache.get(int(1e6 * time.monotonic()) % 50 + 5, lambda key: key)):
        cache.get(1, lambda key: 10)
        assert [exit_code(lambda: cache.get(3, lambda key: key)) for _ in range(3)] == [0] * 3
    cache = Cache(2)
    cache.get(1, lambda key: 10)
    assert exit_code(work) == 0


def test_a_property_is_worked_out_once_and_by_no_lock():
    class Holder:
        asked = 0

        @cached_property
        def value(self) -> int:
            """Some number."""
            self.asked += 1
            return 7

    holder = Holder()
    assert (holder.value, holder.value, holder.asked) == (7, 7, 1)
    assert Holder.value.__doc__ == "Some number."
    entered, over = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, waits: bool) -> None:
            self.waits = waits

        @cached_property
        def value(self) -> int:
            if self.waits:
                entered.set()
                over.wait(5)
            return 1

    thread = threading.Thread(target=lambda: Slow(True).value)
    thread.start()
    assert entered.wait(5) and Slow(False).value == 1 and thread.is_alive()
    over.set()
    thread.join()

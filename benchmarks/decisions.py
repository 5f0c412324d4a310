"""Losses of predict-then-optimize, next to PyEPO.

Shortest paths through a grid of 5 by 5 cells, 32 instances: predicted and true costs from N(0, 1), in float64. PyEPO
has its own model of the problem, which OR-tools solves for one instance after the other, in one process or in two. Ours
is ``polytopes.grid_path``, whose oracle answers. Both are given the best paths of the true costs. Gradients are those
of the predicted costs: PyEPO minimizes them, and ours maximizes their negative.

- SPO+: ``SPOPlusLoss``, and ``SPOPlus``.
- Perturbed Fenchel-Young: ``PerturbedFenchelYoungLoss``, and ``perturbedFenchelYoung``, with 10 samples. Where their
  losses are compared, they get the same noise.
- Negative identity: ``OptLayer(…, Identity(center=False, normalize=False))``, and ``negativeIdentity``.
- Blackbox: ``OptLayer(…, Interpolation(10))``, and ``blackboxOpt``.

Ours checks that the given paths are paths, which PyEPO does not; "unchecked" is ours without (``validate=False``). All
is measured, and read, as by compare.py: the distances are those of losses or paths, and of gradients.

    python benchmarks/decisions.py --rounds 7
    python benchmarks/decisions.py --only 'SPO'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from compare import chosen, parser_of, report
from measuring import open_console
from peers import OURS, Peer, Solve, is_kind
from structures import Structure, structure, supervised
from torch import Tensor

import optlayers as ol
from polytopes import grid_path

__all__ = ["DECIDERS", "DECISIONS", "TheirNoise", "ours", "pyepo"]

GRID = (5, 5)
SAMPLES = 10
SIGMA = 1.0
STRENGTH = 10.0
"""All three are PyEPO's defaults."""
SEED = 135
"""Of PyEPO's noise."""
SPO, PERTURBED, IDENTITY, BLACKBOX = "SPO+", "perturbed Fenchel-Young", "negative identity", "blackbox"
DECISIONS: list[Structure] = [
    supervised(structure(SPO, GRID, grid_path)),
    supervised(structure(PERTURBED, GRID, grid_path)),
    structure(IDENTITY, GRID, grid_path),
    structure(BLACKBOX, GRID, grid_path),
]


@dataclass(frozen=True)
class Truth:
    """True costs, their best paths, and what these cost."""

    costs: Tensor
    paths: Tensor
    total: Tensor

    @classmethod
    def of(cls, problem: Structure) -> Truth:
        """The same for all peers."""
        costs = problem.draw(torch.Generator().manual_seed(2))
        paths = problem.compiled.maximize(-costs).check().value
        return cls(costs, paths, (costs * paths).sum(1, keepdim=True))


@final
@dataclass(frozen=True)
class TheirNoise(ol.AbstractNoise):
    """What PyEPO adds to costs, as scores see it. It draws instance by instance, ours sample by sample."""

    def draw(self, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
        samples, batch, size = shape
        drawn = torch.Generator().manual_seed(SEED)
        return -torch.randn(batch, samples, size, generator=drawn, dtype=torch.float64).transpose(0, 1)

    def _draw(self, out: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError("draw() says what PyEPO draws")

    def score(self, noise: Tensor) -> Tensor:
        return noise


def _of_each(losses: Tensor, costs: Tensor) -> Tensor:
    """A loss for every part of its instance: what is compared has the shape of the costs."""
    return losses[:, None].expand_as(costs)


def ours(problem: Structure, *, validate: bool = True, noise: ol.AbstractNoise | None = None) -> Solve:
    """From predicted costs to losses or paths."""
    truth = Truth.of(problem)
    if problem.kind == SPO:
        spo = ol.SPOPlusLoss(problem.compiled, reduction="none", validate=validate)
        return lambda costs: _of_each(spo(-costs, -truth.costs, decisions=truth.paths), costs)
    if problem.kind == PERTURBED:
        perturbed = ol.PerturbedFenchelYoungLoss(
            problem.compiled,
            samples=SAMPLES,
            scale=SIGMA,
            noise=noise,
            reduction="none",
            validate=validate,
        )
        return lambda costs: _of_each(perturbed(-costs, truth.paths), costs)
    rules = {IDENTITY: ol.Identity(center=False, normalize=False), BLACKBOX: ol.Interpolation(STRENGTH)}
    layer = ol.OptLayer(problem.compiled, rules[problem.kind])
    return lambda costs: layer(-costs)


def pyepo(problem: Structure, *, processes: int, same_noise: bool = False) -> Solve:
    """From predicted costs to losses or paths; ``same_noise`` draws that of the first call in every call."""
    import ortools  # noqa: F401  # without it PyEPO fails later, and says less
    from pyepo import func
    from pyepo.model.ort import shortestPathModel

    truth, model = Truth.of(problem), shortestPathModel(GRID)
    if problem.kind == SPO:
        spo = func.SPOPlus(model, processes, reduction="none")
        return lambda costs: _of_each(spo(costs, truth.costs, truth.paths, truth.total), costs)
    if problem.kind == PERTURBED:
        perturbed = func.perturbedFenchelYoung(model, SAMPLES, SIGMA, processes, SEED, reduction="none")

        def loss(costs: Tensor) -> Tensor:
            if same_noise:  # as in the first call
                perturbed._gen_cache.clear()
            return _of_each(perturbed(costs, truth.paths), costs)

        return loss
    if problem.kind == IDENTITY:
        return func.negativeIdentity(model, processes)
    return func.blackboxOpt(model, STRENGTH, processes)


def _peer(name: str, module: str, prepare: Callable[..., Solve], same: dict[str, Any], **options: Any) -> Peer:
    return Peer(name, module, module, prepare, has_gradient=True, compared=partial(prepare, **same), **options)


THEIRS, SAME = {"noise": TheirNoise()}, {"same_noise": True}
DECIDERS = [
    _peer(OURS, "optlayers", ours, THEIRS),
    _peer(f"{OURS}, unchecked", "optlayers", partial(ours, validate=False), THEIRS, applies=is_kind(SPO, PERTURBED)),
    _peer("PyEPO", "pyepo", partial(pyepo, processes=1), SAME),
    _peer("PyEPO, 2 processes", "pyepo", partial(pyepo, processes=2), SAME),
]


def main() -> None:
    """Measure, print a table and write it as CSV."""
    parser = parser_of(__doc__)
    options = parser.parse_args()
    problems = [p for p in DECISIONS if re.search(options.only, p.name)]
    if not problems:
        parser.error(f"no problem matches {options.only!r}")
    console = open_console()
    report("decisions", problems, chosen(DECIDERS, options.peers, console), options, console)


if __name__ == "__main__":
    main()

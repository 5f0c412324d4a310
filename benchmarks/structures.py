"""What oracles give: trees, matchings, tag sequences and rankings by algorithms that know them.

Everything in float64, with scores from N(0, 1) and batches of 32. Five tables:

- ``targets``: dependency trees of 10, 20 and 40 words; the best tree, the projection (SparseMAP) and its derivative, by
  ``CompiledPolytope``, and through ``OptLayer``; next to the milliseconds per instance that we want to stay below. The
  derivative should take at most half of the projection. The gap is the largest of the batch that was drawn last.
- ``structures argmax``: best vertices, next to SciPy's assignment and torch-struct's Viterbi.
- ``structures marginals``: ``OptLayer(…, StructuredAttention())`` next to torch-struct's marginals.
- ``structures losses``: ``CRFLoss``, which checks its targets too, next to the likelihood of torch-struct.
- ``structures projection``: the active set over the oracle, next to the general solvers on the declared rows.

The last four are measured, and read, as those of compare.py. The residual is of the rows among scored variables alone;
there is none where only a part of the scored variables comes back.

    python benchmarks/structures.py --rounds 7
    python benchmarks/structures.py --only 'arborescence 10' --peers torch
"""

from __future__ import annotations

import re
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial

import numpy as np
import torch
from compare import BATCHES, chosen, parser_of, report
from measuring import brief, machine, open_console, repeats, seconds, table, write_csv
from peers import OURS, Peer, Solve, hungarian, is_kind, linear_chain_edges, maximize, project
from problems import Problem
from torch import Tensor

import optlayers as ol
from optlayers.solvers.batch import distance_from_rows, make_instances
from polytopes import arborescence, linear_chain, matching, permutahedron, projective_tree, sequence

BATCH = 32
ARGMAX, PROJECTION, BACKWARD = "argmax", "projection", "backward of it"
LAYER, THROUGH = "layer, forward", "layer, forward + backward"
TARGETS = {
    10: {ARGMAX: 0.005, PROJECTION: 0.10},
    20: {ARGMAX: 0.010, PROJECTION: 0.35},
    40: {ARGMAX: 0.030, PROJECTION: 2.5},
}
"""Milliseconds per instance by the number of words."""
OF_PROJECTION = 0.5
"""The part of the projection's time that its derivative may take."""
GAP = 1e-9
HEADS = ["problem, batch", "measured", "ms", "target, ms", "met", "gap", "target of gap"]


class Structure(Problem):
    """A problem whose oracle is asked; its rows with auxiliary variables are not built."""

    def prepare(self) -> None:
        """Compile what peers share, on no one's time."""
        _ = self.compiled

    @cached_property
    def compiled(self) -> ol.CompiledPolytope:
        return ol.compile_polytope(self.polytope)

    def residual(self, value: Tensor) -> float:
        """By how much the worst answer violates rows and bounds; NaN where scored variables are missing in it."""
        form = self.compiled.projection_form
        flat = value.detach().reshape(len(value), -1).numpy()
        if flat.shape[1] != form.size:
            return np.nan
        residual, _ = distance_from_rows(form, make_instances(form, np.zeros((len(flat), 0)), None), flat)
        return float(residual.max())


class Supervised(Structure):
    """A problem whose answers are losses, which lie in no polytope."""

    def residual(self, value: Tensor) -> float:
        """None."""
        return np.nan


def structure(
    kind: str, sizes: Sequence[int], declare: Callable[..., ol.Polytope], parameters: Mapping[str, Tensor] | None = None
) -> Structure:
    """A problem of the usual batch, answered by its oracle."""
    return Structure(kind, tuple(sizes), partial(declare, *sizes), BATCH, parameters or {}, with_oracle=True)


def supervised(problem: Structure) -> Supervised:
    """A problem as one that is asked for losses."""
    return Supervised(**{f.name: getattr(problem, f.name) for f in fields(problem)})


def chain(steps: int, states: int) -> Structure:
    """Tag sequences; all of a batch share the scores of transitions."""
    generator = torch.Generator().manual_seed(1)
    transition = torch.randn(steps, states, states, generator=generator, dtype=torch.float64)
    transition[0] = 0.0  # no score for the start
    return structure("linear chain", (steps, states), linear_chain, {"transition": transition})


TREES = [structure("arborescence", (words,), arborescence) for words in TARGETS]
ARGMAXES = [
    structure("matching", (20,), matching),
    structure("sequence", (50, 20), sequence),
    chain(50, 20),
]
MARGINALS = [
    chain(20, 10),
    structure("arborescence", (20,), arborescence),
    structure("projective tree", (20,), projective_tree),
]
LOSSES = [
    supervised(problem)
    for problem in (
        chain(20, 10),
        chain(50, 20),
        structure("arborescence", (20,), arborescence),
        structure("projective tree", (20,), projective_tree),
    )
]
PROJECTIONS = [
    structure("arborescence", (10,), arborescence),
    structure("projective tree", (10,), projective_tree),
    structure("projective tree", (20,), projective_tree),
    structure("permutahedron", (50,), permutahedron),
    chain(20, 10),
]


def _attend(problem: Problem) -> Solve:
    return partial(ol.OptLayer(problem.polytope, ol.StructuredAttention()), **problem.parameters)


def _project_on_rows(problem: Problem) -> Solve:
    return partial(ol.OptLayer(problem.polytope.without_oracle(), ol.SparseMAP()), **problem.parameters)


def _potentials(problem: Problem, scores: Tensor) -> Tensor:
    """Of transitions (state after, state before); the first one has the score of the first state too."""
    edges = scores[:, 1:, :, None] + problem.parameters["transition"][1:].transpose(-1, -2)
    return torch.cat([edges[:, :1] + scores[:, :1, None, :], edges[:, 1:]], dim=1)


def _states(edges: Tensor) -> Tensor:
    """How often each step is in each state."""
    return torch.cat([edges[:, :1].sum(-2), edges.sum(-1)], dim=1)


def _viterbi(problem: Problem) -> Solve:
    from torch_struct import LinearChainCRF

    if problem.kind == "sequence":
        return linear_chain_edges(problem)
    return lambda scores: _states(LinearChainCRF(_potentials(problem, scores)).argmax)


def _arcs(scores: Tensor) -> Tensor:
    """Those from the root are on the diagonal there."""
    between, from_root = scores[:, 1:, 1:], scores[:, 0, 1:]
    diagonal = torch.eye(between.shape[1], dtype=torch.bool, device=scores.device)
    return torch.where(diagonal, from_root[:, None, :], between)


def _with_leaf(solve: Solve, scores: Tensor) -> Tensor:
    """Of potentials without a gradient torch-struct asks for one itself, and then writes to them, which is refused."""
    if scores.requires_grad:
        return solve(scores)
    return solve(scores.detach().requires_grad_()).detach()


def _gold(problem: Structure) -> Tensor:
    """The best structures of other scores."""
    scores = problem.draw(torch.Generator().manual_seed(2))
    return problem.compiled.maximize(scores, **problem.parameters).value


def _spread(losses: Tensor, scores: Tensor) -> Tensor:
    """A loss for every part of its instance: what is compared has the shape of the scores."""
    return losses.reshape(-1, 1, 1).expand_as(scores)


def _crf(problem: Structure) -> Solve:
    loss, gold = ol.CRFLoss(problem.polytope, reduction="none"), _gold(problem)
    return lambda scores: _spread(loss(scores, gold, **problem.parameters), scores)


def _likelihood(problem: Structure) -> Solve:
    from torch_struct import DependencyCRF, LinearChainCRF, NonProjectiveDependencyCRF

    gold = _gold(problem)

    def of_chains(scores: Tensor) -> Tensor:
        tags = gold.argmax(-1)
        lengths = torch.full((len(gold),), gold.shape[1])
        parts = LinearChainCRF.struct.to_parts(tags, gold.shape[2], lengths=lengths).to(scores.dtype)
        return _spread(-LinearChainCRF(_potentials(problem, scores)).log_prob(parts), scores)

    def of_trees(scores: Tensor) -> Tensor:
        model = DependencyCRF if problem.kind == "projective tree" else NonProjectiveDependencyCRF
        return _spread(model(_arcs(scores), multiroot=False).partition - (scores * gold).sum((1, 2)), scores)

    return of_chains if problem.kind == "linear chain" else partial(_with_leaf, of_trees)


def _marginals(problem: Problem) -> Solve:
    from torch_struct import DependencyCRF, LinearChainCRF, NonProjectiveDependencyCRF

    def of_chains(scores: Tensor) -> Tensor:
        return _states(LinearChainCRF(_potentials(problem, scores)).marginals)

    def of_trees(model: Callable[..., object], scores: Tensor) -> Tensor:
        found = model(_arcs(scores), multiroot=False).marginals
        diagonal = torch.eye(found.shape[1], dtype=torch.bool, device=found.device)
        whole = torch.cat([found.diagonal(dim1=1, dim2=2)[:, None], found.masked_fill(diagonal, 0.0)], dim=1)
        return torch.nn.functional.pad(whole, (1, 0))

    if problem.kind == "linear chain":
        return of_chains
    model = DependencyCRF if problem.kind == "projective tree" else NonProjectiveDependencyCRF
    return partial(_with_leaf, partial(of_trees, model))


MAXIMIZERS = [
    Peer(OURS, "optlayers", "optlayers", maximize),
    Peer("SciPy assignment", "scipy", "scipy", hungarian, is_kind("matching")),
    Peer("torch-struct", "torch_struct", "torch-struct", _viterbi, is_kind("sequence", "linear chain")),
]
ATTENTION = [
    Peer(OURS, "optlayers", "optlayers", _attend, has_gradient=True),
    Peer("torch-struct", "torch_struct", "torch-struct", _marginals, has_gradient=True),
]
LIKELIHOODS = [
    Peer(OURS, "optlayers", "optlayers", _crf, has_gradient=True),
    Peer("torch-struct", "torch_struct", "torch-struct", _likelihood, has_gradient=True),
]
PROJECTORS = [
    Peer(OURS, "optlayers", "optlayers", project, has_gradient=True),
    Peer("general solvers", "optlayers", "optlayers", _project_on_rows, has_gradient=True),
]
QUESTIONS = {
    "structures argmax": (ARGMAXES, MAXIMIZERS),
    "structures marginals": (MARGINALS, ATTENTION),
    "structures losses": (LOSSES, LIKELIHOODS),
    "structures projection": (PROJECTIONS, PROJECTORS),
}


@dataclass(frozen=True)
class Row:
    """One measurement, in milliseconds per instance, and what we want."""

    problem: str
    batch: int
    measured: str
    milliseconds: float
    target: float | None
    gap: float | None
    rounds: int

    def line(self) -> dict[str, str]:
        """Under ``HEADS``."""
        line = {"problem, batch": f"{self.problem}, {self.batch}", "measured": self.measured}
        line["ms"] = brief(self.milliseconds)
        if self.target is not None:
            met = self.milliseconds <= self.target and (self.gap is None or self.gap <= GAP)
            line |= {"target, ms": brief(self.target), "met": "yes" if met else "no"}
        if self.gap is not None:
            line |= {"gap": f"{self.gap:.0e}", "target of gap": f"{GAP:.0e}"}
        return line


def measure(problem: Structure, rounds: int) -> list[Row]:
    """Trees: argmax, projection, derivative and layer, one after the other in every round."""
    compiled = problem.compiled
    layer = ol.OptLayer(compiled, ol.SparseMAP())
    generator = torch.Generator().manual_seed(0)

    def through(scores: Tensor, weights: Tensor) -> None:
        layer(scores.detach().requires_grad_()).backward(weights)

    def calls() -> dict[str, list[Callable[[], object]]]:
        draws = [(problem.draw(generator), problem.draw(generator)) for _ in range(BATCHES)]
        return {
            ARGMAX: [partial(compiled.maximize, scores) for scores, _ in draws],
            PROJECTION: [partial(compiled.project, scores) for scores, _ in draws],
            BACKWARD: [
                partial(compiled.tangent, compiled.project(scores).check(), weights) for scores, weights in draws
            ],
            LAYER: [partial(layer, scores) for scores, _ in draws],
            THROUGH: [partial(through, *draw) for draw in draws],
        }

    wanted = {}
    for measured, some in calls().items():
        some[0]()
        wanted[measured] = repeats(seconds(some[1:2]))
    times: dict[str, list[float]] = {measured: [] for measured in wanted}
    for _ in range(rounds):
        for measured, some in calls().items():
            times[measured].append(seconds([some[k % len(some)] for k in range(wanted[measured])]))
    gap = float(compiled.project(problem.draw(generator)).check().gap.max())
    median = {measured: 1e3 * statistics.median(found) / problem.batch for measured, found in times.items()}
    targets = TARGETS[problem.sizes[0]] | {BACKWARD: OF_PROJECTION * median[PROJECTION]}
    gaps = {PROJECTION: gap}
    return [
        Row(problem.name, problem.batch, measured, median[measured], targets.get(measured), gaps.get(measured), rounds)
        for measured in times
    ]


def main() -> None:
    """Measure, print tables and write them as CSV."""
    parser = parser_of(__doc__)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*does not define `arg_constraints`")
    console = open_console()

    def matching_names(problems: Sequence[Structure]) -> list[Structure]:
        return [p for p in problems if re.search(options.only, p.name)]

    trees = matching_names(TREES)
    asked = {question: matching_names(problems) for question, (problems, _) in QUESTIONS.items()}
    if not trees and not any(asked.values()):
        parser.error(f"no problem matches {options.only!r}")
    rows: list[Row] = []
    for problem in trees:
        with console.status(f"{problem.name} …"):
            rows += measure(problem, options.rounds)
    if rows:
        console.print(table(f"targets, ms per instance ({machine()})", HEADS, [row.line() for row in rows]))
        write_csv(options.output / "structures_targets.csv", rows)
    for question, problems in asked.items():
        if problems:
            report(question, problems, chosen(QUESTIONS[question][1], options.peers, console), options, console)


if __name__ == "__main__":
    main()

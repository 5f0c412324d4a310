"""Integer declarations, sums over structures, and the k best: next to HiGHS, OR-tools, torch-struct and enumeration.

Everything in float64, with scores from N(0, 1) and batches of 64, of 8 for lists of the ten best. A line is two ways to
the same answer, measured one after the other in every round; the ratio is that of the medians, other over ours. Some of
the others are ours, too, such as the time of a best structure. Answers are compared before they are measured: ``apart``
is how far they are apart at most.

    python benchmarks/integers.py --rounds 5
    python benchmarks/integers.py --only knapsack
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import cvxpy as cp
import numpy as np
import scipy.optimize
import torch
from pairs import Group, Pair, run
from torch import Tensor

import optlayers as ol
import polytopes

BATCH = 64
ITEMS, CAPACITY = 50, 170


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def knapsack(size: int = ITEMS, capacity: int = CAPACITY) -> tuple[ol.Polytope, np.ndarray]:
    """Items of weights 1 to 19."""
    weights = np.random.default_rng(0).integers(1, 20, size)
    x = cp.Variable(size, boolean=True)
    return ol.Polytope(x, [weights @ x <= capacity]), weights


def by_rows(polytope: ol.Polytope) -> ol.Polytope:
    """The rows alone: no oracle, no formula."""
    return ol.Polytope(polytope.variable, polytope.constraints, integral=True)


def through(layer: Callable[[Tensor], Tensor], scores: Tensor) -> Tensor:
    """The gradient of the squares of what a layer gives."""
    leaf = scores.clone().requires_grad_()
    layer(leaf).square().sum().backward()
    assert leaf.grad is not None
    return leaf.grad


def knapsacks() -> Iterator[Pair]:
    polytope, weights = knapsack()
    compiled, scores = ol.compile_polytope(polytope), draw(BATCH, ITEMS)
    rows = scipy.optimize.LinearConstraint(weights[None], ub=CAPACITY)
    unit = scipy.optimize.Bounds(0, 1)

    def best() -> Tensor:
        return (compiled.maximize(scores).value * scores).sum(1)

    def highs() -> Tensor:
        found = [
            -scipy.optimize.milp(-s, integrality=np.ones(ITEMS), bounds=unit, constraints=rows).fun
            for s in scores.numpy()
        ]
        return torch.tensor(found, dtype=torch.float64)

    whole = (1e6 * scores.clamp(min=0.0)).round()

    def ours_whole() -> Tensor:
        return (compiled.maximize(whole).value * whole).sum(1)

    def ortools() -> Tensor:
        from ortools.algorithms.python import knapsack_solver as ks

        kind = ks.SolverType.KNAPSACK_MULTIDIMENSION_BRANCH_AND_BOUND_SOLVER
        found = []
        for profits in whole.to(torch.int64).tolist():
            solver = ks.KnapsackSolver(kind, "knapsack")
            solver.init(profits, [weights.tolist()], [CAPACITY])
            found.append(float(solver.solve()))
        return torch.tensor(found, dtype=torch.float64)

    yield Pair(f"best knapsack of {ITEMS}", "HiGHS, one by one", best, highs, 300)
    yield Pair(
        f"best knapsack of {ITEMS}, whole profits", "OR-tools, one by one", ours_whole, ortools, 1, needs="ortools"
    )
    attention, sparse = ol.OptLayer(polytope, ol.StructuredAttention()), ol.OptLayer(polytope, ol.SparseMAP())
    yield Pair(
        "its marginals, forward and backward", "its best, ours", partial(through, attention, scores), best, 1 / 8
    )
    yield Pair("SparseMAP on its hull", "its best, ours", partial(sparse, scores), best, 1 / 60)


def subsets() -> Iterator[Pair]:
    size, budget, scores = 50, 5, draw(BATCH, 50)
    x = cp.Variable(size, boolean=True)
    rows, known = ol.Polytope(x, [cp.sum(x) == budget]), polytopes.subset(size)
    ours, catalogue = ol.Gibbs(rows, scores), ol.Gibbs(known, scores, budget=float(budget))
    yield Pair(
        "5 of 50 by rows: marginals",
        "the polynomials of the catalogue",
        lambda: ol.Gibbs(rows, scores).mean,
        lambda: ol.Gibbs(known, scores, budget=float(budget)).mean,
        1 / 2,
    )
    yield Pair(
        "5 of 50 by rows: 10 samples",
        "the polynomials of the catalogue",
        lambda: ours.sample((10,)).sum((0, 1, 2), keepdim=True) * 0.0,
        lambda: catalogue.sample((10,)).sum((0, 1, 2), keepdim=True) * 0.0,
        1 / 2,
    )


def chains() -> Iterator[Pair]:
    steps, states = 20, 10
    scores = draw(BATCH, steps, states, states)
    layer = ol.OptLayer(by_rows(polytopes.sequence(steps, states)), ol.StructuredAttention())

    def struct() -> Tensor:
        from torch_struct import LinearChainCRF

        edges = scores[:, 1:].transpose(-1, -2).clone()
        edges[:, 0] += scores[:, 0, 0][:, None, :]
        return LinearChainCRF(edges).marginals.transpose(-1, -2).reshape(BATCH, -1)

    yield Pair(
        "sequence 20 × 10 by rows: marginals",
        "torch-struct LinearChainCRF",
        lambda: layer(scores)[:, 1:].reshape(BATCH, -1),
        struct,
        1,
        needs="torch_struct",
    )


def matchings() -> Iterator[Pair]:
    size = 10
    scores = draw(BATCH, size, size)
    layer = ol.OptLayer(by_rows(polytopes.matching(size)), ol.StructuredAttention())
    everything = torch.tensor(list(itertools.permutations(range(size))), dtype=torch.int64)

    def enumeration() -> Tensor:
        """Of the first instance alone."""
        gains = scores[0][torch.arange(size), everything].sum(1)
        share = torch.softmax(gains, 0)
        found = torch.zeros(size, size, dtype=torch.float64)
        for row in range(size):
            found[row].index_add_(0, everything[:, row], share)
        return found.reshape(1, -1)

    yield Pair(
        "matching 10 by rows: marginals",
        "sum over 3,628,800 permutations",
        lambda: layer(scores).reshape(BATCH, -1)[:1],
        enumeration,
        1000,
        share=1 / BATCH,
    )


def compilations() -> Iterator[Pair]:
    weights = knapsack()[1]
    rows = scipy.optimize.LinearConstraint(weights[None], ub=CAPACITY)
    unit, scores = scipy.optimize.Bounds(0, 1), draw(20, ITEMS).numpy()

    def solves() -> Tensor:
        for s in scores:
            scipy.optimize.milp(-s, integrality=np.ones(ITEMS), bounds=unit, constraints=rows)
        return torch.zeros(1)

    def compiled(declare: Callable[[], ol.Polytope]) -> Tensor:
        ol.OptLayer(declare(), ol.StructuredAttention()).compiled().sums(np.zeros(0))
        return torch.zeros(1)

    declared = {
        f"knapsack {ITEMS}": lambda: knapsack()[0],
        "sequence 20 × 10": lambda: by_rows(polytopes.sequence(20, 10)),
        "matching 10": lambda: by_rows(polytopes.matching(10)),
    }
    for name, declare in declared.items():
        yield Pair(f"compile {name}", "20 solves of the knapsack by HiGHS", partial(compiled, declare), solves, 1)


def structures() -> Iterator[Pair]:
    from torch_struct import TreeCRF

    words, spans = 20, draw(BATCH, 20, 20)
    bracketing = polytopes.constituency_tree(words)
    attend, best = ol.OptLayer(bracketing, ol.StructuredAttention()), ol.OptLayer(bracketing, ol.Pipeline())

    def inner(found: Tensor) -> Tensor:
        """Spans of two words and more, which both count."""
        return found.reshape(BATCH, words, words).triu(1).reshape(BATCH, -1)

    def tree(which: str) -> Tensor:
        return inner(getattr(TreeCRF(spans[..., None].clone().requires_grad_()), which)[..., 0].detach())

    yield Pair(
        "constituency 20: marginals", "torch-struct", lambda: inner(attend(spans)), partial(tree, "marginals"), 1
    )
    yield Pair("constituency 20: best", "torch-struct", lambda: inner(best(spans)), partial(tree, "argmax"), 1)


def segmentations() -> Iterator[Pair]:
    """torch-struct scores pairs of labels, too, which ours do not see: it is asked with the same scores for all."""
    from torch_struct import SemiMarkovCRF

    steps, labels, longest = 50, 5, 8
    polytope, scores = polytopes.semi_markov(steps, labels, longest), draw(BATCH, steps, longest, labels)
    attend, best = ol.OptLayer(polytope, ol.StructuredAttention()), ol.OptLayer(polytope, ol.Pipeline())
    # Segments of l + 1 tokens stand at l + 1 there, by their label and that of the segment before.
    edges = torch.full((BATCH, steps, longest + 1, labels, labels), -1e5, dtype=torch.float64)
    edges[:, :, 1:] = scores[..., None]
    edges[:, 0, :, :, 1:] = -1e5  # the label before the first segment

    def struct(which: str) -> Tensor:
        found = getattr(SemiMarkovCRF(edges.clone().requires_grad_()), which).detach()
        return found[:, :, 1:].sum(4).reshape(BATCH, -1)

    yield Pair(
        "semi-Markov 50 × 5, longest 8: marginals",
        "torch-struct",
        lambda: attend(scores).reshape(BATCH, -1),
        partial(struct, "marginals"),
        1,
    )
    yield Pair(
        "semi-Markov 50 × 5, longest 8: best",
        "torch-struct",
        lambda: best(scores).reshape(BATCH, -1),
        partial(struct, "argmax"),
        1,
    )


def lists() -> Iterator[Pair]:
    """The ten best, in batches of 8; how much they score is compared. torch-struct has none of non-projective trees."""
    from torch_struct import DependencyCRF, LinearChainCRF, TreeCRF

    def worth(structures: Tensor, scores: Tensor) -> Tensor:
        return (structures * scores).flatten(2).sum(2).sort(0, descending=True).values

    count = BATCH // 8
    few = draw(count, 50, 20, 20)
    few[:, 0, 1:] = 0.0
    chain = ol.compile_polytope(polytopes.sequence(50, 20))

    def chains_of_struct() -> Tensor:
        edges = few[:, 1:].transpose(-1, -2).clone()
        edges[:, 0] += few[:, 0, 0][:, None, :]
        return worth(LinearChainCRF(edges.requires_grad_()).topk(10).detach(), edges.detach())

    def chains_of_ours(polytope: ol.Polytope | ol.CompiledPolytope) -> Tensor:
        return worth(ol.Gibbs(polytope, few).top_k(10).structures, few)

    yield Pair("chain 50 × 20: 10 best", "torch-struct", lambda: chains_of_ours(chain), chains_of_struct, 1)
    yield Pair(
        "the same, and compiled first",
        "torch-struct",
        lambda: chains_of_ours(polytopes.sequence(50, 20)),
        chains_of_struct,
        1,
    )
    words = 20
    arcs = draw(count, words, words)  # of the head to the word; a word's own is that of the root
    whole = torch.zeros(count, words + 1, words + 1, dtype=torch.float64)
    whole[:, 1:, 1:] = arcs
    whole[:, 0, 1:] = arcs.diagonal(dim1=1, dim2=2)
    whole.diagonal(dim1=1, dim2=2).zero_()
    trees = {
        "projective trees of 20 words": ol.compile_polytope(polytopes.projective_tree(words)),
        "trees of 20 words": ol.compile_polytope(polytopes.arborescence(words)),
    }

    def best_trees(name: str) -> Tensor:
        return worth(ol.Gibbs(trees[name], whole).top_k(10).structures, whole)

    def trees_of_struct() -> Tensor:
        return worth(DependencyCRF(arcs.clone().requires_grad_(), multiroot=False).topk(10).detach(), arcs)

    projective, free = trees
    yield Pair(f"{projective}: 10 best", "torch-struct", partial(best_trees, projective), trees_of_struct, 1)
    yield Pair(
        f"{free}: 10 best",
        "the same of projective ones, torch-struct",
        lambda: best_trees(free) * 0.0,
        lambda: trees_of_struct() * 0.0,
        1,
    )
    spans, bracketing = draw(count, words, words).triu(1), ol.compile_polytope(polytopes.constituency_tree(words))

    def brackets_of_struct() -> Tensor:
        found = TreeCRF(spans[..., None].clone().requires_grad_()).topk(10).detach()
        return worth(found[..., 0], spans)

    yield Pair(
        "constituency 20: 10 best",
        "torch-struct",
        lambda: worth(ol.Gibbs(bracketing, spans).top_k(10).structures, spans),
        brackets_of_struct,
        1,
    )


GROUPS: dict[str, Group] = {
    "knapsack": (knapsacks, None),
    "subset": (subsets, None),
    "sequence": (chains, None),
    "matching": (matchings, None),
    "compile": (compilations, None),
    "structures": (structures, "torch_struct"),
    "segmentations": (segmentations, "torch_struct"),
    "lists": (lists, "torch_struct"),
}


def main() -> None:
    """Measure, print a table and write it as CSV."""
    run(__doc__, "integers", f"integers, ms per batch of {BATCH}", GROUPS)


if __name__ == "__main__":
    main()

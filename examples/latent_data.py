"""Labels that depend on a hidden structure, drawn so that the structure is known.

A category, as in the synthetic study of Mihaylova, Niculae and Martins (2020, Understanding the mechanics of SPIGOT:
surrogate gradients for latent structure learning, EMNLP): with z uniform over the clusters,

    x ~ N(c_z, 0.1² I),   y = sign(<w_z, x> - b_z),   c_z, w_z ~ N(0, I) in 100 dimensions,

and b_z = <w_z, c_z>, the mean within the cluster, so that the labels of a cluster are balanced. Whoever knows z has a
linear problem in every cluster; whoever does not has little.

A tree, a matching or a sequence, by a story of the same kind. The structure z is drawn at random; every part p (an
arc, a pair, a transition) has features of its own, which reveal noisily whether it is in the structure, and the label
comes from the features of the parts that are:

    x_p ~ N(z_p c, I),   y = sign(sum of <w, x_p> over the parts of z - its mean),   c, w in 20 dimensions.

The best guess of z from the features is the structure with the largest sum of <c, x_p>, so a linear scorer can be the
best one, and a perfect scorer is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

import optlayers as ol
import polytopes

__all__ = [
    "SIZES",
    "STRUCTURES",
    "Problem",
    "Split",
    "draw_problem",
    "random_matchings",
    "random_paths",
    "random_trees",
]

SPLITS = {"train": 5000, "dev": 1000, "test": 1000}
CATEGORY_FEATURES, CATEGORY_NOISE = 100, 0.1
PART_FEATURES, SIGNAL = 20, 2.5
"""``SIGNAL`` is the length of c, against a noise of 1 in every direction."""
STATES = 3


@dataclass(frozen=True)
class Split:
    """Instances: ``features`` (n, ...), the true ``structures`` (n, *shape), ``labels`` (n,), 0 or 1."""

    features: Float[Tensor, "n ..."]
    structures: Float[Tensor, "n ..."]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Problem:
    """A polytope of structures, three splits, and the scores of a perfect scorer as a function of features."""

    structure: str
    polytope: ol.Polytope
    train: Split
    dev: Split
    test: Split
    true_scores: Callable[[Tensor], Tensor]


def draw_problem(structure: str, size: int, seed: int, train: int = SPLITS["train"]) -> Problem:
    """A problem of its own for every seed; ``size`` counts clusters, words, rows or steps."""
    generator = torch.Generator().manual_seed(seed)
    counts = {**SPLITS, "train": train}
    return (_category if structure == "category" else _parts)(structure, size, counts, generator)


def _category(structure: str, clusters: int, counts: dict[str, int], generator: torch.Generator) -> Problem:
    centres, weights = torch.randn(2, clusters, CATEGORY_FEATURES, generator=generator)
    thresholds = (weights * centres).sum(-1)

    def split(count: int) -> Split:
        z = torch.randint(clusters, (count,), generator=generator)
        x = centres[z] + CATEGORY_NOISE * torch.randn(count, CATEGORY_FEATURES, generator=generator)
        y = (weights[z] * x).sum(-1) > thresholds[z]
        return Split(x, torch.nn.functional.one_hot(z, clusters).to(x), y.long())

    parts = {name: split(count) for name, count in counts.items()}
    return Problem(structure, polytopes.simplex(clusters), **parts, true_scores=lambda x: -torch.cdist(x, centres))


def _parts(structure: str, size: int, counts: dict[str, int], generator: torch.Generator) -> Problem:
    declare, draw = STRUCTURES[structure]
    clue, weight = torch.nn.functional.normalize(torch.randn(2, PART_FEATURES, generator=generator), dim=-1)
    clue = SIGNAL * clue

    def split(count: int) -> Split:
        z = draw(count, size, generator)
        noise = torch.randn(*z.shape, PART_FEATURES, generator=generator)
        y = torch.einsum("n...,n...d,d->n", z, noise, weight) > 0  # of x less its mean
        return Split(noise + z[..., None] * clue, z, y.long())

    parts = {name: split(count) for name, count in counts.items()}
    return Problem(structure, declare(size), **parts, true_scores=lambda x: x @ clue)


def random_trees(count: int, words: int, generator: torch.Generator) -> Float[Tensor, "count nodes nodes"]:
    """Dependency trees with a single root, each equally probable: heads are drawn until they make a tree."""
    kept: list[Tensor] = []
    while sum(map(len, kept)) < count:
        heads = torch.randint(words + 1, (4 * count, words + 1), generator=generator)
        heads[:, 0] = 0
        ancestor = heads
        for _ in range(words):
            ancestor = heads.gather(1, ancestor)
        tree = (ancestor == 0).all(dim=1) & ((heads[:, 1:] == 0).sum(dim=1) == 1)
        kept.append(heads[tree])
    arcs = torch.nn.functional.one_hot(torch.cat(kept)[:count], words + 1).transpose(1, 2).float()
    arcs[:, :, 0] = 0.0
    return arcs


def random_matchings(count: int, size: int, generator: torch.Generator) -> Float[Tensor, "count size size"]:
    """Permutation matrices, each equally probable."""
    order = torch.rand(count, size, generator=generator).argsort(dim=1)
    return torch.nn.functional.one_hot(order, size).float()


def random_paths(count: int, steps: int, generator: torch.Generator) -> Float[Tensor, "count steps states states"]:
    """Sequences of independent states, as their transitions; a first state stands in row 0."""
    states = torch.nn.functional.one_hot(torch.randint(STATES, (count, steps), generator=generator), STATES).float()
    before = torch.roll(states, 1, dims=1)
    before[:, 0] = torch.eye(STATES)[0]
    return before[..., :, None] * states[..., None, :]


def _sequence(steps: int) -> ol.Polytope:
    return polytopes.sequence(steps, STATES)


STRUCTURES: dict[str, tuple[Callable[[int], ol.Polytope], Callable[[int, int, torch.Generator], Tensor]]] = {
    "tree": (polytopes.arborescence, random_trees),
    "matching": (polytopes.matching, random_matchings),
    "sequence": (_sequence, random_paths),
}
"""How each is declared and drawn, by its size."""
SIZES = {"tree": 5, "matching": 5, "sequence": 6}
"""Words, rows and steps: small enough for marginals by enumeration, too."""

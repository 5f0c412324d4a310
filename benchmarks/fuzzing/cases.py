"""A case: one declaration, and a batch of instances of it. A whole number gives one, always the same."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from fuzzing.declarations import Declaration
from fuzzing.numbers import DTYPES, KINDS, draw_dtype, draw_scores, rounded
from fuzzing.recipes import generic
from fuzzing.structures import structured
from fuzzing.truth import Truth
from fuzzing.writing import INSTANCES

__all__ = ["Case", "draw_case"]

EXHAUSTIVE, MOST_TIES = 0.02, 256
"""How many cases are ties without exception, and how many of them such a case has."""
ORACLE = 40
"""An oracle looks through so many vertices at most."""


@dataclass(frozen=True, eq=False)
class Case:
    """A declaration, and a batch of instances.

    Scores are ``(instances, size)`` and parameters ``(instances, all of them)``, as float64 of what their dtypes hold.
    """

    declaration: Declaration
    scores: np.ndarray
    theta: np.ndarray
    dtype: str = "float64"
    parameter_dtype: str = "float64"
    masked: np.ndarray | None = None
    """Where a finite score stands for minus infinity."""
    kinds: tuple[str, ...] = ()
    gradients: np.ndarray | None = None
    """What arrives at the structures, in backward."""
    seed: int = 0
    numbers: tuple[int, ...] = ()
    """Which of the instances of the seed these are."""
    all_ties: bool = False
    """Whether the instances are ties without exception."""

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def _truths(self) -> dict[tuple[tuple[float, ...], tuple[int, ...]], Truth]:
        return {}

    def truth(self, instance: int, forbid_masked: bool = False) -> Truth:
        """What is true of an instance; with finite masks read as minus infinity, if asked for."""
        forbidden = np.isneginf(self.scores[instance])
        if forbid_masked and self.masked is not None:
            forbidden = forbidden | self.masked[instance]
        key = tuple(self.theta[instance].tolist()), tuple(np.flatnonzero(forbidden).tolist())
        if key not in self._truths:
            self._truths[key] = Truth(self.declaration, *key)
        return self._truths[key]

    def is_masked(self, instance: int) -> bool:
        """Whether some finite score of an instance stands for minus infinity."""
        return self.masked is not None and bool(self.masked[instance].any())

    def take(self, instances: list[int]) -> Case:
        """Some of the instances."""

        def part(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[instances]

        return replace(
            self,
            scores=self.scores[instances],
            theta=self.theta[instances],
            masked=part(self.masked),
            gradients=part(self.gradients),
            kinds=tuple(self.kinds[k] for k in instances),
            numbers=tuple(self.numbers[k] for k in instances),
        )


def draw_case(seed: int, draws: int = 1) -> Case:
    """The case of a seed; with more draws, the same instances and as many again of the same declaration for each."""
    generator = np.random.default_rng([seed, 13])
    if generator.random() < EXHAUSTIVE:
        return _all_ties(generator, seed)
    declaration, theta = (structured if generator.random() < 0.5 else generic)(generator)
    if not theta.shape[1] and declaration.made_by is None and generator.random() < 0.2:
        declaration = _with_oracle(declaration)
    parameter_dtype = str(generator.choice(list(DTYPES), p=[0.7, 0.12, 0.1, 0.08])) if theta.size else "float64"
    kept = rounded(theta, parameter_dtype)
    limited = [p for p in declaration.parameters if not p.unlimited]
    spans = np.concatenate([np.arange(p.start, p.start + p.size) for p in limited]).astype(int) if limited else []
    rounds = bool(len(spans)) and not np.array_equal(kept[:, spans], theta[:, spans])
    dtype = draw_dtype(generator)
    scores = draw_scores(generator, INSTANCES, declaration.size, dtype)
    also = declaration.kinds | ({"rounded parameters"} if rounds or "rounded sums" in declaration.kinds else set())
    gradients = np.round(16 * generator.standard_normal(scores.values.shape)) / 16
    more = np.random.default_rng([seed, 47])
    drawn = [scores, *(draw_scores(more, INSTANCES, declaration.size, dtype) for _ in range(draws - 1))]
    further = np.round(16 * more.standard_normal(((draws - 1) * INSTANCES, declaration.size))) / 16
    return Case(
        declaration,
        np.concatenate([d.values for d in drawn]),
        np.tile(kept, (draws, 1)),
        dtype,
        parameter_dtype,
        np.concatenate([d.masked for d in drawn]),
        tuple(max((*also & set(KINDS), kind), key=KINDS.index) for d in drawn for kind in d.kinds),
        rounded(np.concatenate([gradients, further]), dtype),
        seed,
        tuple(range(draws * INSTANCES)),
    )


def _with_oracle(declaration: Declaration) -> Declaration:
    """A declaration with an oracle over all of its vertices, if they are few."""
    truth = Truth(declaration, ())
    vertices = None if truth.empty else truth.vertices(ORACLE)
    if vertices is None:
        return declaration
    return replace(declaration, vertices=tuple(tuple(float(v) for v in point) for point in vertices))


def _all_ties(generator: np.random.Generator, seed: int) -> Case:
    """Every vector of a few small numbers as scores, or many of them where there are more."""
    while True:
        declaration, theta = structured(generator)
        if declaration.size <= 20:
            break
    numbers = np.array(((0.0, 1.0), (-1.0, 0.0, 1.0), (0.0, 1.0, 2.0))[generator.integers(3)])
    size = declaration.size
    if len(numbers) ** size <= MOST_TIES:
        scores = np.stack(np.meshgrid(*[numbers] * size, indexing="ij"), axis=-1).reshape(-1, size)
    else:
        pairs = np.array([np.isin(np.arange(size), pair) for pair in itertools.combinations(range(size), 2)])
        scores = np.vstack([np.zeros(size), pairs, generator.choice(numbers, (MOST_TIES - 1 - len(pairs), size))])
    count = len(scores)
    kind = max({"ties", *declaration.kinds} & set(KINDS), key=KINDS.index)
    return Case(
        declaration,
        scores.astype(np.float64),
        np.repeat(theta[:1], count, axis=0),
        masked=np.zeros(scores.shape, dtype=bool),
        kinds=(kind,) * count,
        gradients=np.zeros(scores.shape),
        seed=seed,
        numbers=tuple(range(count)),
        all_ties=True,
    )

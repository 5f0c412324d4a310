"""How ties are decided, the same by all solvers: by fixed objectives, one after the other, until a vertex is left.

Where several vertices are best, the one is meant that is best for the first objective among them; where that ties too,
for the second among these; and so on. The objectives are whole numbers, drawn once and for all, so that two structures
of whole numbers differ by a whole number in each of them: they tie exactly or are a unit apart, and no solver has to
tell a tie from a small difference. Each objective leaves a tie between two given structures with a chance of about one
in four thousand; that all of them do has no chance worth a name. Which vertex that is depends on the scores of an
instance alone: not on its batch, not on what a solver was asked before, and not on the solver.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from jaxtyping import Float64

__all__ = ["ROUNDS", "objective", "probe"]

ROUNDS = 24
"""So many objectives are tried; a face that is no vertex then stays undecided."""
BITS = 12
"""Entries are multiples of 2⁻¹²: what is decided is far above the tolerances of solvers."""
PROBE = 10_000
"""The seed of the direction that tells a face from a vertex; no objective has it."""


@lru_cache(maxsize=1024)
def objective(round_: int, scored: int, columns: int) -> Float64[np.ndarray, " columns"]:
    """The objective of a round: numbers between 1 and 2 for the ``scored`` columns, 0 for the others; read only."""
    return _frozen(1.0 + (_raw(round_, scored) >> np.uint64(64 - BITS)) / 2.0**BITS, columns)


@lru_cache(maxsize=256)
def probe(scored: int, columns: int) -> Float64[np.ndarray, " columns"]:
    """Numbers between 1 and 2 that are constant on no face but vertices, 0 beyond the ``scored`` columns; read only."""
    return _frozen(1.0 + (_raw(PROBE, scored) >> np.uint64(11)) / 2.0**53, columns)


def _raw(seed: int, count: int) -> np.ndarray:
    """Bits of a generator whose stream is fixed: the first ones are the same however many are drawn."""
    return np.random.PCG64(seed).random_raw(count)


def _frozen(values: np.ndarray, columns: int) -> np.ndarray:
    padded = np.zeros(columns)
    padded[: len(values)] = values
    padded.flags.writeable = False
    return padded

"""Whether the rows of a declaration, which projections may go over, describe what its oracle knows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64, Int8

from optlayers.form.compile import Forms
from optlayers.form.standard import StandardForm
from optlayers.solution import Status
from optlayers.solvers import Auto, Oracle
from optlayers.solvers.ask import ask
from optlayers.solvers.base import AbstractMaximizer
from optlayers.solvers.batch import make_instances

__all__ = ["beyond_oracle", "questions"]

QUESTIONS = 32
"""Scores that are tried."""
SHARE = 1e-6
"""Rows reach more when it is this part of the best score more."""
TOLERANCE = 1e-8


def beyond_oracle(forms: Forms, oracle: Oracle, theta: Float64[np.ndarray, " parameters"]) -> str | None:
    """In words, how far rows reach beyond the oracle's best for some scores; None where none are found.

    Rows that reach more than the convex hull of structures are a relaxation of it. The best points of both are compared
    for some scores.

    Parameters
    ----------
    forms : of the declaration.
    oracle : what is asked.
    theta : values of all parameters.
    """
    scores = questions(forms.full.size)
    by_rows, points = _best(forms.full, Auto(tolerance=TOLERANCE), theta, scores)
    by_oracle, structures = _best(forms.scored if oracle.reads_declaration else forms.full, oracle, theta, scores)
    both = (by_rows == Status.OPTIMAL) & (by_oracle == Status.OPTIMAL)
    more = np.where(both[:, None], scores * (points - structures), 0.0).sum(axis=1)
    size = np.where(both[:, None], np.abs(scores) * np.maximum(np.abs(points), np.abs(structures)), 0.0).sum(axis=1)
    worst = int(np.argmax(more - SHARE * (1.0 + size)))
    if more[worst] <= SHARE * (1.0 + size[worst]):
        return None
    best = float((scores[worst] * structures[worst]).sum())
    return f"rows allow points of score {best + more[worst]:.6g} where the oracle's best structure has {best:.6g}"


def _best(
    form: StandardForm, solver: AbstractMaximizer, theta: np.ndarray, scores: np.ndarray
) -> tuple[Int8[np.ndarray, " questions"], Float64[np.ndarray, "questions size"]]:
    instances = make_instances(form, np.tile(theta, (len(scores), 1)), None).with_scores(scores)
    verdict = ask(form, instances, solver, solver.prepare(form), projection=False, tolerance=TOLERANCE)
    answer = verdict.answer
    return verdict.status, form.expand(answer.point[:, : form.scored]) if answer.whole is None else answer.whole


def questions(size: int) -> Float64[np.ndarray, "questions size"]:
    """Scores that tell two polytopes apart where they are not nearly the same: equal ones, random ones, random signs,
    and 1 for some parts and 0 for others, as odd cycles and crossings have them that pairwise rows allow halves of."""
    generator = np.random.default_rng(0)
    quarter = (QUESTIONS - 2) // 3
    some = generator.random((quarter, size)) < np.linspace(0.1, 0.9, quarter)[:, None]
    return np.concatenate(
        [
            np.ones((1, size)),
            -np.ones((1, size)),
            some.astype(np.float64),
            generator.integers(-1, 2, (quarter, size)).astype(np.float64),
            generator.standard_normal((quarter, size)),
        ]
    )

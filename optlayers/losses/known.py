"""The best prediction among those that agree with what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.losses.prediction import Prediction
from optlayers.losses.question import Question, dot, finite
from optlayers.losses.targets import TOLERANCE, Target, of_instance
from optlayers.solution import SolveError, Status

__all__ = ["best_admitted", "best_completed"]

EXACT = 1e-9
"""So near a prediction has no structure but the target among its own."""
BONUS = 40.0
"""Structures that score so much less are a part of 4e-18 in sums over all."""
TRIES = 6


def best_admitted(
    scores: Float64[Tensor, "*batch_and_shape"], target: Target, predict: Callable[[Tensor], Prediction]
) -> Prediction:
    """The prediction for scores that forbid all parts which a mask does not admit."""
    assert target.admissible is not None
    with infeasible_because("no structure has parts that its mask admits and nothing else"):
        return predict(scores.masked_fill(~target.admissible, -torch.inf))


def best_completed(
    question: Question,
    scores: Float64[Tensor, "*batch_and_shape"],
    structure: Float64[Tensor, "*batch_and_shape"],
    predict: Callable[[Tensor], Prediction],
) -> Prediction:
    """The prediction among the points that have this structure, for scores of auxiliary variables.

    To forbid the parts that are 0 is enough where no other structure has some of the rest alone, as in trees,
    matchings and sequences. In other instances the parts of the structure get a bonus that outweighs all other scores.

    Raises
    ------
    ValueError : for structures of other numbers than 0 and 1, and for those that no bonus leads to.
    """
    _refuse_fractional(question, structure)
    zeros = structure == 0
    with infeasible_because("the target is no structure of the polytope, or what completes it is forbidden"):
        known = predict(scores.masked_fill(zeros, -torch.inf))
        missed = _distance(question, known, structure) > EXACT
        bonus = _more_than_all(question, scores, structure)
        for _ in range(TRIES):
            if not bool(missed.any()):
                return replace(known, structure=structure)
            raised = scores + _of_instances(bonus, structure) * structure
            found = predict(raised.masked_fill(zeros, -torch.inf))
            found = replace(found, value=found.value - bonus * structure.flatten(len(question.batch)).sum(-1))
            known = _where(missed, found, known)
            missed = _distance(question, known, structure) > TOLERANCE
            bonus = 8.0 * bonus  # more than noise, and than auxiliary variables that exceed 1
    if not bool(missed.any()):
        return replace(known, structure=structure)
    where = tuple(torch.nonzero(missed)[0].tolist()) if question.batch else ()
    raise ValueError(
        f"the target {of_instance(where)} is not found in the polytope: with a bonus for its parts, and all others "
        f"forbidden, the prediction is still {_distance(question, known, structure)[where].item():.3g} away from it. "
        f"Where auxiliary variables have scores ({', '.join(question.auxiliary)}), targets are vertices with parts of "
        "0 and 1, or boolean masks"
    )


def _more_than_all(question: Question, scores: Tensor, structure: Tensor) -> Float64[Tensor, "*batch"]:
    """More than other structures can gain by scores, and e to its power more than they can weigh together."""
    bonus = BONUS + 2.0 * dot(finite(scores.detach()).abs(), structure, question.batch)
    for values in question.auxiliary.values():
        bonus = bonus + 2.0 * dot(finite(values.detach()).abs(), torch.ones_like(values), question.batch)
    return bonus


def _distance(question: Question, known: Prediction, structure: Tensor) -> Float64[Tensor, "*batch"]:
    off = (known.structure.detach() - structure).abs()
    return off.flatten(len(question.batch)).amax(-1) if off.ndim > len(question.batch) else off


def _of_instances(values: Float64[Tensor, "*batch"], like: Tensor) -> Tensor:
    return values.reshape((*values.shape, *[1] * (like.ndim - values.ndim)))


def _where(chosen: Bool[Tensor, "*batch"], these: Prediction, others: Prediction) -> Prediction:
    return Prediction(
        torch.where(_of_instances(chosen, these.structure), these.structure, others.structure),
        torch.where(chosen, these.value, others.value),
        {n: torch.where(_of_instances(chosen, v), v, others.auxiliary[n]) for n, v in these.auxiliary.items()},
    )


def _refuse_fractional(question: Question, structure: Tensor) -> None:
    bad = (structure != 0) & (structure != 1)
    if bool(bad.any()):
        where, head = tuple(torch.nonzero(bad)[0].tolist()), len(question.batch)
        raise ValueError(
            f"where auxiliary variables have scores ({', '.join(question.auxiliary)}), targets are structures with "
            f"parts of 0 and 1, or boolean masks, but entry {list(where[head:])} {of_instance(where[:head])} is "
            f"{structure[where].item():g}; of a mixture, take the mean of the losses of its structures"
        )


@contextmanager
def infeasible_because(reason: str) -> Iterator[None]:
    """Scores without the target have been answered for: where there is no structure now, this is why."""
    try:
        yield
    except SolveError as error:
        failures = [replace(f, reason=reason) if f.status == Status.INFEASIBLE else f for f in error.failures]
        raise SolveError(failures, error.batch) from None

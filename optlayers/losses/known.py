"""The best prediction among those that agree with what is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.losses.prediction import Prediction
from optlayers.losses.question import Question, beside, dot, finite, per_instance
from optlayers.losses.targets import TOLERANCE, Target, of_instance
from optlayers.solution import SolveError, Status

__all__ = ["best_admitted", "best_completed", "in_whole_numbers", "infeasible_because", "not_one_of"]

EXACT = 1e-9
"""So near a prediction without a bonus has no structure but the target among its own."""
BONUS = 40.0
"""Structures that score so much less are a part of 4e-18 in sums over all."""
GROWTH, TRIES = 64.0, 5


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
    name: str = "target",
) -> Prediction:
    """The prediction among the points that have this structure of 0 and 1, for scores of auxiliary variables.

    To forbid the parts that are 0 is enough where no other structure has some of the rest alone, as in trees,
    matchings and sequences. In other instances the parts of the structure get a bonus that outweighs all other scores.

    Where no part exceeds 1, what is predicted has the structure alone as soon as its mean is the structure. That is
    for the caller to see to, see :meth:`AbstractLoss.completable`.

    Raises
    ------
    SolveError : for structures outside of the polytope, and such as forbidden auxiliary values leave no completion.
    ValueError : where no bonus leads to the structure.
    """
    with infeasible_because(not_one_of(name)):
        known = predict(scores.masked_fill(structure == 0, -torch.inf))
        missed = _distance(known, structure, question.batch) > EXACT
        if bool(missed.any()):
            known = _best_with_bonus(question, scores, structure, predict, name, known, missed)
    return replace(known, structure=structure)


def _best_with_bonus(
    question: Question,
    scores: Tensor,
    structure: Tensor,
    predict: Callable[[Tensor], Prediction],
    name: str,
    known: Prediction,
    missed: Bool[Tensor, "*batch"],
) -> Prediction:
    """What is ``known``, and for the instances that are ``missed`` what a bonus for their parts leads to."""
    zeros, batch = structure == 0, question.batch
    bonus = _more_than_all(question, scores, structure)
    for _ in range(TRIES):
        mine = torch.where(missed, bonus, 0.0)
        found = predict((scores + beside(mine, structure) * structure).masked_fill(zeros, -torch.inf))
        found = replace(found, value=found.value - mine * per_instance(structure, batch).sum(-1))
        known = _where(missed, found, known)
        missed = missed & (_distance(known, structure, batch) > TOLERANCE)
        if not bool(missed.any()):
            return known
        bonus = GROWTH * bonus  # more than noise, and than auxiliary variables that exceed 1
    where = tuple(torch.nonzero(missed)[0].tolist()) if batch else ()
    raise ValueError(
        f"no bonus up to {mine[where].item():.3g} for its parts leads to the {name} {of_instance(where)}: "
        f"the prediction is still {_distance(known, structure, batch)[where].item():.3g} away from it. Either it is "
        f"not in the polytope, or auxiliary variables ({', '.join(question.auxiliary)}) gain more than that"
    )


def not_one_of(name: str) -> str:
    """Why there is no completion."""
    return f"no structure of the polytope is the {name}, or what completes it is forbidden"


def in_whole_numbers(
    question: Question, structure: Float64[Tensor, "*batch_and_shape"], name: str
) -> Float64[Tensor, "*batch_and_shape"]:
    """A structure of 0 and 1 without what it is off by rounding: completions are known of these alone."""
    whole = structure.round()
    structure = torch.where((structure - whole).abs() <= TOLERANCE, whole, structure)
    bad = (structure != 0) & (structure != 1)
    if bool(bad.any()):
        where, head = tuple(torch.nonzero(bad)[0].tolist()), len(question.batch)
        raise ValueError(
            f"where auxiliary variables have scores ({', '.join(question.auxiliary)}), {name} must have parts of 0 and "
            f"1, but entry {list(where[head:])} {of_instance(where[:head])} is {structure[where].item():g}; the loss "
            "of a mixture is the mean of the losses of its structures"
        )
    return structure


def _more_than_all(question: Question, scores: Tensor, structure: Tensor) -> Float64[Tensor, "*batch"]:
    """More than others gain by scores, and e to its power more than they weigh together, for vertices of 0 and 1.

    Of these there are no more than 2 to the number of all entries. Others are seen by their distance.
    """
    bonus = BONUS + 2.0 * dot(finite(scores.detach()).abs(), structure, question.batch)
    bonus = bonus + per_instance(torch.ones_like(structure), question.batch).sum(-1)
    for values in question.auxiliary.values():
        bonus = bonus + per_instance(1.0 + 2.0 * finite(values.detach()).abs(), question.batch).sum(-1)
    return bonus


def _distance(known: Prediction, structure: Tensor, batch: torch.Size) -> Float64[Tensor, "*batch"]:
    return per_instance((known.structure.detach() - structure).abs(), batch).amax(-1)


def _where(chosen: Bool[Tensor, "*batch"], these: Prediction, others: Prediction) -> Prediction:
    return Prediction(
        torch.where(beside(chosen, these.structure), these.structure, others.structure),
        torch.where(chosen, these.value, others.value),
        {n: torch.where(beside(chosen, v), v, others.auxiliary[n]) for n, v in these.auxiliary.items()},
    )


@contextmanager
def infeasible_because(reason: str) -> Iterator[None]:
    """Scores without the target have been answered for: where there is no structure now, this is why."""
    try:
        yield
    except SolveError as error:
        failures = [replace(f, reason=reason) if f.status == Status.INFEASIBLE else f for f in error.failures]
        raise SolveError(failures, error.batch) from None

"""The best prediction among those that agree with what is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.losses.prediction import Prediction
from optlayers.losses.question import Predict, Question
from optlayers.losses.targets import TOLERANCE
from optlayers.solution import Solution, SolveError, Status

__all__ = ["best_admitted", "best_completed", "given", "in_whole_numbers", "infeasible_because", "not_one_of"]

EXACT = 1e-9
"""So near a prediction without a bonus has no structure but the target among its own."""
BONUS = 40.0
"""Structures that score so much less are a part of 4e-18 in sums over all."""
GROWTH, TRIES = 64.0, 5


def given(
    question: Question,
    scores: Float64[Tensor, "batch size"],
    structure: Float64[Tensor, "batch structure_size"],
    charge: Float64[Tensor, " batch"] | float,
) -> Prediction:
    """A structure that is known, worth its scores less a ``charge``."""
    point = question.whole(structure)
    nothing = torch.zeros(point.shape[0], dtype=torch.int8, device=point.device)
    number = torch.full((point.shape[0],), torch.nan, dtype=torch.float64, device=point.device)
    worth = (scores.detach() * point).sum(dim=1) - charge
    return Prediction(Solution(point, nothing, number, number), worth)


def best_admitted(
    question: Question,
    scores: Float64[Tensor, "batch size"],
    admissible: Bool[Tensor, "batch structure_size"],
    predict: Predict,
) -> Prediction:
    """The prediction for scores that forbid all parts which a mask does not admit."""
    with infeasible_because("no structure has parts that its mask admits and nothing else"):
        return _without(question, scores, ~admissible, predict)


def _without(
    question: Question,
    scores: Float64[Tensor, "batch size"],
    parts: Bool[Tensor, "batch structure_size"],
    predict: Predict,
) -> Prediction:
    """The prediction where these parts are forbidden, too."""
    hidden = torch.nn.functional.pad(parts, (0, scores.shape[1] - parts.shape[1]))
    if question.forbidden is not None:
        hidden = hidden | question.forbidden
    return question.ask(predict, scores.masked_fill(hidden, 0.0), hidden)


def best_completed(
    question: Question,
    scores: Float64[Tensor, "batch size"],
    structure: Float64[Tensor, "batch structure_size"],
    predict: Predict,
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
        known = _without(question, scores, structure == 0, predict)
        missed = _distance(question, known, structure) > EXACT
        if bool(missed.any()):
            known = _best_with_bonus(question, scores, structure, predict, name, known, missed)
    point = torch.cat([structure, known.solution.value[:, question.structure_size :]], dim=1)
    return replace(known, solution=replace(known.solution, value=point))


def _best_with_bonus(
    question: Question,
    scores: Tensor,
    structure: Tensor,
    predict: Predict,
    name: str,
    known: Prediction,
    missed: Bool[Tensor, " batch"],
) -> Prediction:
    """What is ``known``, and for the instances that are ``missed`` what a bonus for their parts leads to."""
    whole = question.whole(structure)
    bonus = _more_than_all(question, scores, structure)
    for _ in range(TRIES):
        mine = torch.where(missed, bonus, 0.0)
        found = _without(question, scores + mine[:, None] * whole, structure == 0, predict)
        found = replace(found, value=found.value - mine * structure.sum(dim=1))
        known = _where(missed, found, known)
        missed = missed & (_distance(question, known, structure) > TOLERANCE)
        if not bool(missed.any()):
            return known
        bonus = GROWTH * bonus  # more than noise, and than auxiliary variables that exceed 1
    k = int(torch.nonzero(missed)[0, 0])
    raise ValueError(
        f"no bonus up to {mine[k].item():.3g} for its parts leads to the {name} {question.instance(k)}: "
        f"the prediction is still {_distance(question, known, structure)[k].item():.3g} away from it. Either it is "
        f"not in the polytope, or auxiliary variables ({question.auxiliary_names}) gain more than that"
    )


def not_one_of(name: str) -> str:
    """Why there is no completion."""
    return f"no structure of the polytope is the {name}, or what completes it is forbidden"


def in_whole_numbers(
    question: Question, structure: Float64[Tensor, "batch structure_size"], name: str
) -> Float64[Tensor, "batch structure_size"]:
    """A structure of 0 and 1 without what it is off by rounding: completions are known of these alone."""
    whole = structure.round()
    structure = torch.where((structure - whole).abs() <= TOLERANCE, whole, structure)
    bad = (structure != 0) & (structure != 1)
    if bool(bad.any()):
        k, entry = torch.nonzero(bad)[0].tolist()
        raise ValueError(
            f"where auxiliary variables have scores ({question.auxiliary_names}), {name} must have parts of 0 and "
            f"1, but entry {question.entry(entry)} {question.instance(k)} is {structure[k, entry].item():g}; the loss "
            "of a mixture is the mean of the losses of its structures"
        )
    return structure


def _more_than_all(question: Question, scores: Tensor, structure: Tensor) -> Float64[Tensor, " batch"]:
    """More than others gain by scores, and e to its power more than they weigh together, for vertices of 0 and 1.

    Of these there are no more than 2 to the number of all entries. Others are seen by their distance.
    """
    size = structure.shape[1]
    values = scores.detach().abs()
    bonus: Tensor = BONUS + 2.0 * torch.linalg.vecdot(values[:, :size], structure) + float(size)
    return bonus + (1.0 + 2.0 * values[:, size:]).sum(dim=1)


def _distance(question: Question, known: Prediction, structure: Tensor) -> Float64[Tensor, " batch"]:
    return (question.structure(known.solution.value.detach()) - structure).abs().amax(dim=1)


def _where(chosen: Bool[Tensor, " batch"], these: Prediction, others: Prediction) -> Prediction:
    value = torch.where(chosen[:, None], these.solution.value, others.solution.value)
    return Prediction(replace(these.solution, value=value), torch.where(chosen, these.value, others.value))


@contextmanager
def infeasible_because(reason: str) -> Iterator[None]:
    """Scores without the target have been answered for: where there is no structure now, this is why."""
    try:
        yield
    except SolveError as error:
        failures = [replace(f, reason=reason) if f.status == Status.INFEASIBLE else f for f in error.failures]
        raise SolveError(failures, error.batch) from None

"""Fenchel-Young losses: what a prediction could have scored, less what the target scores."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from optlayers.layer import OptLayer
from optlayers.losses.base import AbstractLoss, closed_form
from optlayers.losses.question import Question, dot, finite
from optlayers.losses.targets import Target, read_target
from optlayers.solution import Solution, SolveError, Status

__all__ = [
    "AbstractFenchelYoungLoss",
    "Prediction",
    "admitted",
    "admitting",
    "between",
    "decide",
    "scored",
    "split_value",
    "with_value",
]


@final
@dataclass(frozen=True)
class Prediction:
    r"""The structures of some scores, with their graph, and :math:`\Omega^*(s)`, which they are the gradient of."""

    structure: Float64[Tensor, "*batch_and_shape"]
    value: Float64[Tensor, "*batch"]


class AbstractFenchelYoungLoss(AbstractLoss):
    r"""The loss :math:`\Omega^*(s) + \Omega(y) - \langle s, y \rangle` of a regularizer Ω on the polytope.

    :math:`\Omega^*(s) = \max_{z \in P} \langle s, z \rangle - \Omega(z)`, and the gradient is :math:`z - y` for the
    best z. Against a mask of admissible parts it is :math:`\Omega^*(s) - \Omega^*(s')`, where s' forbids all others:
    the smallest loss against a point that has admissible parts alone, and y is that point.

    References
    ----------
    Blondel, Martins and Niculae (2020), Learning with Fenchel-Young losses, JMLR. With masks: Stewart, Bach, Llinares-
    López and Berthet (2023), Differentiable clustering with perturbed spanning forests, NeurIPS.
    """

    @abstractmethod
    def predict(self, question: Question, scores: Float64[Tensor, "*batch_and_shape"], draws: Any) -> Prediction:
        """The structures of finite or forbidding scores; ``draws`` is what the loss drew, None for most."""

    @abstractmethod
    def regularizer(
        self, question: Question, structure: Float64[Tensor, "*batch_and_shape"]
    ) -> Float64[Tensor, "*batch"]:
        """Ω of points of the polytope."""

    def losses(
        self, question: Question, scores: Float64[Tensor, "*batch_and_shape"], target: Tensor, draws: Any = None
    ) -> Float64[Tensor, "*batch"]:
        """One loss per instance, with the gradient of the scores."""
        against = read_target(question, target, scores)
        self.check_membership(question, against)
        found = self.predict(question, scores, draws)
        if against.structure is not None:
            known = scored(question, scores, against.structure)
            known = replace(known, value=known.value - self.regularizer(question, against.structure))
        else:
            with admitting():
                known = self.predict(question, admitted(scores, against), draws)
        return between(scores, found, known)

    def forward(
        self, scores: Float[Tensor, "*batch_and_shape"], target: Tensor, *, sizes: Any = None, **parameters: Any
    ) -> Tensor:
        """The loss of scores against a target.

        Parameters
        ----------
        scores : ``(*batch, *shape)`` as for :class:`optlayers.OptLayer`; ``-inf`` forbids a part, for which the
            gradient is 0.
        target : like the scores: structures or mixtures of structures, 0 in the padding of a family; or a boolean mask
            of admissible parts. It has no gradient.
        sizes : for a family, the size of every instance.
        parameters : what the polytope declares; losses have no gradient for them, so that none may require it.

        Raises
        ------
        SolveError : an instance without a certified answer, or whose mask admits no structure.
        TypeError, ValueError : see :meth:`optlayers.OptLayer.forward`; targets that are not in the polytope.
        """
        question = self.question(scores, sizes, parameters)
        return self.reduced(self.losses(question, question.double(scores), target), scores)


def between(
    scores: Float64[Tensor, "*batch_and_shape"], found: Prediction, known: Prediction
) -> Float64[Tensor, "*batch"]:
    """What was found is worth more than what is known: by how much, with the gradient of the scores."""
    # Exactly 0 for forbidden parts, of which CvxpyLayers leaves a rest.
    difference = (found.structure - known.structure).masked_fill(scores.detach() == -torch.inf, 0.0)
    return closed_form(found.value - known.value, scores, difference)


def decide(layer: OptLayer, question: Question, scores: Float64[Tensor, "*batch_and_shape"]) -> Prediction:
    """The best vertices and their scores."""
    return scored(question, scores, question.ask(layer, scores))


def scored(
    question: Question,
    scores: Float64[Tensor, "*batch_and_shape"],
    structure: Float64[Tensor, "*batch_and_shape"],
) -> Prediction:
    """Structures and their scores."""
    return Prediction(structure, dot(finite(scores.detach()), structure.detach(), question.batch))


def admitted(scores: Float64[Tensor, "*batch_and_shape"], target: Target) -> Float64[Tensor, "*batch_and_shape"]:
    """Scores that forbid all parts which a mask does not admit."""
    assert target.admissible is not None
    return scores.masked_fill(~target.admissible, -torch.inf)


@contextmanager
def admitting() -> Iterator[None]:
    """Scores without the mask have been answered for: where there is no structure now, the mask leaves none."""
    try:
        yield
    except SolveError as error:
        reason = "no structure has parts that its mask admits and nothing else"
        failures = [replace(f, reason=reason) if f.status == Status.INFEASIBLE else f for f in error.failures]
        raise SolveError(failures, error.batch) from None


def with_value(solution: Solution, value: Float64[Tensor, " batch"]) -> Solution:
    """A flat solution with a number per instance, as a second structure that holds it in every part."""
    structure = solution.value
    return replace(solution, value=torch.stack([structure, value[:, None].expand_as(structure)]))


def split_value(question: Question, both: Float64[Tensor, "two *batch_and_shape"]) -> Prediction:
    """What :func:`with_value` put together; the value is read from the first part, which no size has as padding."""
    structure, value = both
    if value.ndim > len(question.batch):
        value = value.flatten(len(question.batch))[..., 0]
    return Prediction(structure, value.detach())

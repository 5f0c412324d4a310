"""Fenchel-Young losses: what a prediction could have scored, less what the target scores."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from functools import partial
from typing import Any

from jaxtyping import Float, Float64
from torch import Tensor

from optlayers.losses.base import AbstractLoss
from optlayers.losses.known import best_admitted, best_completed
from optlayers.losses.prediction import Prediction, between, scored
from optlayers.losses.question import Lifted, Question
from optlayers.losses.targets import read_target
from optlayers.modes import outside_graphs

__all__ = ["AbstractFenchelYoungLoss"]


class AbstractFenchelYoungLoss(AbstractLoss):
    r"""The loss :math:`\Omega^*(s) + \Omega(y) - \langle s, y \rangle` of a regularizer Ω on the polytope.

    :math:`\Omega^*(s) = \max_{z \in P} \langle s, z \rangle - \Omega(z)`, and the gradient is :math:`z - y` for the
    best z. Against a mask of admissible parts it is :math:`\Omega^*(s) - \Omega^*(s')`, where s' forbids all others:
    the smallest loss against a point that has admissible parts alone, and y is that point.

    Auxiliary variables v with scores t (``Polytope(..., scored=[v])``) are latent: the loss is :math:`\Omega^*(s, t) -
    \Omega^*_y(s, t)`, where the latter is the same over the points whose structure is y, of parts 0 and 1 in a polytope
    whose parts are at most 1. Where y leaves one v, as tags do with their transitions, that is
    :math:`\Omega^*(s, t) + \Omega(y) - \langle s, y \rangle - \langle t, v \rangle`. The gradient of t is the
    difference of the two v, and has no derivative of its own in losses whose structures have one.

    References
    ----------
    Blondel, Martins and Niculae (2020), Learning with Fenchel-Young losses, JMLR. With masks: Stewart, Bach, Llinares-
    López and Berthet (2023), Differentiable clustering with perturbed spanning forests, NeurIPS. With
    latent variables: Yu and Joachims (2009), Learning structural SVMs with latent variables, ICML; Quattoni, Wang,
    Morency, Collins and Darrell (2007), Hidden conditional random fields, TPAMI.
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
        predict = partial(self.predict, question, draws=draws)
        if against.structure is None:
            known = best_admitted(scores, against, predict)
        elif question.auxiliary:
            structure = self.completable(question, against.structure)
            known = best_completed(question, scores, structure, predict)
        else:
            known = scored(question, scores, Lifted(against.structure))
            known = replace(known, value=known.value - self.regularizer(question, against.structure))
        return between(question, scores, found, known)

    @outside_graphs
    def forward(
        self, scores: Float[Tensor, "*batch_and_shape"], target: Tensor, *, sizes: Any = None, **parameters: Any
    ) -> Tensor:
        """The loss of scores against a target.

        Parameters
        ----------
        scores : ``(*batch, *shape)`` as for :class:`optlayers.OptLayer`; ``-inf`` forbids a part, for which the
            gradient is 0.
        target : like the scores: structures or mixtures of structures, 0 in the padding of a family; or a boolean mask
            of admissible parts. It has no gradient. Where auxiliary variables have scores, structures are of 0 and
            1, in polytopes whose parts are at most 1.
        sizes : for a family, the size of every instance.
        parameters : what the polytope declares; losses have no gradient for them, so that none may require it. The
            scores of auxiliary variables by their names; these have a gradient.

        Raises
        ------
        SolveError : an instance without a certified answer, or whose mask admits no structure.
        TypeError, ValueError : see :meth:`optlayers.OptLayer.forward`; targets that are not in the polytope.
        """
        question = self.question(scores, sizes, parameters)
        return self.reduced(self.losses(question, question.double(scores), target), scores)

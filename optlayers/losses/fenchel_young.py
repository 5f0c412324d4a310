"""Fenchel-Young losses: what a prediction could have scored, less what the target scores."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.bound.polytope import BoundPolytope
from optlayers.common.modes import outside_graphs
from optlayers.losses.base import AbstractLoss
from optlayers.losses.known import best_admitted, best_completed, given
from optlayers.losses.prediction import Contrast, Prediction
from optlayers.losses.question import Question
from optlayers.losses.targets import check_target
from optlayers.rules.base import Context
from optlayers.solution import Solution

__all__ = ["AbstractFenchelYoungLoss"]


class AbstractFenchelYoungLoss(AbstractLoss):
    r"""The loss :math:`\Omega^*(s) + \Omega(y) - \langle s, y \rangle` of a regularizer Ω on the polytope.

    :math:`\Omega^*(s) = \max_{z \in P} \langle s, z \rangle - \Omega(z)`, and the gradient is :math:`z - y` for the
    best z. Against a mask of admissible parts it is :math:`\Omega^*(s) - \Omega^*(s')`, where s' forbids all others.
    In the perceptron and the SparseMAP loss that is the smallest loss against a point that has admissible parts alone,
    and y is that point; :class:`CRFLoss` has no Ω for targets, and is minus the log of the probability of all admitted
    structures together. The loss is convex in s against a target; against a mask, or where auxiliary variables are
    latent, it is the difference of two convex functions.

    Auxiliary variables v with scores t (``Polytope(..., scored=[v])``) are latent: the loss is :math:`\Omega^*(s, t) -
    \Omega^*_y(s, t)`, where the latter is the same over the points whose structure is y, of parts 0 and 1 in a polytope
    whose parts are at most 1. Where y leaves one v, as tags do with their transitions, that is
    :math:`\Omega^*(s, t) + \Omega(y) - \langle s, y \rangle - \langle t, v \rangle`. The gradient of t is the
    difference of the two v, and has no derivative of its own in losses whose structures have one.

    A loss of your own says how scores are predicted (:meth:`predict`), what Ω of a target is where that is not 0
    (:meth:`regularizer`), and what is added to the scores where it has a margin (:meth:`margin`). Numbers arrive
    flat, as rules get them. Gradients follow: of scores, of parameters where predictions are optimal values, and of
    higher order. Hold it to :func:`optlayers.testing.check_loss`.

    Parameters
    ----------
    polytope : a :class:`Polytope`, a compiled one, or a :class:`Family`, for which a call takes ``sizes=``.
    reduction : ``"mean"`` or ``"sum"`` over instances, or ``"none"`` for one loss per instance, ``(*batch,)``.
    validate : whether targets that are no points of the polytope are refused.
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.

    References
    ----------
    Blondel, Martins and Niculae (2020), Learning with Fenchel-Young losses, JMLR. With masks: Stewart, Bach, Llinares-
    López and Berthet (2023), Differentiable clustering with perturbed spanning forests, NeurIPS. With
    latent variables: Yu and Joachims (2009), Learning structural SVMs with latent variables, ICML; Quattoni, Wang,
    Morency, Collins and Darrell (2007), Hidden conditional random fields, TPAMI.
    """

    @abstractmethod
    def predict(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> Prediction:
        """The points z of some scores, and :math:`\\Omega^*`, by questions to the polytope, as a rule asks them."""

    def regularizer(self, structure: Float64[Tensor, "batch structure_size"]) -> Float64[Tensor, " batch"] | float:
        """Ω of points of the polytope."""
        return 0.0

    def charge(
        self, question: Question, target: Float64[Tensor, "batch structure_size"]
    ) -> Float64[Tensor, " batch"] | float:
        """Ω of a target, where it depends on the polytope."""
        return self.regularizer(target)

    def margin(
        self, target: Float64[Tensor, "batch structure_size"] | Bool[Tensor, "batch structure_size"]
    ) -> Float64[Tensor, "batch structure_size"] | None:
        """What is added to the scores of a structure, for a target or for a boolean mask of admissible parts; None for
        nothing. Scores of auxiliary variables stay as they are, and forbidden parts stay forbidden."""
        return None

    def decoded(self, polytope: BoundPolytope, scores: Float64[Tensor, "batch size"]) -> Solution:
        """The best vertices, where Ω is 0; a loss with another Ω says what they are."""
        if type(self).regularizer is not AbstractFenchelYoungLoss.regularizer:
            raise NotImplementedError(
                f"{type(self).__name__} has a regularizer: its decoded() says which vertices v have the best "
                "<scores, v> - regularizer(v)"
            )
        return super().decoded(polytope, scores)

    def contrast(self, question: Question) -> Contrast:
        """The prediction, and the target or the best of what it admits."""
        target, scores = question.given["target"], question.scores
        margin = self.margin(target)
        if margin is not None:
            scores = scores + question.whole(margin)
            scores = scores if question.forbidden is None else scores.masked_fill(question.forbidden, 0.0)
        found = question.ask(self.predict, scores, question.forbidden)
        if target.dtype == torch.bool:
            known = best_admitted(question, scores, target, self.predict)
        elif question.has_auxiliaries:
            known = best_completed(question, scores, self.completable(question, target), self.predict)
        else:
            known = given(question, scores, target, self.charge(question, target))
        return Contrast(found, known)

    def check(self, question: Question) -> None:
        """Refuse a target that is no point of the polytope."""
        if question.given["target"].dtype != torch.bool:
            self.check_structure(question, "target")

    def against(
        self,
        scores: Float[Tensor, "*batch_and_shape"],
        target: Tensor,
        sizes: Any,
        parameters: dict[str, Any],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The reduced loss of scores against a target."""
        given = {"target": (target, check_target)}
        return self.reduced(self.losses(scores, sizes, parameters, given, generator), scores)

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
        parameters : what the polytope declares; the gradient of a parameter is that of the optimal value, from dual
            points. Where an oracle answers, these are those of the constraints, which must describe the polytope. The
            scores of auxiliary variables by their names; these have a gradient.

        Raises
        ------
        SolveError : an instance without a certified answer, or whose mask admits no structure.
        TypeError, ValueError : see :meth:`optlayers.OptLayer.forward`; targets that are not in the polytope; gradients
            of parameters where the constraints are a relaxation of it.
        """
        return self.against(scores, target, sizes, parameters)

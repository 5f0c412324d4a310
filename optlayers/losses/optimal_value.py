"""The optimal value as a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import cvxpy as cp
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.bound.polytope import BoundPolytope
from optlayers.common.modes import outside_graphs
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.family import Family
from optlayers.losses.base import AbstractLoss, Reduction
from optlayers.losses.decoding import best_less
from optlayers.losses.known import given
from optlayers.losses.prediction import Contrast, Prediction, best_vertices
from optlayers.losses.question import Question
from optlayers.losses.regularized import decodable, of_parts, regularized_points
from optlayers.polytope import Polytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.regularizers.declared import regularizer_of
from optlayers.regularizers.nothing import Nothing
from optlayers.rules.base import AbstractVertexRule, Context, Gradient
from optlayers.rules.regularized import Regularized
from optlayers.solution import Solution

__all__ = ["OptimalValue"]

NOTHING = Nothing()


@final
@dataclass(frozen=True)
class BestPoint(AbstractVertexRule):
    """What the value of best points needs of a set: no vertices."""

    maximizes = False

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """A vertex stays the same nearby."""
        return Gradient(torch.zeros_like(grad))


@final
class OptimalValue(AbstractLoss):
    r"""The optimal value :math:`\max_{z \in P(\theta)} \langle s, z \rangle - \Omega(z)` as a layer.

    Its gradient with respect to the scores is the best z; with respect to the parameters θ of the polytope (right-hand
    sides, limits, entries of rows) it is what the value gains by them, the multipliers of the constraints (envelope
    theorem). So predicted supplies, demands and capacities learn from it, as predicted profits do. Where the best point
    or its multipliers are not unique, the value has a kink, and this is one of its generalized gradients. Where an
    oracle answers, the multipliers come from a linear program over the constraints, which must describe the polytope:
    the values of both are compared. Where several points are best, the entries of rows that are parameters then have
    the gradient of one of them, and the scores that of the one which the oracle gives.

    Parameters
    ----------
    polytope : a :class:`Polytope`, an already compiled one, or a :class:`Family` for batches of mixed length.
    regularizer : Ω, None for 0: the value of a best vertex, or of a best point where the set is not polyhedral.
    reduction : ``"none"`` for a value per instance, ``"mean"`` or ``"sum"``.
    arguments : the solvers, ``maximizer=`` and ``projector=``.

    References
    ----------
    Milgrom and Segal (2002), Envelope theorems for arbitrary choice sets, Econometrica.

    Examples
    --------
    >>> import cvxpy as cp, torch
    >>> x, budget = cp.Variable(3, nonneg=True), cp.Parameter(name="budget", nonneg=True)
    >>> value = OptimalValue(Polytope(x, [cp.sum(x) <= budget, x <= 1]))
    >>> scores, limit = torch.tensor([3.0, 2.0, 1.0], requires_grad=True), torch.tensor(1.5, requires_grad=True)
    >>> best = value(scores, budget=limit)
    >>> best.item(), [g.tolist() for g in torch.autograd.grad(best, (scores, limit))]
    (4.0, [[1.0, 0.5, 0.0], 2.0])
    """

    def __init__(
        self,
        polytope: Polytope | CompiledPolytope | Family,
        regularizer: AbstractRegularizer | cp.Expression | None = None,
        *,
        reduction: Reduction = "none",
        **arguments: Any,
    ) -> None:
        if regularizer is not None:
            regularizer = regularizer_of(regularizer)
            of_parts(regularizer)
        self.rule = BestPoint() if regularizer is None else Regularized(regularizer)
        super().__init__(polytope, reduction=reduction, **arguments)
        self.omega = regularizer

    def predict(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> Prediction:
        """The best points."""
        if self.omega is None and not polytope.polyhedral:
            return regularized_points(polytope, scores, NOTHING)
        if self.omega is None:
            return best_vertices(polytope, scores, context)
        return regularized_points(polytope, scores, self.omega)

    def contrast(self, question: Question) -> Contrast:
        """The best points, and nothing that is known."""
        found = question.ask(self.predict, question.scores, question.forbidden)
        nothing = torch.zeros_like(question.structure(question.scores.detach()))
        return Contrast(found, given(question, question.scores, nothing, 0.0))

    def decoded(self, polytope: BoundPolytope, scores: Float64[Tensor, "batch size"]) -> Solution:
        """The vertices v with the best ⟨s, v⟩ - Ω(v)."""
        omega = self.omega
        if omega is None:
            return polytope.maximize(scores)
        decodable(omega)
        return best_less(polytope, scores, lambda points: polytope.worth(points, omega))

    @outside_graphs
    def forward(
        self, scores: Float[Tensor, "*batch_and_shape"], *, sizes: Any = None, **parameters: Any
    ) -> Float[Tensor, "*reduced"]:
        """The optimal values ``(*batch,)``, or their mean or sum.

        Parameters
        ----------
        scores : ``(*batch, *shape)`` as for :class:`optlayers.OptLayer`; ``-inf`` forbids a part, for which the
            gradient is 0.
        sizes : for a family, the size of every instance.
        parameters : what the polytope and the regularizer declare, and the scores of auxiliary variables, by name.

        Raises
        ------
        SolveError : an instance without a certified answer.
        TypeError, ValueError : see :meth:`optlayers.OptLayer.forward`.
        """
        return self.reduced(self.losses(scores, sizes, parameters, {}), scores)

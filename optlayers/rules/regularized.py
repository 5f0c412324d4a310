"""Regularized points, and their derivative."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import cvxpy as cp
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.bound.regularized import by_constraints
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.regularizers.declared import regularizer_of
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution

if TYPE_CHECKING:
    from optlayers.compilation.compiled import CompiledPolytope

__all__ = ["Regularized"]


@final
@dataclass(frozen=True, init=False)
class Regularized(AbstractRule):
    r"""The regularized point, and its derivative.

    .. math:: \operatorname{argmax}_{z \in P} \langle s, z \rangle - \Omega(z)

    With :class:`Euclidean` it is :class:`SparseMAP`, with :class:`Entropy` the entropic projection (softmax, Sinkhorn),
    with :class:`Tsallis` entmax, on any polytope that constraints describe. Backward is the true derivative with
    respect to the scores, to any order, and to every parameter of the polytope.

    Parameters
    ----------
    regularizer : Ω: a value such as ``Entropy()``, or a convex expression of cvxpy over the variables that the polytope
        is declared with, such as ``0.5 * cp.quad_form(x, covariance) + 0.1 * cp.tv(x)``; see :class:`Declared`.

    References
    ----------
    Blondel, Martins and Niculae (2020), Learning with Fenchel-Young losses, JMLR. Niculae and Blondel (2017), A
    regularized framework for sparse and structured neural attention, NeurIPS.

    Examples
    --------
    >>> import torch
    >>> from optlayers import Entropy, OptLayer
    >>> from polytopes import matching
    >>> layer = OptLayer(matching(2), Regularized(Entropy(temperature=0.5)))
    >>> layer(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    tensor([[0.7311, 0.2689],
            [0.2689, 0.7311]])
    """

    regularizer: AbstractRegularizer
    maximizes = False
    has_jacobian = True
    differentiates_parameters = True
    optimizes = True

    def __init__(self, regularizer: Any) -> None:
        object.__setattr__(self, "regularizer", regularizer_of(regularizer))

    @property
    def omega(self) -> AbstractRegularizer:  # type: ignore[override]
        """The regularizer."""
        return self.regularizer

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """Those of the regularizer."""
        return self.regularizer.parameters

    def check(self, compiled: CompiledPolytope) -> None:
        """Refuse a polytope that is not described by constraints, and a regularizer that does not fit it."""
        super().check(compiled)
        if not compiled.polyhedral:
            if self.regularizer.projects is None and self.regularizer.over_cones(compiled.polytope) is None:
                self.regularizer.check_shape(compiled.projection_form)
        elif self.regularizer.projects is None and self.regularizer.over(compiled.polytope) is None:
            form = by_constraints(compiled).projection_form
            self.regularizer.check_shape(form)
            self.regularizer.kind_of(form)

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The regularized points."""
        weight = self.regularizer.projects
        solution = (
            polytope.regularized(scores, self.regularizer) if weight is None else polytope.project(scores / weight)
        )
        return solution, solution

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """Their derivative, applied to the gradient."""
        tangent = polytope.tangent(saved, grad)
        return Gradient(tangent.scores / (self.regularizer.projects or 1.0), tangent.parameters)

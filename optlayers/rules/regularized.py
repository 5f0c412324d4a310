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
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution

if TYPE_CHECKING:
    from optlayers.compiled import CompiledPolytope

__all__ = ["Regularized"]


@final
@dataclass(frozen=True)
class Regularized(AbstractRule):
    r"""The regularized point, and its derivative.

    .. math:: \operatorname{argmax}_{z \in P} \langle s, z \rangle - \Omega(z)

    With :class:`Euclidean` it is :class:`SparseMAP`, with :class:`Entropy` the entropic projection (softmax, Sinkhorn),
    with :class:`Tsallis` entmax, on any polytope that constraints describe. Backward is the true derivative with
    respect to the scores, to any order, and to every parameter of the polytope.

    Parameters
    ----------
    regularizer : Ω.

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

    def __post_init__(self) -> None:
        if not isinstance(self.regularizer, AbstractRegularizer):
            hint = f"; make it a value: {self.regularizer.__name__}()" if isinstance(self.regularizer, type) else ""
            raise TypeError(f"regularizer must be one such as Entropy(), but got {self.regularizer!r}{hint}")

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """Those of the regularizer."""
        return self.regularizer.parameters

    def check(self, compiled: CompiledPolytope) -> None:
        """Refuse a polytope that is not described by constraints, and a regularizer that does not fit it."""
        super().check(compiled)
        if self.regularizer.projects is None:
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

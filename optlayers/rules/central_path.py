"""Best vertices with the derivative of the central path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import cvxpy as cp
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.bound.regularized import by_constraints
from optlayers.regularizers.barrier import Barrier
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution

if TYPE_CHECKING:
    from optlayers.compilation.compiled import CompiledPolytope

__all__ = ["CentralPath"]


@final
@dataclass(frozen=True)
class CentralPath(AbstractRule):
    r"""The best vertex forward, backward the derivative of the point of the central path at μ.

    That point is the best of :math:`\langle s, z \rangle + \mu \sum_i \log(\text{room of inequality } i)` in the
    polytope, see :class:`Barrier`: it moves smoothly with scores and with all parameters, where the vertex jumps. It is
    the smoothed derivative of interior-point layers, which stop at μ to differentiate.

    Parameters
    ----------
    mu : positive; the larger it is, the more vertices the gradient sees. A number, or a ``cp.Parameter`` for one of the
        instance, for which there is no gradient unless ``hard=False``.
    hard : whether the vertex goes forward; else the point itself does.

    References
    ----------
    Mandi and Guns (2020), Interior point solving for LP-based prediction+optimisation, NeurIPS. Tracy and
    Manchester (2024), On the differentiability of the primal-dual interior-point method.

    Examples
    --------
    >>> import torch
    >>> from optlayers import OptLayer
    >>> from polytopes import simplex
    >>> scores = torch.tensor([1.0, 0.5, 0.0], requires_grad=True)
    >>> vertex = OptLayer(simplex(3), CentralPath(mu=0.1))(scores)
    >>> vertex.detach(), torch.autograd.grad(vertex[0], scores)[0]
    (tensor([1., 0., 0.]), tensor([ 0.3099, -0.2362, -0.0737]))
    """

    mu: float | cp.Parameter = 0.1
    hard: bool = True
    has_jacobian = True
    differentiates_parameters = True

    def __post_init__(self) -> None:
        if not isinstance(self.hard, bool):
            raise TypeError(f"hard must be True or False, but got {self.hard!r}")
        object.__setattr__(self, "mu", Barrier(self.mu).mu)

    @property
    def maximizes(self) -> bool:  # type: ignore[override]
        """Whether vertices go forward."""
        return self.hard

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """μ, where it is one."""
        return Barrier(self.mu).parameters

    def check(self, compiled: CompiledPolytope) -> None:
        """Refuse a polytope that is not described by constraints."""
        super().check(compiled)
        if not compiled.polyhedral:
            Barrier(self.mu).over_cones(compiled.polytope)
        Barrier(self.mu).check_shape(by_constraints(compiled).projection_form)

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The best vertices, or the points."""
        if not self.hard:
            solution = polytope.regularized(scores, Barrier(self.mu))
            return solution, (scores, solution)
        return polytope.maximize(scores.detach()), (scores, None)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The derivative of the points."""
        scores, solution = saved
        if solution is None:
            solution = polytope.regularized(scores, Barrier(self.mu))
        tangent = polytope.tangent(solution, grad)
        return Gradient(tangent.scores, tangent.parameters)

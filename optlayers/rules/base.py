"""What a backward rule is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import cvxpy as cp
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.rules.objective import FlatObjective
from optlayers.solution import Solution

if TYPE_CHECKING:
    from optlayers.compilation.compiled import CompiledPolytope

__all__ = ["AbstractRule", "AbstractVertexRule", "Context", "Gradient", "SecondGradient"]


@final
@dataclass(frozen=True)
class Context:
    """What a call of the layer brings besides scores, for its forward pass and for the backward pass that follows.

    ``generator`` is what random numbers are drawn from, None for torch's own. ``state`` are the buffers of the layer
    that the rule asked for by ``initial_state``; :meth:`AbstractRule.adapt` changes them. ``objective`` is the loss as
    a function of structures, where the layer was called with one. ``needs_gradient`` says whether a backward pass may
    follow, and ``needs_parameters`` whether a parameter waits for a gradient.
    """

    generator: torch.Generator | None = None
    state: Mapping[str, Tensor] = field(default_factory=dict)
    objective: FlatObjective | None = None
    needs_gradient: bool = False
    needs_parameters: bool = False


@final
@dataclass(frozen=True)
class Gradient:
    """What a rule sends back: the gradient of the scores ``(batch, size)``, and of parameters where it has one.

    An instance gets no gradient when a solve behind it failed. The polytope that the rule was given knows of its own
    solves; ``solutions`` are those of anything else that the rule asked. ``seen`` is what the rule adapts by
    (:meth:`AbstractRule.adapt`): sums over the instances.
    """

    scores: Float64[Tensor, "batch size"]
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    solutions: tuple[Solution, ...] = ()
    seen: Float64[Tensor, " sums"] | None = None


@final
@dataclass(frozen=True)
class SecondGradient:
    r"""The gradient of :math:`\langle d, \text{backward}(g) \rangle` for a direction d.

    With respect to g ``(batch, size)``, and to the scores and parameters where it is not 0. ``depends_on_parameters``
    says that the rule's gradient depends on parameters in a way that is not given here. ``solutions`` are solves of
    anything but the polytope that the rule was given.
    """

    grad: Float64[Tensor, "batch size"]
    scores: Float64[Tensor, "batch size"] | None = None
    parameters: Mapping[str, Tensor] = field(default_factory=dict)
    depends_on_parameters: bool = False
    solutions: tuple[Solution, ...] = ()


class AbstractRule(ABC):
    """A forward map from scores to structures and a gradient for it.

    A rule is a value: a frozen dataclass whose fields are its hyperparameters. It speaks to ``maximize``, ``project``,
    ``tangent`` and the other questions of a :class:`optlayers.AbstractBoundPolytope`, in which parameters and forbidden
    parts are filled in already. An instance that one of these fails for has no answer, or no gradient, whatever the
    rule makes of it. All tensors are ``(batch, size)`` float64 on one device. What it draws comes from the context, and
    what it learns lives there.
    """

    maximizes: bool = True
    """Whether the rule asks for vertices; sets that are not polyhedral have none."""
    draws: bool = False
    """Whether the rule draws random numbers."""
    needs_objective: bool = False
    """Whether the rule works with losses, so that the layer must be called with an objective."""
    takes_any_gradient: bool = False
    """Whether gradients that are not finite may come to ``backward``: it solves nothing, or its solves have no answer
    for them and it may be asked again, as it changes no state. To other rules, and in second derivatives, such an
    instance comes as 0, and what it gets back is NaN.
    """
    has_jacobian: bool = False
    """Whether ``backward`` is the transpose of a matrix that depends on the scores alone, so that there is forward mode
    (``torch.func.jvp``, ``jacfwd``) too."""
    differentiates_parameters: bool | None = None
    """Whether parameters of the polytope get a gradient too: a layer warns where one waits for it in vain. None leaves
    it open until ``backward`` gives one, or does not.
    """
    takes_zero: bool = True
    """Whether a score of 0 is a score like any other."""
    optimizes: bool = False
    """Whether the forward map is the best point of ``<s, z> - Ω(z)``, so that constraints have multipliers."""
    omega: AbstractRegularizer | None = None
    """This Ω, None for 0. What else a rule regularizes, in its backward pass, is none of it."""
    apart: int | None = None
    """How many structures per instance go forward one by one, each to the objective; None for a single one."""

    @property
    def parameters(self) -> tuple[cp.Parameter, ...]:
        """Parameters of the rule itself, which callers give by name as those of the polytope."""
        return ()

    def initial_state(self) -> dict[str, Tensor]:
        """Tensors that adapt from call to call, by name; the layer keeps them as buffers. Most rules have none."""
        return {}

    def adapt(self, state: Mapping[str, Tensor], seen: Float64[Tensor, " sums"]) -> None:
        """Change the buffers ``state`` in place, once after a backward pass.

        ``seen`` is the sum of what ``backward`` puts into ``Gradient.seen``, over all instances, those of a family
        whatever their sizes: how a rule adapts does not depend on how instances are grouped.
        """
        raise NotImplementedError(f"{type(self).__name__} adapts by what its gradients have seen: write adapt()")

    def kept(
        self,
        sent: Float64[Tensor, "batch size"],
        grad: Float64[Tensor, "batch size"],
        state: Mapping[str, Tensor],
    ) -> Float64[Tensor, " batch"] | None:
        """For rules that send back the displacement of a projected step: which part of the step every instance was
        left by the polytope, 1 for all of it, NaN where nothing moved or numbers are not finite. None for other rules.

        ``sent`` is the gradient that ``backward`` made of ``grad`` with the buffers ``state``. Nothing is solved.
        """
        return None

    def of_size(self, *size: int) -> AbstractRule:
        """The rule for one size of a family; most rules are the same for all."""
        return self

    def check(self, compiled: CompiledPolytope) -> None:
        """Raise ValueError for a polytope that lacks what the rule needs, when the layer is made."""
        if self.maximizes and not compiled.has_vertices:
            raise ValueError(
                f"{self!r} asks for the best vertex, but the declared set is not polyhedral and has no vertices; "
                "use a rule that only projects, such as SparseMAP()"
            )

    def remark(self, compiled: CompiledPolytope) -> str | None:
        """What to warn of when a layer is made over a polytope that the rule takes; None for nothing."""
        return None

    @abstractmethod
    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The structures with their verdicts, and what ``backward`` needs.

        A rule with structures ``apart`` gives a value ``(apart, batch, size)``, with a verdict for each instance.
        """

    @abstractmethod
    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """From the gradient of the loss with respect to the structures to that of the scores.

        What is saved may be asked for again: what goes back is no part of it, as it is the caller's to change. Written
        in torch operations and questions to the polytope, it has derivatives of any order by autograd: for these the
        rule goes forward and backward once more.
        """


class AbstractVertexRule(AbstractRule):
    """A rule whose forward map is the best vertex; it saves ``(scores, vertex)``."""

    optimizes = True

    def forward(
        self, polytope: AbstractBoundPolytope, scores: Float64[Tensor, "batch size"], context: Context
    ) -> tuple[Solution, Any]:
        """The best vertex, which stays the same nearby: derivatives of higher order take it for a constant."""
        solution = polytope.maximize(scores.detach() if scores.requires_grad else scores)
        return solution, (scores, solution.value)

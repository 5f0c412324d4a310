"""SPIGOT: projected steps, pulled back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.bound.base import AbstractBoundPolytope
from optlayers.common.tensors import all_finite
from optlayers.family import Family
from optlayers.polytope import Polytope
from optlayers.rules.base import AbstractVertexRule, Context, Gradient
from optlayers.rules.hyperparameters import at_least_one, positive
from optlayers.rules.objective import FlatObjective
from optlayers.solution import Solution

if TYPE_CHECKING:
    from optlayers.compilation.compiled import CompiledPolytope

__all__ = ["AdaptiveStep", "Spigot", "kept_of_step"]

ROUNDING = 1e-14
"""A displacement below this, next to its step, is that of rounding."""
SHORTEST, LONGEST = 1e-12, 1e12
"""Steps that adapt stay between these."""


def kept_of_step(
    displacement: Float64[Tensor, "batch size"], step: Float64[Tensor, "batch size"]
) -> Float64[Tensor, " batch"]:
    """The κ of :class:`AdaptiveStep` for every instance that moved, NaN for the others: which part of a step a
    projection has left, but for what the tangent cone takes off it."""
    asked, travelled = torch.linalg.vecdot(displacement, step), displacement.square().sum(dim=1)
    moved = travelled > (ROUNDING * step.square().sum(dim=1).clamp(min=1.0).sqrt()).square()
    return torch.where(moved & (asked > 0.0), travelled / asked, torch.nan)


@final
@dataclass(frozen=True)
class AdaptiveStep:
    r"""A step size η that adapts so that the polytope cuts off the same part of steps throughout training.

    Of a step :math:`-\eta g` from :math:`\hat z`, a displacement d remains after the projection. Measured in the
    direction of d, the step asked for :math:`\eta \langle g, d \rangle / \|d\|` and travelled :math:`\|d\|`; the
    quotient over a batch,

    .. math:: \kappa = \frac{\sum \|d\|^2}{\eta \sum \langle g, d \rangle} \in (0, 1],

    is 1 for short steps, which the tangent cone at :math:`\hat z` alone bends (Moreau, 1962), and tends to 0 for long
    ones, which end at the worst structure whatever their length. After every backward pass, of all instances whatever
    their sizes,

    .. math:: \log \eta \leftarrow \log \eta + \text{rate} \cdot (\kappa - \text{target}),

    so η grows while steps stay inside and shrinks when most of them is cut off. What g asks for outside of the tangent
    cone (of every constant added to g on a simplex, say) counts for nothing, and so do instances that cannot move:
    neither makes η vanish as a layer learns. To adapt by such feedback is the idea of adaptive implicit maximum
    likelihood (Minervini et al., 2023), which holds the number of changed parts.

    η is a buffer ``rule_step_size`` of the layer, for all sizes of a family; it stays between 1e-12 and 1e12.

    Parameters
    ----------
    start : the first η.
    target : the κ that is kept, between 0 and 1.
    rate : how fast; 0.1 lets η double in 14 passes at most when target is 0.5.

    References
    ----------
    Minervini, Franceschi and Niepert (2023), Adaptive perturbation-based gradient estimation for discrete latent
    variable models, AAAI. Moreau (1962), Décomposition orthogonale d'un espace hilbertien selon deux cônes mutuellement
    polaires.
    """

    start: float = 1.0
    target: float = 0.5
    rate: float = 0.1

    def __post_init__(self) -> None:
        positive(start=self.start, target=self.target, rate=self.rate)
        if not self.target < 1:
            raise ValueError(f"target must be between 0 and 1, but got {self.target}")

    @staticmethod
    def seen(displacement: Float64[Tensor, "batch size"], grad: Float64[Tensor, "batch size"]) -> Float64[Tensor, "2"]:
        """The sums of ``|d|^2`` and of ``<g, d>``."""
        moved = displacement.reshape(-1)
        return torch.stack([torch.dot(moved, moved), torch.dot(moved, grad.reshape(-1))])

    def adapt(self, step_size: Tensor, seen: Float64[Tensor, "2"]) -> None:
        """Change the buffer ``step_size``, with which the displacements were made, by their sums."""
        size = step_size.item()
        travelled, along = seen.tolist()
        asked = size * along
        if not (travelled > 0.0 and asked > 0.0):
            return  # nothing could move
        bounds = torch.finfo(step_size.dtype)
        wanted = size * math.exp(self.rate * (travelled / asked - self.target))
        step_size.fill_(min(max(wanted, SHORTEST, bounds.tiny), LONGEST, bounds.max))


@final
@dataclass(frozen=True)
class Spigot(AbstractVertexRule):
    r"""The best vertex :math:`\hat z`; backward :math:`\hat z - \Pi_P(\hat z - \eta g)`.

    A step against the gradient from the decision that was made, projected back onto the polytope: the displacement
    is the gradient. Where the step stays inside, it is :math:`\eta g`, the straight-through gradient; where it
    leaves the polytope, it asks only for what some structure (in the convex hull) can give. Over an oracle the
    projection starts from the decision where no part moves by 1/2 or more. Scored auxiliary variables are no part of
    distances and get no gradient.

    With several ``steps`` the decision is improved by projected gradient descent,
    :math:`z_{k+1} = \Pi_P(z_k - \eta \nabla L(z_k))` from :math:`z_0 = \hat z`, and the gradient is
    :math:`\hat z - z_K`. The first gradient is the one that arrives; for the others the layer is called with the loss,
    ``layer(scores, objective=f)``. An instance whose loss has a gradient that is not finite on the way gets NaN.

    Parameters
    ----------
    step_size : η, positive. The paper takes 1, of gradients that are not divided by the size of a batch: under
        ``loss.mean()`` over 32 instances the same η is a short step, which nothing but the vertex's own corner cuts
        off. ``OptLayer(..., gradient_unit="norm")`` makes a step independent of that. An :class:`AdaptiveStep` adapts,
        by the first of several steps.
    clip_norm : clip the Euclidean norm of each instance's gradient to this before a step, as the paper does; None does
        not.
    relaxation : another polytope of the same shape that contains this one, onto which steps are projected in its place;
        the paper projects the heads of each word onto a simplex (``polytopes.head_choice``). It gets the parameters
        and forbidden parts of the polytope. For a layer over a Family, a Family of the same sizes.
    steps : K, how many.

    References
    ----------
    Peng, Thomson and Smith (2018), Backpropagating through structured argmax using a SPIGOT, ACL.
    Mihaylova, Niculae and Martins (2020), Understanding the mechanics of SPIGOT: surrogate gradients for latent
    structure learning, EMNLP (several steps).
    """

    step_size: float | AdaptiveStep = 1.0
    clip_norm: float | None = None
    relaxation: Polytope | Family | None = None
    steps: int = 1

    differentiates_parameters = False

    def __post_init__(self) -> None:
        if isinstance(self.step_size, str | type):  # the class AdaptiveStep is no value of it
            raise TypeError(f"step_size must be a number or a value AdaptiveStep(), but got {self.step_size!r}")
        if not isinstance(self.step_size, AdaptiveStep):
            positive(step_size=self.step_size)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive or None, but got {self.clip_norm}")
        if self.relaxation is not None and not isinstance(self.relaxation, (Polytope, Family)):
            raise TypeError(f"relaxation must be a Polytope or a Family, but got {type(self.relaxation).__name__}")
        at_least_one(steps=self.steps)

    @property
    def needs_objective(self) -> bool:  # type: ignore[override]
        """Whether there are later steps, which need the loss."""
        return self.steps > 1

    @property
    def takes_any_gradient(self) -> bool:  # type: ignore[override]
        """With one step of a fixed size."""
        return self.steps == 1 and not isinstance(self.step_size, AdaptiveStep)

    def initial_state(self) -> dict[str, Tensor]:
        """The step size, where it adapts."""
        if not isinstance(self.step_size, AdaptiveStep):
            return {}
        return {"step_size": torch.tensor(self.step_size.start, dtype=torch.float64, device="cpu")}

    def of_size(self, *size: int) -> Spigot:
        """With the relaxation of this size."""
        return replace(self, relaxation=self.relaxation(*size)) if isinstance(self.relaxation, Family) else self

    def check(self, compiled: CompiledPolytope) -> None:
        """Refuse a polytope without vertices, and a relaxation of another shape or with other parameters."""
        super().check(compiled)
        if isinstance(self.relaxation, Family):
            raise TypeError(
                f"the relaxation is a {self.relaxation!r}, but the layer has one polytope, of shape {compiled.shape}: "
                "give a Polytope, or a Family for the layer too"
            )
        if self.relaxation is not None:
            compiled.relaxation(self.relaxation)

    def backward(
        self, polytope: AbstractBoundPolytope, saved: Any, grad: Float64[Tensor, "batch size"], context: Context
    ) -> Gradient:
        """The displacement of the projected steps."""
        _, vertex = saved
        structure, size, slope = polytope.structure(vertex), self._size(context.state), self._clipped(grad)
        project = self._projection(polytope, vertex)
        solution = project(torch.sub(structure, slope, alpha=size))
        displacement = structure - polytope.structure(solution.value)
        seen = None
        if isinstance(self.step_size, AdaptiveStep):
            rows = slice(None) if solution.all_ok else solution.ok
            seen = self.step_size.seen(displacement[rows], slope[rows])
        if self.steps == 1:
            return Gradient(displacement, seen=seen)
        gradient = self._objective(context).gradient
        finite = torch.ones_like(solution.status, dtype=torch.bool)
        for _ in range(self.steps - 1):
            point = polytope.structure(solution.value)
            slope = gradient(point)
            if not all_finite(slope):  # it ends its own instance, and no solver sees it
                finite &= torch.isfinite(slope).all(dim=1)
                slope = slope.masked_fill(~finite[:, None], 0.0)
            solution = project(point - size * self._clipped(slope))
        displacement = structure - polytope.structure(solution.value)
        return Gradient(displacement.masked_fill(~finite[:, None], torch.nan), seen=seen)

    def kept(
        self, sent: Float64[Tensor, "batch size"], grad: Float64[Tensor, "batch size"], state: Mapping[str, Tensor]
    ) -> Float64[Tensor, " batch"] | None:
        """Of a single step the κ of every instance, see :class:`AdaptiveStep`."""
        if self.steps > 1:
            return None
        return kept_of_step(sent, self._size(state) * self._clipped(grad))

    def adapt(self, state: Mapping[str, Tensor], seen: Float64[Tensor, " sums"]) -> None:
        """A step size that adapts does."""
        if isinstance(self.step_size, AdaptiveStep):
            self.step_size.adapt(state["step_size"], seen)

    def _projection(self, polytope: AbstractBoundPolytope, vertex: Tensor) -> Callable[[Tensor], Solution]:
        if isinstance(self.relaxation, Polytope):
            return polytope.relaxed(self.relaxation).project  # of which the decision need be no vertex
        return partial(polytope.project, starts=vertex)

    def _objective(self, context: Context) -> FlatObjective:
        if context.objective is None:
            raise TypeError(f"{self!r} works with losses: call layer(scores, objective=f)")
        return context.objective

    def _size(self, state: Mapping[str, Tensor]) -> float:
        return float(state["step_size"] if isinstance(self.step_size, AdaptiveStep) else self.step_size)

    def _clipped(self, grad: Float64[Tensor, "batch size"]) -> Float64[Tensor, "batch size"]:
        if self.clip_norm is None:
            return grad
        norm: Tensor = grad.norm(dim=1, keepdim=True).clamp_min(self.clip_norm)
        return grad * (self.clip_norm / norm)

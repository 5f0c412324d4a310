"""What losses share: the door, the gradient in closed form, the reduction."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from optlayers import inputs
from optlayers.compiled import CompiledPolytope
from optlayers.layer import OptLayer
from optlayers.polytope import Family, Polytope
from optlayers.rules.base import AbstractRule
from optlayers.rules.pipeline import Pipeline
from optlayers.rules.sparsemap import SparseMAP
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector

__all__ = [
    "AbstractLoss",
    "Question",
    "Reduction",
    "closed_form",
    "dot",
    "finite",
    "question_of",
    "true_values",
]

Reduction = Literal["mean", "sum", "none"]


@final
@dataclass(frozen=True)
class Question:
    """The polytopes of a batch: what every layer of a loss is asked with.

    ``inside`` is False in the padding of a family, and None where there is none.
    """

    batch: torch.Size
    inside: Bool[Tensor, "*batch_and_shape"] | None = None
    sizes: Tensor | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def ask(self, layer: OptLayer, scores: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Structures for scores."""
        sizes = {} if self.sizes is None else {"sizes": self.sizes}
        return layer(scores, generator=generator, **sizes, **self.parameters)

    def double(self, scores: Tensor, name: str = "scores") -> Float64[Tensor, "*batch_and_shape"]:
        """Scores as losses compute with them: float64, 0 in the padding, finite or -inf."""
        inputs.check_scores(scores, name)
        double = scores.to(torch.float64)
        if self.inside is not None:
            double = double.masked_fill(~self.inside, 0.0)
        inputs.check_finite(double.detach(), len(self.batch), name=name)
        return double


class AbstractLoss(nn.Module, ABC):
    """A loss over structures of a polytope, one per instance, whose gradient is a difference of structures.

    Parameters
    ----------
    polytope : a :class:`Polytope`, an already compiled one, or a :class:`Family` for batches of mixed length.
    rule : what gives the structures of predictions.
    reduction : ``"mean"`` or ``"sum"`` over instances (the mean of an empty batch is NaN, as in torch), or ``"none"``
        for one loss per instance.
    validate : whether targets that are no points of the polytope are refused. This costs a best vertex per instance,
        and a projection for those batches that hold targets of other numbers than 0 and 1.
    maximizer, projector : solvers, chosen by :func:`compile_polytope` when None.
    """

    def __init__(
        self,
        polytope: Polytope | CompiledPolytope | Family,
        rule: AbstractRule,
        *,
        reduction: Reduction = "mean",
        validate: bool = True,
        maximizer: AbstractMaximizer | None = None,
        projector: AbstractProjector | None = None,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction is "mean", "sum" or "none", but got {reduction!r}')
        self.reduction: Reduction = reduction
        self.validate = validate
        self.layer = OptLayer(polytope, rule, maximizer=maximizer, projector=projector)
        polyhedral = projector is None or projector.polyhedral_only
        if self.layer.family is None:
            compiled = self.layer.compiled()
            polyhedral = compiled.has_vertices
            refuse_scored(compiled)
        self._nearest = self.layer.with_rule(SparseMAP())
        self._best = self.layer.with_rule(Pipeline()) if polyhedral else None

    def question(self, scores: Tensor, sizes: Any, parameters: Mapping[str, Any], name: str = "scores") -> Question:
        """The polytopes of a batch of scores; what does not fit is refused."""
        return question_of(self.layer, scores, sizes, parameters, name)

    def reduced(self, losses: Float64[Tensor, "*batch"], like: Tensor) -> Float[Tensor, "*batch"]:
        """One number, or one per instance, in the dtype of the scores."""
        if self.reduction == "mean":
            losses = losses.mean()
        elif self.reduction == "sum":
            losses = losses.sum()
        return losses.to(like.dtype)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}, validate={self.validate}"


def question_of(
    layer: OptLayer, scores: Tensor, sizes: Any, parameters: Mapping[str, Any], name: str = "scores"
) -> Question:
    """The polytopes of a batch of scores, for a layer over one polytope or a family."""
    inputs.check_scores(scores, name)
    _refuse_gradients(parameters)
    family = layer.family
    if family is None:
        if sizes is not None:
            raise TypeError("sizes= is for losses over a Family; this one has one polytope")
        return Question(inputs.batch_shape(scores, layer.compiled().shape), parameters=parameters)
    table, batch = inputs.size_table(sizes, scores, family.takes)
    inside = _inside(layer, scores, table, batch)
    return Question(batch, inside, table.reshape(*batch, table.shape[1]), parameters)


def _inside(layer: OptLayer, scores: Tensor, table: Tensor, batch: torch.Size) -> Bool[Tensor, "*batch_and_shape"]:
    room = scores.shape[len(batch) :]
    inside = torch.zeros(len(table), *room, dtype=torch.bool)
    for size in torch.unique(table, dim=0):
        if not bool(size.all()):
            continue
        compiled = layer.compiled(*size.tolist())
        refuse_scored(compiled)
        rows = torch.nonzero((table == size).all(dim=1)).flatten()
        corner = torch.zeros(room, dtype=torch.bool)
        corner[inputs.corner(compiled.shape, room, tuple(size.tolist()))] = True
        inside[rows] = corner
    return inside.reshape(scores.shape).to(scores.device)


def refuse_scored(compiled: CompiledPolytope) -> None:
    """Losses know of no scores besides those of the structure."""
    if compiled.polytope.scored:
        names = [variable.name() for variable in compiled.polytope.scored]
        raise TypeError(
            f"losses take polytopes whose scores all belong to the structure, but {names} are scored besides; declare "
            "them as the structure itself (polytopes.sequence has the edges of linear_chain as its parts)"
        )


def _refuse_gradients(parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"losses have no gradient for parameters, but {name} requires one; pass {name}.detach(), or learn it "
                "through OptLayer with SparseMAP()"
            )


def true_values(question: Question, true_scores: Tensor, predicted: Tensor) -> Float64[Tensor, "*batch_and_shape"]:
    """The true scores of predicted ones, as losses compute with them."""
    inputs.check_scores(true_scores, "true_scores")
    if true_scores.shape != predicted.shape:
        raise ValueError(
            f"true_scores have shape {tuple(true_scores.shape)}, but the predicted ones {tuple(predicted.shape)}"
        )
    if true_scores.requires_grad and torch.is_grad_enabled():
        raise ValueError("there is no gradient for true scores, but true_scores require one; detach() them")
    return question.double(true_scores.detach().to(predicted.device), "true_scores")


def finite(scores: Tensor) -> Tensor:
    """Scores with 0 for forbidden parts, in which structures have 0."""
    return scores.masked_fill(scores == -torch.inf, 0.0)


def dot(first: Tensor, second: Tensor, batch: torch.Size) -> Float64[Tensor, "*batch"]:
    """The product of every instance."""
    return (first * second).flatten(len(batch)).sum(-1) if first.ndim > len(batch) else first * second


def closed_form(
    losses: Float64[Tensor, "*batch"],
    scores: Float64[Tensor, "*batch_and_shape"],
    difference: Float64[Tensor, "*batch_and_shape"],
    *,
    twice: bool = True,
) -> Float64[Tensor, "*batch"]:
    """Losses whose gradient with respect to the scores is ``difference``.

    Second derivatives are those of ``difference``, by its own graph; ``twice=False`` refuses to take them.
    """
    function = _ClosedForm if twice else _ClosedFormOnce
    return function.apply(scores, losses.detach(), _Slope(difference))


@dataclass(frozen=True)
class _Slope:
    """Hides a tensor from autograd: as an input it would be asked for a gradient of 0, at the price of its backward."""

    difference: Tensor

    def times(self, grad: Tensor) -> Tensor:
        return grad.reshape(*grad.shape, *[1] * (self.difference.ndim - grad.ndim)) * self.difference


class _ClosedForm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, losses: Tensor, slope: _Slope) -> Tensor:
        ctx.slope = slope
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.slope.times(grad), None, None


class _ClosedFormOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, losses: Tensor, slope: _Slope) -> Tensor:
        ctx.slope = slope
        return losses.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.slope.times(grad), None, None

"""What every layer of a loss is asked with, checked at the door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers import inputs
from optlayers.compiled import CompiledPolytope
from optlayers.layer import OptLayer

__all__ = ["Question", "dot", "finite", "question_of", "refuse_scored", "true_values"]


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


def question_of(
    layer: OptLayer, scores: Tensor, sizes: Any, parameters: Mapping[str, Any], name: str = "scores"
) -> Question:
    """The polytopes of a batch of scores, for a layer over one polytope or a family."""
    inputs.check_scores(scores, name)
    for argument in ("generator", "objective"):
        if argument in parameters:
            raise TypeError(f"{argument}= is for layers (generator= also for losses that draw); this takes neither")
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

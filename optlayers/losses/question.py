"""What every layer of a loss is asked with, checked at the door."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers import inputs
from optlayers.layer import OptLayer
from optlayers.modes import transforms_active
from optlayers.standard_form import ScoredSpec, StandardForm

__all__ = [
    "Lifted",
    "Question",
    "beside",
    "dot",
    "finite",
    "per_instance",
    "question_of",
    "refuse_gradients_of_known",
    "true_values",
]

TAKEN = frozenset({"target", "cost", "decisions", "predicted", "true_scores", "normalized"})
"""Names that losses and metrics have for their own arguments, besides those of the layer."""


@final
@dataclass(frozen=True)
class Lifted:
    """A structure, and the values of the auxiliary variables that have scores, by name."""

    structure: Float64[Tensor, "*batch_and_shape"]
    auxiliary: Mapping[str, Float64[Tensor, "*batch_and_shape"]] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Question:
    """The polytopes of a batch: what every layer of a loss is asked with.

    ``inside`` is False in the padding of a family, and None where there is none. ``auxiliary`` are the scores of
    auxiliary variables, an instance each, as losses compute with them.
    """

    batch: torch.Size
    inside: Bool[Tensor, "*batch_and_shape"] | None = None
    sizes: Tensor | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    auxiliary: Mapping[str, Float64[Tensor, "*batch_and_shape"]] = field(default_factory=dict)

    def ask(self, layer: OptLayer, scores: Tensor, generator: torch.Generator | None = None) -> Lifted:
        """Structures for scores; the values of auxiliary variables have no graph."""
        sizes = {} if self.sizes is None else {"sizes": self.sizes}
        if not self.auxiliary:
            return Lifted(layer(scores, generator=generator, **sizes, **self.parameters))
        structure, found = layer.lifted(scores, generator=generator, **sizes, **self.parameters, **self.auxiliary)
        apart = structure.shape[: structure.ndim - scores.ndim]
        for name, values in self.auxiliary.items():
            if name not in found:  # all instances are of size 0
                found[name] = values.new_zeros((*apart, *values.shape))
        return Lifted(structure, found)

    def without_auxiliary_scores(self) -> Question:
        """This question, where auxiliary variables score 0."""
        return replace(self, auxiliary={n: torch.zeros_like(values) for n, values in self.auxiliary.items()})

    def product(self, scores: Tensor, point: Lifted) -> Float64[Tensor, "*batch"]:
        """What points score, with their auxiliary variables."""
        total = dot(finite(scores.detach()), point.structure.detach(), self.batch)
        for name, values in point.auxiliary.items():
            total = total + dot(finite(self.auxiliary[name].detach()), values.detach(), self.batch)
        return total

    def double(self, scores: Tensor, name: str = "scores") -> Float64[Tensor, "*batch_and_shape"]:
        """Scores as losses compute with them: float64, 0 in the padding, finite or -inf."""
        inputs.check_scores(scores, name)
        return _double(scores, self.inside, self.batch, name)


def question_of(
    layer: OptLayer, scores: Tensor, sizes: Any, parameters: Mapping[str, Any], name: str = "scores"
) -> Question:
    """The polytopes of a batch of scores, for a layer over one polytope or a family."""
    inputs.check_scores(scores, name)
    if transforms_active():
        raise NotImplementedError(
            "losses cannot be transformed by torch.func (vmap, grad, ...); use backward() or torch.autograd.grad, and "
            "give the loss the whole batch"
        )
    for argument in ("generator", "objective"):
        if argument in parameters:
            raise TypeError(f"{argument}= is for layers (generator= also for losses that draw); this takes neither")
    if layer.family is not None:
        return _question_of_sizes(layer, scores, sizes, parameters)
    if sizes is not None:
        raise TypeError("sizes= is for losses over a Family; this one has one polytope")
    compiled = layer.compiled()
    _refuse_taken(compiled.projection_form)
    batch = inputs.batch_shape(scores, compiled.shape)
    specs = compiled.projection_form.auxiliaries
    further, parameters = inputs.split_named(specs, parameters)
    _refuse_gradients(parameters)
    found, once = inputs.auxiliary_tensors(specs, further, batch)
    for name, values in found.items():
        inputs.check_auxiliary(name, values, len(batch), name in once)
    auxiliary = {name: values.to(scores.device, torch.float64) for name, values in found.items()}
    return Question(batch, None, None, parameters, auxiliary)


def _question_of_sizes(layer: OptLayer, scores: Tensor, sizes: Any, parameters: Mapping[str, Any]) -> Question:
    table, batch = layer.sizes_of(sizes, scores)
    room = scores.shape[len(batch) :]
    inside = torch.zeros(len(table), *room, dtype=torch.bool, device="cpu")
    specs: dict[str, ScoredSpec] = {}
    further: dict[str, Bool[Tensor, "instances *shape"]] = {}
    for row in torch.unique(table, dim=0):
        if not bool(row.all()):
            continue
        size = tuple(row.tolist())
        compiled = layer.compiled(*size)
        _refuse_taken(compiled.projection_form)
        rows = torch.nonzero((table == row).all(dim=1)).flatten()
        place: tuple[Any, ...] = (rows, *inputs.corner(compiled.shape, room, size))
        inside[place] = True
        for spec in compiled.projection_form.auxiliaries:
            name = spec.name
            whole = specs.setdefault(name, _in_room(spec, parameters))
            mine = further.setdefault(name, torch.zeros(len(table), *whole.shape, dtype=torch.bool, device="cpu"))
            place = (rows, *inputs.corner(spec.shape, whole.shape, size, name))
            mine[place] = True
    known = bool(inside.any())
    inside = inside.reshape(scores.shape).to(scores.device)
    sizes = table.reshape(*batch, table.shape[1])
    if not known:
        return Question(batch, inside, sizes, {}, _without_influence(parameters, scores, batch))
    given, parameters = inputs.split_named(list(specs.values()), parameters)
    _refuse_gradients(parameters)
    found, _ = inputs.auxiliary_tensors(list(specs.values()), given, batch)
    auxiliary = {
        n: _double(values.to(scores.device), further[n].reshape(values.shape).to(scores.device), batch, n)
        for n, values in found.items()
    }
    return Question(batch, inside, sizes, parameters, auxiliary)


def _without_influence(parameters: Mapping[str, Any], scores: Tensor, batch: torch.Size) -> dict[str, Tensor]:
    """For instances that are all of size 0: no polytope says what is scored, so what wants a gradient gets 0."""
    wanting = {n: v for n, v in parameters.items() if isinstance(v, Tensor) and v.requires_grad}
    return {
        n: (v.to(scores.device, torch.float64).flatten() * 0.0).nan_to_num().expand((*batch, v.numel()))
        for n, v in wanting.items()
    }


def _in_room(spec: ScoredSpec, given: Mapping[str, Any]) -> ScoredSpec:
    """The spec in the room that the scores of all instances have; what is no tensor is refused later on."""
    scores = given.get(spec.name)
    if not isinstance(scores, Tensor) or scores.ndim < len(spec.shape):
        return spec
    return replace(spec, shape=tuple(scores.shape[scores.ndim - len(spec.shape) :]))


def _double(
    scores: Tensor, inside: Bool[Tensor, "*batch_and_shape"] | None, batch: torch.Size, name: str
) -> Float64[Tensor, "*batch_and_shape"]:
    double = scores.to(torch.float64)
    if inside is not None:
        double = double.masked_fill(~inside, 0.0)
    inputs.check_finite(double.detach(), len(batch), name=name)
    return double


def _refuse_taken(form: StandardForm) -> None:
    names = {spec.name for spec in form.parameters} | {spec.name for spec in form.auxiliaries}
    taken = sorted(names & TAKEN)
    if taken:
        raise TypeError(
            f"the polytope declares {', '.join(taken)}, which is an argument of losses or metrics: give it another name"
        )


def _refuse_gradients(parameters: Mapping[str, Any]) -> None:
    for name, value in parameters.items():
        if isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"losses have no gradient for parameters, but {name} requires one; pass {name}.detach(), or learn it "
                "through OptLayer with SparseMAP()"
            )


def refuse_gradients_of_known(question: Question) -> None:
    """Losses of decisions take the scores of auxiliary variables as known, the same ones for predictions and truth."""
    for name, values in question.auxiliary.items():
        if values.requires_grad and torch.is_grad_enabled():
            raise ValueError(
                f"the scores of {name} are taken as known, the same for predicted and true scores, but they require a "
                f"gradient; pass {name}.detach(), or declare what is predicted as the structure itself"
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
    return scores if inputs.all_finite(scores) else scores.masked_fill(scores == -torch.inf, 0.0)


def per_instance(values: Tensor, batch: torch.Size) -> Tensor:
    """All entries of an instance in a row, ``(*batch, entries)``, also where there is a single one without a shape."""
    return values.reshape((*batch, math.prod(values.shape[len(batch) :])))


def beside(values: Float64[Tensor, "*batch"], like: Tensor) -> Tensor:
    """A number for every instance, to be multiplied with all its entries."""
    return values.reshape((*values.shape, *[1] * (like.ndim - values.ndim)))


def dot(first: Tensor, second: Tensor, batch: torch.Size) -> Float64[Tensor, "*batch"]:
    """The product of every instance."""
    return per_instance(first * second, batch).sum(-1)

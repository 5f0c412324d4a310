"""What is predicted, what it is worth, and by how much that is more than what is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.inputs import all_finite
from optlayers.layer import OptLayer
from optlayers.losses.question import Lifted, Question, beside, per_instance
from optlayers.solution import Solution

__all__ = ["Prediction", "between", "constant_auxiliary", "decide", "scored", "split_value", "with_value"]


@final
@dataclass(frozen=True)
class Prediction:
    r"""The structures of some scores, with their graph, and :math:`\Omega^*(s)`, which they are the gradient of.

    ``auxiliary`` are the values of auxiliary variables, the gradient of :math:`\Omega^*` by their scores.
    """

    structure: Float64[Tensor, "*batch_and_shape"]
    value: Float64[Tensor, "*batch"]
    auxiliary: Mapping[str, Float64[Tensor, "*batch_and_shape"]] = field(default_factory=dict)


def between(
    question: Question, scores: Float64[Tensor, "*batch_and_shape"], found: Prediction, known: Prediction
) -> Float64[Tensor, "*batch"]:
    """What was found is worth more than what is known: by how much, with the gradient of all scores."""
    given = [scores, *question.auxiliary.values()]
    differences = [found.structure - known.structure]
    differences += [found.auxiliary[name] - known.auxiliary[name] for name in question.auxiliary]
    # Exactly 0 for forbidden parts, of which CvxpyLayers leaves a rest.
    slopes = [
        d if all_finite(s) else d.masked_fill(s.detach() == -torch.inf, 0.0)
        for d, s in zip(differences, given, strict=True)
    ]
    return _ClosedForm.apply((found.value - known.value).detach(), _Slopes(slopes), *given)


@dataclass(frozen=True)
class _Slopes:
    """Hides tensors from autograd: as inputs they would be asked for a gradient of 0, at the price of a backward."""

    of_scores: Sequence[Tensor]


class _ClosedForm(torch.autograd.Function):
    """Losses with slopes as their gradient by some scores; second derivatives are those of the slopes."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, slopes: _Slopes, *scores: Tensor) -> Tensor:
        ctx.slopes = slopes.of_scores
        return losses.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:]
        return None, None, *(beside(grad, s) * s if w else None for s, w in zip(ctx.slopes, wanted, strict=True))


def decide(layer: OptLayer, question: Question, scores: Float64[Tensor, "*batch_and_shape"]) -> Prediction:
    """The best vertices and their scores."""
    return scored(question, scores, question.ask(layer, scores))


def scored(question: Question, scores: Float64[Tensor, "*batch_and_shape"], point: Lifted) -> Prediction:
    """Points and their scores."""
    return Prediction(point.structure, question.product(scores, point), point.auxiliary)


def constant_auxiliary(point: Lifted, question: Question, scores: Tensor) -> Mapping[str, Tensor]:
    """Values of auxiliary variables that depend on scores, by a derivative that is not known, and so refused."""
    given = [scores, *question.auxiliary.values()]
    return {name: _Underived.apply(name, values, *given) for name, values in point.auxiliary.items()}


class _Underived(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, values: Tensor, *given: Tensor) -> Tensor:
        ctx.name = name
        return values.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, ...]:
        raise NotImplementedError(
            f"this loss has no second derivatives by way of the gradient of {ctx.name}, the scores of an auxiliary "
            "variable; leave that gradient out of what is differentiated, or detach it"
        )


def with_value(solution: Solution, value: Float64[Tensor, " batch"]) -> Solution:
    """A flat solution with a number per instance, as a second structure that holds it in its first part."""
    both = solution.value.new_zeros(2, *solution.value.shape)
    both[0], both[1, :, 0] = solution.value, value
    return replace(solution, value=both)


def split_value(question: Question, scores: Tensor, both: Lifted) -> Prediction:
    """What :func:`with_value` put together; the value is read from the first part, which no size has as padding."""
    structure, value = both.structure
    value = per_instance(value, question.batch)[..., 0]
    point = Lifted(structure, {name: values[0] for name, values in both.auxiliary.items()})
    return Prediction(structure, value.detach(), constant_auxiliary(point, question, scores))

"""A call of a loss as PyTorch differentiates it: its gradients are known as soon as it is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.autograd.calls import AbstractCall, FirstDerivative
from optlayers.autograd.higher_order import Tensors
from optlayers.batch.entries import Entries
from optlayers.batch.shares import Share, Shares
from optlayers.bound.graphs import Underived
from optlayers.common.modes import is_differentiated
from optlayers.common.tensors import moved
from optlayers.layer import OptLayer
from optlayers.losses.prediction import Contrast, Prediction
from optlayers.losses.question import Question

__all__ = ["Check", "LossCall", "LossPart", "parts_of"]

TAKEN = frozenset({"target", "cost", "decisions", "predicted", "true_scores", "normalized"})
"""Names that losses and metrics have for their own arguments, besides those of the layer."""
Check = Callable[[Any, Tensor, torch.Size, str], Tensor]
"""Takes what was given, the scores, the shape of the batch and a name, and gives a tensor like the scores."""


@final
@dataclass(slots=True)
class LossPart:
    """The instances of one polytope in a call of a loss, and what forward leaves of them to backward.

    ``given`` are other tensors of the call, like the structure, ``precision`` that of their dtypes, and ``waiting`` the
    parameters that are differentiated by.
    """

    share: Share
    given: Mapping[str, Tensor]
    precision: Mapping[str, float]
    waiting: tuple[str, ...] = ()
    question: Question | None = None
    again: Question | None = None
    """The question of a pass with a graph."""
    slopes: Float64[Tensor, "batch size"] | None = None
    of_parameters: Mapping[str, Tensor] | None = None


@final
@dataclass(slots=True)
class LossCall(AbstractCall):
    """The losses of a batch, one for each instance, in float64.

    ``check`` refuses what is given, ``contrast`` says what is found and what is known; ``generator`` is what random
    numbers are drawn from, None where there are none.
    """

    parts: Sequence[LossPart]
    shares: Shares
    loss: str
    check: Callable[[Question], None]
    contrast: Callable[[Question], Contrast]
    name_of_scores: str = "scores"
    generator: torch.Generator | None = None
    retained: bool = True
    inside: AbstractCall | None = None
    like: list[tuple[torch.Size, torch.dtype, torch.device]] | None = None

    @property
    def name(self) -> str:
        """How messages name the call: by its loss."""
        return self.loss

    @property
    def home(self) -> torch.device:
        """Where instances are solved."""
        return self.parts[0].share.home if self.parts else torch.device("cpu")

    @property
    def solved(self) -> bool:
        """Whether forward has been there."""
        return self.like is not None

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """The losses ``(*batch,)``; 0 for instances of size 0."""
        self.like = [(t.shape, t.dtype, t.device) for t in tensors]
        found = self.shares.in_turn(self.parts, partial(self._solve, tensors))
        return self.shares.numbers(found, device=tensors[0].device, fresh=True)

    def _solve(self, tensors: Sequence[Tensor], part: LossPart) -> tuple[Share, Float64[Tensor, " batch"]]:
        share = part.share
        packed = share.pack(share.tensors(tensors, self.shares.batch), self.name_of_scores)
        state = None if self.generator is None else self.generator.get_state()
        part.question = question = Question(
            share, packed, packed.scores, part.given, part.precision, None, self.generator, state
        )
        self.check(question)
        contrast = self.contrast(question)
        part.slopes = _slopes(question, contrast)
        part.of_parameters = _of_parameters(part, contrast)
        return share, contrast.found.value - contrast.known.value

    def pull_back(self, wanted: Sequence[bool], grad: Tensor) -> Tensors:
        """The slopes times the gradients of the losses."""
        return self._assembled(
            wanted, grad, [(part.share.entries.split(part.slopes), part.of_parameters) for part in self.parts]
        )

    def gradients(
        self, leaves: Sequence[Tensor | None], *, create_graph: bool
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """The slopes times what comes in."""
        scores = leaves[0]
        assert scores is not None
        incoming = torch.zeros(self.shares.batch, dtype=torch.float64, device=scores.device, requires_grad=True)
        wanted = tuple(leaf is not None and leaf.requires_grad for leaf in leaves)
        if create_graph:
            return [incoming], FirstDerivative(self, wanted).graph(incoming, *leaves)
        return [incoming], self.pull_back(wanted, incoming)

    def gradients_with_graph(self, wanted: Sequence[bool], grad: Tensor, tensors: Sequence[Tensor]) -> Tensors:
        """Predictions are asked for once more, as functions of the scores."""
        return self._assembled(wanted, grad, [self._again(part, tensors) for part in self.parts])

    def _again(
        self, part: LossPart, tensors: Sequence[Tensor]
    ) -> tuple[list[Tensor | None], Mapping[str, Tensor] | None]:
        share, question = part.share, part.question
        if question is None:
            raise RuntimeError("the backward pass of a loss came before its forward pass")
        mine = share.tensors(tensors, self.shares.batch)
        scores, theta = share.entries.packed_with_graph(mine, share.batch, share.home, question.forbidden)
        theta = theta if theta is not None and theta.requires_grad else None
        part.again = again = replace(question, scores=scores, theta=theta, asked=[])
        contrast = self.contrast(again)
        slopes = _slopes(again, contrast)
        if scores.requires_grad and not contrast.found.piecewise_constant:
            self._refuse_constant(contrast.found, slopes)
        parts = share.entries.split(slopes)
        if not contrast.found.differentiates_auxiliary:
            parts[1:] = [
                Underived.apply(NO_AUXILIARY.format(spec.name), part, scores)  # type: ignore[no-untyped-call]
                if part is not None and part.requires_grad
                else part
                for spec, part in zip(share.entries.auxiliaries, parts[1:], strict=True)
            ]
        return parts, _of_parameters(part, contrast)

    def _refuse_constant(self, found: Prediction, slopes: Float64[Tensor, "batch size"]) -> None:
        """Refuse predictions that ought to depend on the scores, and have no graph that says so."""
        if not found.solution.value.requires_grad and bool(slopes.any()):
            raise NotImplementedError(
                f"{self.loss} has no second derivative: its predict leaves autograd, by detach(), item() or NumPy; "
                "write it in torch operations and questions to the polytope, or say Prediction(..., "
                "piecewise_constant=True) where points stay the same nearby, as best vertices do"
            )

    def _assembled(
        self,
        wanted: Sequence[bool],
        grad: Tensor,
        slopes: Sequence[tuple[Sequence[Tensor | None], Mapping[str, Tensor] | None]],
    ) -> Tensors:
        """Gradients of all tensors that are wanted, from those of the losses and the slopes of every part."""
        if self.like is None:
            raise RuntimeError("the backward pass of a loss came before its forward pass")
        (_, dtype, device), found = self.like[0], [torch.zeros(s, dtype=t, device=d) for s, t, d in self.like[1:]]
        out: list[Tensor | None] = [None, *found] if not self.parts else [None] * len(self.like)
        structures = []
        for part, (of_scores, of_parameters) in zip(self.parts, slopes, strict=True):
            share, entries = part.share, part.share.entries
            flat = grad.reshape(-1).to(share.home)
            flat = flat if share.rows is None else flat.index_select(0, share.rows_on(flat))
            parts = [None if slope is None else slope * flat[:, None] for slope in of_scores]
            places = range(*share.named.indices(len(self.like)))
            for place, value in zip(places, parts[1:], strict=False):
                if wanted[place] and value is not None:
                    out[place] = moved(value, *self.like[place])
            for place, spec in zip(places[len(parts) - 1 :], entries.parameters, strict=True):
                if wanted[place] and of_parameters is not None and spec.name in of_parameters:
                    value = of_parameters[spec.name]
                    out[place] = moved(value * flat.reshape(-1, *[1] * (value.ndim - 1)), *self.like[place])
            if parts[0] is not None:
                structures.append((share, parts[0]))
        if wanted[0] and (structures or not self.parts):
            out[0] = self.shares.structures(structures, dtype, device, fresh=True)
        return tuple(out)

    def verify(self) -> None:
        """Raise for instances whose derivative of higher order does not exist."""
        for part in self.parts:
            if part.again is not None:
                part.again.refuse_failed([solution for one in part.again.asked for solution in one.failed])

    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> AbstractCall:
        """Refused at the door."""
        raise NotImplementedError("losses cannot be transformed by torch.func")


NO_AUXILIARY = (
    "this loss has no second derivatives by way of the gradient of {}, the scores of an auxiliary variable; leave that "
    "gradient out of what is differentiated, or detach it"
)


def _slopes(question: Question, contrast: Contrast) -> Float64[Tensor, "batch size"]:
    """The gradients of the losses by all scores, exactly 0 for forbidden parts, of which CvxpyLayers leaves a rest."""
    slopes = contrast.found.solution.value - contrast.known.solution.value
    if contrast.factor != 1.0:
        slopes = contrast.factor * slopes
    return slopes if question.forbidden is None else slopes.masked_fill(question.forbidden, 0.0)


def _of_parameters(part: LossPart, contrast: Contrast) -> Mapping[str, Tensor] | None:
    """The gradients of the losses by parameters that wait for one; None for none."""
    if not part.waiting:
        return None
    if contrast.found.gradients is None:
        raise RuntimeError("this prediction has no gradient for parameters")
    ours = contrast.found.gradients()
    known = {} if contrast.known.gradients is None else contrast.known.gradients()
    return {name: ours[name] - known[name] if name in known else ours[name] for name in part.waiting}


def parts_of(
    layer: OptLayer,
    scores: Tensor,
    sizes: Any,
    parameters: Mapping[str, Any],
    given: Mapping[str, tuple[Any, Check]],
    name: str,
) -> tuple[Shares, Sequence[Tensor], list[LossPart]]:
    """A batch split among its polytopes, its tensors, and what is given for every part, each with its check."""
    for argument in ("generator", "objective"):
        if argument in parameters:
            raise TypeError(f"{argument}= is for layers (generator= also for losses that draw); this takes neither")
    if sizes is not None and layer.family is None:
        raise TypeError("sizes= is for losses over a Family; this one has one polytope")
    if layer.family is None:
        _refuse_taken(layer.compiled().entries)
    shares, tensors = layer.shares(scores, sizes, parameters, name)
    batch = shares.batch
    if layer.family is not None:
        for share in shares.every:
            _refuse_taken(share.entries)
    checked = {what: check(values, scores, batch, what) for what, (values, check) in given.items()}
    if layer.family is not None:
        for what in checked.keys() & {"target", "decisions"}:
            _check_padding(checked[what], shares.every, batch, what)
    return shares, tensors, [_part(share, tensors, batch, checked) for share in shares.every]


def _part(share: Share, tensors: Sequence[Tensor], batch: torch.Size, given: Mapping[str, Tensor]) -> LossPart:
    entries = share.entries
    waiting: tuple[str, ...] = ()
    if entries.parameters:
        mine = tensors[share.named][len(entries.auxiliaries) :]
        waiting = tuple(s.name for s, t in zip(entries.parameters, mine, strict=True) if is_differentiated(t))
    flat, precision = {}, {}
    for what, values in given.items():
        one = share.scores_of(values, batch) if what == "true_scores" else share.of(values, batch)
        dtype = torch.bool if values.dtype == torch.bool else torch.float64
        flat[what] = moved(one, (math.prod(share.batch), entries.structure_size), dtype, share.home)
        precision[what] = torch.finfo(values.dtype).eps if values.is_floating_point() else 0.0
    return LossPart(share, flat, precision, waiting)


def _refuse_taken(entries: Entries) -> None:
    if not entries.alone:
        names = {spec.name for spec in entries.parameters} | {spec.name for spec in entries.auxiliaries}
        taken = sorted(names & TAKEN)
        if taken:
            raise TypeError(
                f"the polytope declares {', '.join(taken)}, which is an argument of losses or metrics: give it another "
                "name"
            )


def _check_padding(values: Tensor, shares: Sequence[Share], batch: torch.Size, name: str) -> None:
    """Refuse structures that are not 0 where their instance has no parts."""
    if values.dtype == torch.bool or not shares:
        return
    rest = values.reshape(-1, *values.shape[len(batch) :]).clone()
    for share in shares:
        share.put(rest, torch.zeros((), dtype=rest.dtype, device=rest.device))
    bad = (rest != 0) | torch.isnan(rest)
    if bool(bad.any()):
        where = tuple(torch.nonzero(bad)[0].tolist())
        index = tuple(int(i) for i in torch.unravel_index(torch.tensor(where[0]), batch)) if batch else ()
        instance = "the instance" if not index else f"instance {index[0] if len(index) == 1 else index}"
        raise ValueError(
            f"{name} must be 0 in the padding, but entry {list(where[1:])} of {instance} is {rest[where].item()}"
        )

"""A call of a layer: forward by its rule, the gradients that the rule says, and what follows from these.

Forward remembers what backward needs on the call. Under ``vmap`` there is one more batch dimension, in front: a call of
its own answers for it, which the first one remembers for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.autograd.calls import AbstractCall, FirstDerivative
from optlayers.autograd.higher_order import Node, Tensors
from optlayers.batch.entries import CPU
from optlayers.batch.shares import Share, Shares
from optlayers.bound.base import by_name
from optlayers.bound.polytope import failed_instances
from optlayers.calls.call_part import OnFailure, Part, finish
from optlayers.common.modes import transforms_active
from optlayers.common.tensors import moved
from optlayers.common.warn import warn_caller
from optlayers.rules.base import AbstractRule, Gradient, SecondGradient
from optlayers.rules.objective import Objective

__all__ = ["LayerCall", "call_behind", "is_nothing"]

NOTHING, NOTHING_BESIDE = 1e-15, 1e-12
"""A gradient of at most this norm is 0 but for rounding, and so is one that is so much smaller than what came in."""


@final
@dataclass(slots=True)
class LayerCall(AbstractCall):
    """One application of a layer to a batch of instances: one part for each polytope.

    ``retained`` says whether what forward leaves may be used after it, ``unanswered`` is told of parameters without a
    gradient where that shows in the backward pass only.
    """

    parts: Sequence[Part]
    shares: Shares
    apart: int | None
    on_failure: OnFailure
    retained: bool
    unanswered: Callable[[Sequence[str]], None]
    like: list[tuple[torch.Size, torch.dtype, torch.device]] | None = None
    """The shape, dtype and device of every tensor that was given."""
    inside: AbstractCall | None = None

    @property
    def solved(self) -> bool:
        """Whether forward has been there."""
        return self.like is not None

    def forward(self, tensors: Sequence[Tensor]) -> Tensor:
        """Structures in the shape, dtype and place of the scores; 0 in padding."""
        self.like = [(t.shape, t.dtype, t.device) for t in tensors]
        scores, parts = tensors[0], self.parts
        if len(parts) != 1 or parts[0].share.rows is not None:
            return self._forward_by_size(tensors)
        part = parts[0]
        value = part.solve(tensors, self.on_failure).value
        if part.failed is not None:
            value = value.masked_fill(part.failed[:, None], torch.nan)
        shape = scores.shape if self.apart is None else (self.apart, *scores.shape)
        # What comes out belongs to the caller, who may write to it; what it was made from waits for the backward pass.
        return part.share.entries.structures(value, shape, scores.dtype, scores.device, own=self.retained)

    def movable(self) -> tuple[Bool[Tensor, "*batch_and_shape"], Bool[Tensor, "*batch_and_shape"]]:
        """After a forward pass, in the shape of the scores: the parts that can move, and those that are forbidden."""
        moving, hidden = [], []
        for part in self.parts:
            share, polytope = part.share, part.polytope
            if polytope is None:
                raise RuntimeError("what can move is known after the forward pass")
            shape = math.prod(share.batch), share.entries.structure_size
            moving.append((share, polytope.movable[:, : shape[1]].expand(shape)))
            if part.forbidden is not None:
                hidden.append((share, part.forbidden[:, : shape[1]]))
        movable, forbidden = (self.shares.structures(found, torch.bool, self.home) for found in (moving, hidden))
        return movable, forbidden

    def failed(self) -> Bool[Tensor, " instances"]:
        """The instances that have had no answer, or no gradient, so far."""
        found = []
        for part in self.parts:
            solves, count = [] if part.polytope is None else part.polytope.failed, math.prod(part.share.batch)
            mine = torch.zeros(count, dtype=torch.bool, device="cpu") if part.failed is None else part.failed
            found.append((part.share, mine | failed_instances(solves, count).to(mine.device) if solves else mine))
        return self.shares.numbers(found, torch.bool, CPU).reshape(-1)

    def kept(self, incoming: Tensor, outgoing: Tensor, state: Mapping[str, Tensor]) -> Tensor | None:
        """Which part of its step every instance was left, ``(instances,)``; see :meth:`Part.kept`."""
        if self.apart is not None:
            return None
        if len(self.parts) == 1 and self.parts[0].share.rows is None:
            return self.parts[0].kept(incoming, outgoing, state)
        found, batch = [], self.shares.batch
        for part in self.parts:
            share = part.share
            mine = part.kept(share.of(incoming, batch), share.of(outgoing, batch), state)
            if mine is not None:
                found.append((share, mine))
        return self.shares.numbers(found, torch.float64, CPU, math.nan).reshape(-1) if found else None

    def _forward_by_size(self, tensors: Sequence[Tensor]) -> Tensor:
        scores, shares = tensors[0], self.shares

        def solved(part: Part) -> tuple[Share, Tensor]:
            value = part.solve(part.share.tensors(tensors, shares.batch), self.on_failure).value
            return part.share, value if part.failed is None else value.masked_fill(part.failed[:, None], torch.nan)

        found = shares.in_turn(self.parts, solved)
        return shares.structures(found, scores.dtype, scores.device, () if self.apart is None else (self.apart,))

    def pull_back(self, wanted: Sequence[bool], grad: Tensor) -> Tensors:
        """What the rule sends back, for every tensor that was given and is ``wanted``."""
        parts, like = self.parts, self.like
        if like is None:
            raise RuntimeError("the backward pass of a layer came before its forward pass")
        if len(parts) != 1 or parts[0].share.rows is not None:
            return self._pull_back_by_size(wanted, grad, like)
        out = parts[0].pull_back(grad, wanted, self.on_failure, self.unanswered)
        if parts[0].seen is not None:
            self._adapt([parts[0].seen])
        if out[0] is not None and out[0].data_ptr() == grad.data_ptr():  # which may be the caller's own
            out[0] = out[0].clone()
        return tuple([None if g is None else moved(g, *to) for g, to in zip(out, like, strict=True)])

    def _pull_back_by_size(
        self, wanted: Sequence[bool], grad: Tensor, like: Sequence[tuple[torch.Size, torch.dtype, torch.device]]
    ) -> Tensors:
        apart = () if self.apart is None else (self.apart,)
        if not self.parts:  # all instances are of size 0
            return tuple(torch.zeros(s, dtype=t, device=d) for s, t, d in like)

        def pulled(part: Part) -> list[Tensor | None]:
            share = part.share
            mine = share.of(grad, self.shares.batch, apart)
            return part.pull_back(mine, [wanted[0], *wanted[share.named]], self.on_failure, self.unanswered)

        found = self.shares.in_turn(self.parts, pulled)
        seen = [part.seen for part in self.parts if part.seen is not None]
        if seen:
            self._adapt(seen)
        return self._together(found, like)

    def _together(
        self, found: Sequence[list[Tensor | None]], like: Sequence[tuple[torch.Size, torch.dtype, torch.device]]
    ) -> Tensors:
        """Gradients of all tensors, from the flat ones of every part."""
        gradients: list[Tensor | None] = [None] * len(like)
        (_, dtype, device), of_scores = like[0], []
        for part, mine in zip(self.parts, found, strict=True):
            share = part.share
            if mine[0] is not None:
                of_scores.append((share, mine[0]))
            named = zip(mine[1:], like[share.named], strict=True)
            gradients[share.named] = [None if g is None else moved(g, *to) for g, to in named]
        gradients[0] = self.shares.structures(of_scores, dtype, device)
        return tuple(gradients)

    def _adapt(self, seen: Sequence[Tensor]) -> None:
        """The rule adapts once, by what was seen of all sizes together."""
        together = torch.stack([one.to(seen[0].device) for one in seen]).sum(dim=0)
        self.rule.adapt(self.parts[0].context.state, together)

    def gradients(
        self, leaves: Sequence[Tensor | None], *, create_graph: bool
    ) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """The rule's gradients, where they are a linear function of what comes in."""
        for part in self.parts:
            if not part.rule.has_jacobian:
                raise NotImplementedError(
                    f"{part.rule!r} has a backward derivative only: use torch.func.vjp or jacrev instead of jvp, "
                    "jacfwd or hessian"
                )
        scores = leaves[0]
        assert scores is not None
        apart = () if self.apart is None else (self.apart,)
        incoming = torch.zeros(*apart, *scores.shape, dtype=scores.dtype, device=scores.device, requires_grad=True)
        wanted = tuple(leaf is not None and leaf.requires_grad for leaf in leaves)
        if not create_graph:  # what the matrix depends on may have no derivative, and needs none
            leaves = [None if leaf is None else leaf.detach() for leaf in leaves]
        return [incoming], FirstDerivative(self, wanted).graph(incoming, *leaves)

    @property
    def name(self) -> str:
        """How messages name the call: by its rule."""
        return repr(self.rule)

    @property
    def home(self) -> torch.device:
        """Where instances are solved."""
        return self.parts[0].share.home if self.parts else CPU

    @property
    def rule(self) -> AbstractRule:
        """The rule of all parts, but for what depends on a size."""
        return self.parts[0].rule

    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> LayerCall:
        """The call for ``size`` times the batch; ``batched`` says which tensors differ between these."""
        for part in self.parts[:1]:
            if part.rule.draws and randomness != "different":
                raise RuntimeError(
                    f"{part.rule!r} draws random numbers, others for every instance: use "
                    f"vmap(..., randomness='different'), not {randomness!r}"
                )
        batch = torch.Size((size, *self.shares.batch))
        parts = [part.under_vmap(size, batch, batched) for part in self.parts]
        shares = Shares([part.share for part in parts], batch, self.shares.padded)
        return LayerCall(parts, shares, self.apart, self.on_failure, self.retained, self.unanswered)

    @property
    def result_place(self) -> int:
        """The place of a dimension of ``vmap`` in the result: behind that of structures that go apart."""
        return 0 if self.apart is None else 1

    def gradients_with_graph(self, wanted: Sequence[bool], grad: Tensor, tensors: Sequence[Tensor]) -> Tensors:
        """The rule goes forward and backward once more."""
        like = self.like
        if like is None:
            raise RuntimeError("the backward pass of a layer came before its forward pass")
        if len(self.parts) == 1 and self.parts[0].share.rows is None:
            out = self.parts[0].graph(tensors, grad, wanted)
            return tuple([None if g is None else moved(g, *to) for g, to in zip(out, like, strict=True)])
        found, batch, apart = [], self.shares.batch, () if self.apart is None else (self.apart,)
        for part in self.parts:
            share = part.share
            needs = [wanted[0], *wanted[share.named]]
            found.append(part.graph(share.tensors(tensors, batch), share.of(grad, batch, apart), needs))
        return self._together(found, like)

    def verify(self) -> None:
        """Raise for instances whose derivative of higher order does not exist; they have 0 otherwise."""
        for part in self.parts:
            if part.again is not None and part.again.failed:
                solves = list(part.again.failed)
                part.again.failed.clear()
                part.failing(solves, part.failed, self.on_failure)

    def second_derivative(self, first: FirstDerivative, wanted: tuple[bool, ...]) -> Node:
        """The derivative of the gradients: by autograd, or by what an older rule says itself."""
        if any(hasattr(part.rule, "second_backward") for part in self.parts):
            return SaidByRule(first, self, wanted)
        return AbstractCall.second_derivative(self, first, wanted)


@final
@dataclass(frozen=True)
class SaidByRule(Node):
    """The second derivative by the ``second_backward`` of a rule: deprecated, autograd differentiates rules."""

    first: FirstDerivative
    call: LayerCall
    wanted: tuple[bool, ...]

    @property
    def name(self) -> str:
        """How messages name the derivative: by the rule."""
        return self.first.name

    def value(self, *given: Tensor | None) -> Tensors:
        """The gradient of <directions, gradients>: of what was pulled back, then of every tensor."""
        call, cut = self.call, len(given) - len(self.wanted)
        part = call.parts[0]
        if len(call.parts) != 1 or part.share.rows is not None or part.unit is not None:
            raise NotImplementedError(
                f"{part.rule!r} has no second derivative over a family or with a gradient_unit; leave second_backward "
                "out"
            )
        directions, grad, tensors = given[:cut], given[cut], given[cut + 1 :]
        polytope, entries, like = part.polytope, part.share.entries, call.like
        assert grad is not None and polytope is not None and like is not None
        warn_caller(
            f"{type(part.rule).__name__}.second_backward is deprecated: leave it out, and autograd differentiates "
            "backward, as long as it is written in torch operations and questions to the polytope",
            DeprecationWarning,
        )
        along = [
            torch.zeros_like(t) if d is None else d for t, d in zip(tensors, directions, strict=True) if t is not None
        ]
        flat, finite = part._incoming(grad)
        scores, theta = entries.packed_with_graph(along, part.share.batch, part.share.home, part.forbidden)
        named = {} if theta is None else by_name(entries.parameters, theta)
        polytope.failed.clear()
        rule: Any = part.rule
        second: SecondGradient = rule.second_backward(polytope, part.saved, flat, Gradient(scores, named), part.context)
        needed = zip(entries.parameters, self.wanted[2 + len(entries.auxiliaries) :], strict=True)
        parameters = [spec.name for spec, needs in needed if needs]
        if second.depends_on_parameters and parameters:
            raise NotImplementedError(
                f"{part.rule!r} has no second derivative with respect to parameters of this polytope "
                f"({', '.join(parameters)}); detach them, or take one derivative only"
            )
        failed = part.failing([*second.solutions, *polytope.failed], part.failed, call.on_failure)
        of_grad = finish(second.grad.movedim(-2, 0), failed, finite).movedim(0, -2)[..., : entries.structure_size]
        out = part.outgoing(second.scores, second.parameters, self.wanted[1:], failed, finite)
        return (
            moved(of_grad, grad.shape, grad.dtype, grad.device),
            *(None if g is None else moved(g, *to) for g, to in zip(out, like, strict=True)),
        )

    def graph(self, *given: Tensor | None) -> Tensors:
        """Refused: what a rule says itself has no derivative."""
        raise NotImplementedError(f"{self.call.rule!r} has no third derivative; leave second_backward out")

    def verify(self) -> None:
        """All solves have been looked at."""

    def places(self, arguments: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The places of the first derivative: of its results, then of its arguments; and the latter."""
        own, results = self.first.places(len(self.wanted))
        return (*results, *own), own

    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> Node:
        """The second derivative of the call of the larger batch."""
        cut = len(batched) - len(self.wanted)
        inside = self.first.under_vmap(size, randomness, batched[cut:])
        assert isinstance(inside, FirstDerivative) and isinstance(inside.call, LayerCall)
        return SaidByRule(inside, inside.call, self.wanted)


def is_nothing(
    sent: Float64[Tensor, " instances"], incoming: Float64[Tensor, " instances"]
) -> Bool[Tensor, " instances"]:
    """Which gradients that a rule sent back are 0 but for rounding, next to those that came in, by their norms."""
    return torch.le(sent, (NOTHING_BESIDE * incoming).clamp(min=NOTHING))


def call_behind(output: Tensor) -> tuple[Any, LayerCall] | None:
    """The node of the graph in which a layer gave its structures, and its call, from what the layer returned: these
    structures or their losses. None where there is no graph, and within transforms.
    """
    waiting = [] if transforms_active() else [output.grad_fn]
    while waiting:
        node = waiting.pop()
        call = getattr(node, "call", None)
        if isinstance(call, LayerCall):
            return node, call
        if isinstance(getattr(node, "objective", None), Objective):
            following: Any = node
            waiting.append(following.next_functions[-1][0])  # structures are the last input, behind losses
    return None

"""The instances of one polytope in a call of a layer: what its rule gives, and what failed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, final

import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.batch.entries import Packed
from optlayers.batch.masks import answered
from optlayers.batch.shares import Share
from optlayers.bound.polytope import BoundPolytope, failed_instances, first_failures, with_failures
from optlayers.common.generators import remember
from optlayers.common.tensors import all_finite
from optlayers.rules.base import AbstractRule, Context, Gradient
from optlayers.solution import Solution, SolveError, all_of, any_of

__all__ = ["GradientUnit", "OnFailure", "Part", "finish"]

OnFailure = Literal["raise", "nan"]
GradientUnit = Literal["norm", "loss"] | None
LARGEST = torch.finfo(torch.float64).max


@final
@dataclass(slots=True)
class Part:
    """The instances of one polytope in a call of a layer, and what forward leaves of them to backward.

    ``waiting`` are the parameters that require a gradient, ``unit`` is what the gradient of an instance is measured in
    before the rule sees it, and what the rule gives is multiplied by again; None leaves it as it arrives.
    """

    share: Share
    rule: AbstractRule
    context: Context
    waiting: tuple[str, ...] = ()
    unit: GradientUnit = None
    polytope: BoundPolytope | None = None
    saved: Any = None
    solution: Solution | None = None
    forbidden: Tensor | None = None
    failed: Tensor | None = None
    """The instances without an answer, None for none."""
    again: BoundPolytope | None = None
    """The polytopes of a pass with a graph."""
    seen: Tensor | None = None
    """What the backward pass has seen, which the rule adapts by."""

    def solve(self, tensors: Sequence[Tensor], on_failure: OnFailure) -> Solution:
        """The rule's answers to tensors of this part."""
        share, rule, context = self.share, self.rule, self.context
        packed = share.pack(tensors)
        if packed.low:
            self._solve_with_masks(packed)
        else:
            self.forbidden = packed.forbidden
            self.polytope = BoundPolytope.of(share.compiled, packed, packed.forbidden)
            self.solution, self.saved = rule.forward(self.polytope, packed.scores, context)
        solution, polytope = self.solution, self.polytope
        assert solution is not None and polytope is not None
        self.failed = None
        if polytope.failed or not solution.all_ok:
            self.failed = self.failing([solution, *polytope.failed], None, on_failure)
        return solution

    @property
    def verdict(self) -> Solution:
        """The answers, of which those fail, too, that a solve behind them failed for."""
        if self.solution is None or self.polytope is None:
            raise RuntimeError("this part of a call has not been solved")
        return with_failures(self.solution, self.polytope.failed) if self.polytope.failed else self.solution

    def _solve_with_masks(self, packed: Packed) -> None:
        def ask(polytope: BoundPolytope, scores: Tensor) -> tuple[Solution, Any]:
            return self.rule.forward(polytope, scores, self.context)

        bind = partial(BoundPolytope.of, self.share.compiled, packed)
        drawn = partial(remember, self.context.generator, self.share.home) if self.rule.draws else None
        self.polytope, self.forbidden, _, self.solution, self.saved = answered(bind, packed, ask, drawn)

    def pull_back(
        self, grad: Tensor, wanted: Sequence[bool], on_failure: OnFailure, unanswered: Callable[[Sequence[str]], None]
    ) -> list[Tensor | None]:
        """The rule's gradients, flat: of the structure, of auxiliary variables, of parameters, where ``wanted``."""
        rule, polytope = self.rule, self.polytope
        if polytope is None:
            raise RuntimeError("the backward pass of a layer came before its forward pass")
        # To look for what is not finite takes a fifth of a small call.
        flat, finite = self._incoming(grad, look=self.unit is not None or not rule.takes_any_gradient)
        polytope.failed.clear()
        context, unit = self.context, None
        if self.unit is not None:
            flat, context, unit = self._in_units(flat)
        gradient = rule.backward(polytope, self.saved, flat, context)
        solves = (*gradient.solutions, *polytope.failed)
        if solves and unit is None and rule.takes_any_gradient and not all(solution.all_ok for solution in solves):
            flat, finite = self._incoming(grad)
            if finite is not None:
                polytope.failed.clear()
                gradient = rule.backward(polytope, self.saved, flat, self.context)
                solves = (*gradient.solutions, *polytope.failed)
        failed = self.failing(solves, self.failed, on_failure) if solves else self.failed
        self.seen = gradient.seen
        if self.waiting and rule.differentiates_parameters is None:
            missing = [name for name in self.waiting if gradient.parameters.get(name) is None]
            if missing:
                unanswered(missing)
        if unit is not None:
            gradient = self._out_of_units(gradient, unit)
        return self.outgoing(gradient.scores, gradient.parameters, wanted, failed, finite)

    def _in_units(
        self, flat: Float64[Tensor, "*apart batch size"]
    ) -> tuple[Float64[Tensor, "*apart batch size"], Context, Float64[Tensor, " batch"]]:
        """Gradients in the unit of each instance, a context with an objective in it, and the units."""
        objective, polytope = self.context.objective, self.polytope
        if polytope is None:
            raise RuntimeError("the backward pass of a layer came before its forward pass")
        if self.unit == "loss":
            if objective is None:
                raise TypeError('gradient_unit="loss" is for losses: call layer(scores, objective=f)')
            unit = objective.weights.abs()
        else:
            movable = polytope.movable  # the gradient of what cannot move says nothing
            each = flat if all_of(movable) else torch.where(movable, flat, 0.0)
            each = each if self.rule.apart is None else each.movedim(0, 1).flatten(1)
            largest = each.detach().abs().amax(dim=1, keepdim=True) if each.shape[1] else each.new_ones(len(each), 1)
            largest = torch.where(largest > 0.0, largest, 1.0)  # so that squares neither over- nor underflow
            unit = (torch.linalg.vector_norm(each / largest, dim=1) * largest[:, 0]).clamp(max=LARGEST)
        unit = torch.where(unit > 0.0, unit, 1.0)
        context = self.context if objective is None else replace(self.context, objective=objective.in_units(unit))
        return flat / unit[:, None], context, unit

    def _out_of_units(self, gradient: Gradient, unit: Float64[Tensor, " batch"]) -> Gradient:
        named = {
            name: value * unit.reshape(-1, *[1] * (value.ndim - 1))
            for name in self.waiting
            if (value := gradient.parameters.get(name)) is not None
        }
        scores = gradient.scores if gradient.scores is None else gradient.scores * unit[:, None]
        return replace(gradient, scores=scores, parameters=named)

    def kept(self, incoming: Tensor, outgoing: Tensor, state: Mapping[str, Tensor]) -> Tensor | None:
        """Which part of its step every instance was left by the polytope, NaN for those that did not move; None for
        rules that take no steps. ``state`` is what the rule had adapted to before the backward pass."""
        entries, home = self.share.entries, self.share.home
        flat, sent = (entries.flat_structure(g.detach(), home) for g in (incoming, outgoing))
        if self.unit is not None:
            flat, _, unit = self._in_units(flat)
            sent = sent / unit[:, None]
        return self.rule.kept(sent, flat, state)

    def _incoming(self, grad: Tensor, *, look: bool = True) -> tuple[Tensor, Tensor | None]:
        """The gradient of structures, flat, 0 where there is no answer; and which instances are finite, None for all.

        NaN or inf from a loss (a scaler that overflowed, say) goes on as NaN; no solver ever sees it. Without a
        ``look`` for them, they go to the rule.
        """
        share = self.share
        flat = share.entries.flat_structure(grad.detach() if grad.requires_grad else grad, share.home).contiguous()
        if flat.is_inference():
            flat = flat.clone()
        if self.rule.apart is not None:
            flat = flat.reshape(self.rule.apart, -1, flat.shape[1])
        if self.failed is not None:  # whose NaN is known
            flat = flat.masked_fill(self.failed[:, None], 0.0)
        if not look or all_finite(flat):
            return flat, None
        finite = torch.isfinite(flat).all(dim=-1)
        finite = finite if self.rule.apart is None else finite.all(dim=0)
        return flat.masked_fill(~finite[:, None], 0.0), finite

    def outgoing(
        self,
        scores: Tensor | None,
        parameters: Mapping[str, Tensor],
        wanted: Sequence[bool],
        failed: Tensor | None,
        finite: Tensor | None,
    ) -> list[Tensor | None]:
        """Gradients, flat, for the tensors of this part that are ``wanted``: 0 where there is no answer, NaN where what
        came in was not finite, exactly 0 for forbidden parts."""
        entries = self.share.entries
        out = [scores]
        if entries.parameters:  # whose gradients are worked out when they are looked at
            needed = zip(entries.parameters, wanted[1 + len(entries.auxiliaries) :], strict=True)
            out += [parameters.get(spec.name) if needs else None for spec, needs in needed]
        if finite is not None or failed is not None:
            out = [None if g is None else finish(g, failed, finite) for g in out]
        if self.forbidden is not None and out[0] is not None:
            out[0] = out[0].masked_fill(self.forbidden, 0.0)
        if entries.size != entries.structure_size:
            out[:1] = entries.split(out[0])
        return out

    def graph(self, tensors: Sequence[Tensor], grad: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The rule's gradients as functions of all tensors, for autograd to differentiate."""
        rule, polytope = self.rule, self.polytope
        if polytope is None:
            raise RuntimeError("the backward pass of a layer came before its forward pass")
        if rule.draws or rule.needs_objective or rule.initial_state():
            raise NotImplementedError(
                f"{rule!r} has no second derivative: it draws, adapts or works with losses; SparseMAP(), "
                "StructuredAttention(), Spigot() and Hard(...) of these have one"
            )
        share = self.share
        scores, theta = share.entries.packed_with_graph(tensors, share.batch, share.home, self.forbidden)
        moves = theta is not None and (theta.requires_grad or any(wanted[1 + len(share.entries.auxiliaries) :]))
        again = BoundPolytope(polytope.numbers, theta if moves else None)
        self.again, context = again, replace(self.context, needs_gradient=True)
        flat = share.entries.flat_structure(grad, share.home)
        unanswered = self.failed
        if unanswered is not None:
            scores, flat = (t.masked_fill(unanswered[:, None], 0.0) for t in (scores, flat))
        finite = torch.isfinite(flat.detach()).all(dim=1)
        flat, unit = flat.masked_fill(~finite[:, None], 0.0), None
        _, saved = rule.forward(again, scores, context)
        if self.unit is not None:
            flat, _, unit = self._in_units(flat)
        gradient = rule.backward(again, saved, flat, context)
        if unit is not None:
            gradient = self._out_of_units(gradient, unit)
        if flat.requires_grad and not gradient.scores.requires_grad and bool(gradient.scores.any()):
            raise NotImplementedError(
                f"{rule!r} has no second derivative: its backward leaves autograd, by detach(), item() or NumPy; write "
                "it in torch operations and questions to the polytope"
            )
        failed = failed_instances(again.failed, len(scores)) if again.failed else None
        if unanswered is not None:
            failed = unanswered if failed is None else failed | unanswered
        return self.outgoing(gradient.scores, gradient.parameters, wanted, failed, None if finite.all() else finite)

    def failing(self, solutions: Sequence[Solution], before: Tensor | None, on_failure: OnFailure) -> Tensor | None:
        """The instances that failed ``before``, and in some of these solves, flat, None for none; or it raises."""
        solutions = [solution for solution in solutions if not solution.all_ok]
        if not solutions:
            return before
        batch = math.prod(self.share.batch)
        now = failed_instances(solutions, batch)
        if before is not None:
            now &= ~before
        if not any_of(now):
            return before
        if on_failure == "raise":
            failures = first_failures(solutions, batch)
            rows = torch.nonzero(now).flatten().tolist()
            raise SolveError([self.share.told(failures[k], k) for k in rows], batch)
        return now if before is None else before | now

    def under_vmap(self, size: int, batch: torch.Size, batched: Sequence[bool]) -> Part:
        """The part of ``size`` times the batch, to be solved."""
        return Part(self.share.under_vmap(size, batch, batched), self.rule, self.context, self.waiting, self.unit)


def finish(gradient: Tensor, failed: Tensor | None, finite: Tensor | None) -> Tensor:
    """0 for instances without an answer, NaN where the incoming gradient was not finite."""
    rows = [-1] + [1] * (gradient.ndim - 1)
    if finite is not None:
        gradient = gradient.masked_fill((~finite).reshape(rows), torch.nan)
    return gradient if failed is None else gradient.masked_fill(failed.reshape(rows), 0.0)

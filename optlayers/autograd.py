"""What PyTorch differentiates: the forward map, the gradient of a rule, and the derivative of that gradient.

Three functions, each of which is the backward of the one before it, so that ``torch.func`` may transform all of them.
What forward computed stays on the :class:`Call`. Under ``vmap`` there is one more batch dimension, in front: a call of
its own answers for it, which the first one remembers for the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeVar, final

import numpy as np
import torch
from torch import Tensor

from optlayers import inputs
from optlayers.bound import AbstractBoundPolytope
from optlayers.compiled import CompiledPolytope
from optlayers.masks import answered
from optlayers.modes import mapped_over, outside_inference_mode, slice_by_slice, transforms_active
from optlayers.recording import Recording, failed_instances, first_failures, with_failures
from optlayers.rules.base import AbstractRule, Context, Gradient, SecondGradient
from optlayers.solution import Failure, Solution, SolveError, any_of

__all__ = ["Call", "OnFailure", "structures_of"]

OnFailure = Literal["raise", "nan"]
Gradients = tuple[Tensor | None, ...]
T = TypeVar("T")
Asked = TypeVar("Asked", Gradient, SecondGradient)


def structures_of(call: Call, scores: Tensor, *named: Tensor) -> Tensor:
    """The structures of a call: of scores, those of scored auxiliary variables, and parameters, in this order."""
    # The way through transforms binds its arguments by inspection: 40 µs, a third of a small call.
    if not transforms_active():
        return _Plain.apply(call, scores, *named)
    call.kept = True  # tensors within transforms do not say whether a gradient may follow
    return _Transformed.apply(call, scores, *named)


@dataclass(slots=True)
class _Result:
    """What forward leaves to backward."""

    polytope: Recording
    saved: Any
    failed: Tensor | None
    forbidden: Tensor | None
    like: list[tuple[torch.Size, torch.dtype, torch.device]]
    """Of every tensor that was given."""


@final
@dataclass(slots=True)
class Call:
    """What one application of a layer needs besides tensors, and what its forward pass leaves to the backward pass."""

    compiled: CompiledPolytope
    rule: AbstractRule
    on_failure: OnFailure
    batch: torch.Size
    once: frozenset[str]
    """Auxiliary variables whose scores are given once for all instances."""
    positions: Tensor | None
    """``(*batch, k)``: the indices that a user knows the instances by, where they are not their own."""
    precision: Mapping[str, float]
    home: torch.device
    """Where the instances are solved."""
    found: Callable[[Solution], None] | None
    """Who wants to see the solution."""
    context: Context
    kept: bool
    """Whether what forward leaves may be used after it."""
    waiting: tuple[str, ...]
    """The parameters that require a gradient."""
    unanswered: Callable[[Sequence[str]], None]
    """Who is told of those that the rule has none for, where that shows in the backward pass only."""
    inside: Call | None = None
    """The call that answers for this one under ``vmap``."""
    result: _Result | None = None

    def under_vmap(self, size: int, randomness: str, batched: Sequence[bool]) -> Call:
        """The call for ``size`` times the batch; ``batched`` says which tensors differ between these."""
        if self.rule.draws and randomness != "different":
            raise RuntimeError(
                f"{self.rule!r} draws random numbers, others for every instance: use "
                f"vmap(..., randomness='different'), not {randomness!r}"
            )
        positions = self.positions
        if positions is not None:
            many = positions.expand(size, *positions.shape)
            outer = torch.arange(size, device=many.device).reshape(-1, *[1] * (many.ndim - 1))
            positions = torch.cat([outer.expand(*many.shape[:-1], 1), many], dim=-1)
        specs = self.compiled.projection_form.auxiliaries
        differ = {spec.name for spec, differs in zip(specs, batched[1:], strict=False) if differs}
        batch, once = torch.Size((size, *self.batch)), self.once - differ
        self.inside = replace(self, batch=batch, once=once, positions=positions, inside=None, result=None)
        return self.inside

    @property
    def sample_dimension(self) -> int:
        """Where a dimension of ``vmap`` goes in structures: behind the one of those that go apart."""
        return 0 if self.rule.apart is None else 1

    @property
    def done(self) -> _Result:
        """What forward left."""
        if self.result is None:
            raise RuntimeError("the backward pass of a layer came before its forward pass")
        return self.result

    def flat(self, value: Tensor) -> Tensor:
        """Scores or their gradient as they are solved: float64, a row per instance."""
        form = self.compiled.projection_form
        size = form.structure_size
        value = value.detach() if value.requires_grad else value
        value = inputs.moved(value, (value.numel() // size if size else 0, size), torch.float64, self.home)
        return value.clone() if value.is_inference() else value

    def check_values(self, scores: Tensor, auxiliary: Sequence[Tensor], parameters: Sequence[Tensor]) -> bool:
        """Refuse what is not finite or has the wrong sign; whether some part is forbidden."""
        depth, form = len(self.batch), self.compiled.projection_form
        forbids = inputs.check_finite(scores, depth, self.positions)
        for spec, values in zip(form.auxiliaries, auxiliary, strict=True):
            forbids |= inputs.check_auxiliary(spec.name, values, depth, spec.name in self.once, self.positions)
        if parameters:
            inputs.check_parameters(form.parameters, parameters, depth, self.positions)
        return forbids

    def failed(self, solutions: Sequence[Solution], before: Tensor | None) -> Tensor | None:
        """The instances that failed ``before``, and in some of these solves, flat, None for none; or it raises."""
        if all(solution.all_ok for solution in solutions):
            return before
        solutions = [solution for solution in solutions if not solution.all_ok]
        batch = math.prod(self.batch)
        now = failed_instances(solutions, batch)
        if before is not None:
            now &= ~before
        if not any_of(now):
            return before
        if self.on_failure == "raise":
            failures = first_failures(solutions, batch)
            raise SolveError([self._named(failures[k]) for k in torch.nonzero(now).flatten().tolist()], batch)
        return now if before is None else before | now

    def _named(self, failure: Failure) -> Failure:
        """Under the index in the batch that the user handed in."""
        index = tuple(int(i) for i in np.unravel_index(failure.index[0], self.batch)) if self.batch else ()
        return replace(failure, index=index if self.positions is None else tuple(self.positions[index].tolist()))


def _solve(call: Call, scores: Tensor, *named: Tensor) -> Tensor:
    """Flat float64 inside, on the CPU or an accelerator; the dtype, device and shape of the scores outside."""
    form = call.compiled.projection_form
    auxiliary, parameters = named[: len(form.auxiliaries)], named[len(form.auxiliaries) :]
    forbids = call.check_values(scores, auxiliary, parameters)
    flat, forbidden = call.flat(scores), None
    if auxiliary:
        flat = inputs.with_auxiliary(flat, auxiliary, len(call.batch), call.home)
    if forbids:
        flat, forbidden = inputs.split_forbidden(flat)
    elif flat.data_ptr() == scores.data_ptr():
        flat = flat.clone()  # what is saved for backward must not change with the caller's tensor
    given = {
        spec.name: inputs.flatten_parameter(value, len(flat), len(call.batch), call.home)
        for spec, value in zip(form.parameters, parameters, strict=True)
    }

    def bind(hidden: Tensor | None) -> AbstractBoundPolytope:
        return call.compiled.bind(given, hidden, len(flat), call.precision, call.home)

    def ask(bound: AbstractBoundPolytope, scores: Tensor) -> tuple[Solution, tuple[Recording, Any]]:
        polytope = Recording(bound)
        solution, saved = call.rule.forward(polytope, scores, call.context)
        return solution, (polytope, saved)

    remember = partial(_remember, call.context.generator, call.home) if call.rule.draws else None
    _, forbidden, solution, (polytope, saved) = answered(bind, flat, forbidden, ask, scores.dtype, remember)
    sound = solution.all_ok and not polytope.failed
    failed = None if sound else call.failed([solution, *polytope.failed], None)
    if call.found is not None:
        call.found(solution if sound else with_failures(solution, polytope.failed))
    value = inputs.of_structure(solution.value, form.structure_size)
    if failed is not None:
        value = value.masked_fill(failed[:, None], torch.nan)
    like = [(v.shape, v.dtype, v.device) for v in (scores, *named)]
    call.result = _Result(polytope, saved, failed, forbidden, like)
    apart = scores.shape if call.rule.apart is None else (call.rule.apart, *scores.shape)
    # What comes out belongs to the caller, who may write to it; what it was made from waits for the backward pass.
    return (inputs.owned if call.kept else inputs.moved)(value, apart, scores.dtype, scores.device)


def _remember(generator: torch.Generator | None, home: torch.device) -> Callable[[], None]:
    """A function that takes a generator back to where it is now; torch's own for None, on the device of the scores."""
    if generator is None and home.type == "cpu":
        return partial(torch.set_rng_state, torch.get_rng_state())
    if generator is None:
        states = torch.get_device_module(home)
        return partial(states.set_rng_state, states.get_rng_state(home), home)
    drawn_from, state = generator, generator.get_state()

    def take_back() -> None:
        drawn_from.set_state(state)

    return take_back


def _incoming(call: Call, grad: Tensor, *, look: bool = True) -> tuple[Tensor, Tensor | None]:
    """The gradient of structures, flat, 0 where there is no answer; and which instances are finite, None for all.

    NaN or inf from a loss (a scaler that overflowed, say) goes on as NaN; no solver ever sees it. Without a ``look``
    for them, they go to the rule.
    """
    form = call.compiled.projection_form
    flat = inputs.padded(call.flat(grad), form.size)
    if call.rule.apart is not None:
        flat = flat.reshape(call.rule.apart, -1, form.size)
    flat = _without(flat, None, call.done.failed)  # whose NaN is known
    if not look or inputs.all_finite(flat):
        return flat, None
    finite = torch.isfinite(flat).all(dim=-1)
    finite = finite if call.rule.apart is None else finite.all(dim=0)
    return _without(flat, finite, None), finite


def _without(flat: Tensor, finite: Tensor | None, failed: Tensor | None) -> Tensor:
    if finite is not None:
        flat = flat.masked_fill(~finite[:, None], 0.0)
    return flat if failed is None else flat.masked_fill(failed[:, None], 0.0)


def _pull_back(call: Call, wanted: Sequence[bool], grad: Tensor) -> Gradients:
    """What the rule sends back, for every tensor that was given and is ``wanted``."""
    result = call.done
    rule, polytope = call.rule, result.polytope
    # To look for what is not finite takes a fifth of a small call.
    flat, finite = _incoming(call, grad, look=not rule.takes_any_gradient)
    gradient, solves = _asked(rule.backward, polytope, result.saved, flat, call.context)
    if solves and rule.takes_any_gradient and not all(solution.all_ok for solution in solves):
        flat, finite = _incoming(call, grad)
        if finite is not None:
            gradient, solves = _asked(rule.backward, polytope, result.saved, flat, call.context)
    failed = call.failed(solves, result.failed) if solves else result.failed
    if gradient.scores.data_ptr() == grad.data_ptr():  # which may be the caller's own
        gradient = replace(gradient, scores=gradient.scores.clone())
    if call.waiting and rule.differentiates_parameters is None:
        missing = [name for name in call.waiting if gradient.parameters.get(name) is None]
        if missing:
            call.unanswered(missing)
    return _outgoing(call, wanted, gradient.scores, gradient.parameters, failed, finite)


def _asked(ask: Callable[..., Asked], polytope: Recording, *given: Any) -> tuple[Asked, list[Solution]]:
    """What a rule finds, and the solves behind it: those that it speaks of, and those that its polytope saw fail."""
    polytope.failed.clear()
    answer: Asked = ask(polytope, *given)
    return answer, [*answer.solutions, *polytope.failed]


def _outgoing(
    call: Call,
    wanted: Sequence[bool],
    scores: Tensor | None,
    parameters: Mapping[str, Tensor],
    failed: Tensor | None,
    finite: Tensor | None,
) -> Gradients:
    """Gradients of the scored vector and of parameters that are ``wanted``, as the tensors that were given."""
    result, form = call.done, call.compiled.projection_form
    out = [scores]
    if form.parameters:  # whose gradients are worked out when they are looked at
        needed = zip(form.parameters, wanted[1 + len(form.auxiliaries) :], strict=True)
        out += [parameters.get(spec.name) if needs else None for spec, needs in needed]
    if not (finite is None and failed is None):
        out = [None if g is None else _finish(g, failed, finite) for g in out]
    if result.forbidden is not None and out[0] is not None:
        out[0] = out[0].masked_fill(result.forbidden, 0.0)
    if form.auxiliaries:
        spans = [slice(0, form.structure_size), *(spec.span for spec in form.auxiliaries)]
        out[:1] = [None if out[0] is None else out[0][:, span] for span in spans]
    return tuple(None if g is None else inputs.moved(g, *like) for g, like in zip(out, result.like, strict=True))


def _finish(gradient: Tensor, failed: Tensor | None, finite: Tensor | None) -> Tensor:
    """0 for instances without an answer, NaN where the incoming gradient was not finite."""
    if finite is None and failed is None:
        return gradient
    rows = [-1] + [1] * (gradient.ndim - 1)
    if finite is not None:
        gradient = gradient.masked_fill((~finite).reshape(rows), torch.nan)
    return gradient if failed is None else gradient.masked_fill(failed.reshape(rows), 0.0)


def _pull_back_twice(call: Call, wanted: tuple[bool, ...], grad: Tensor, directions: Gradients) -> Gradients:
    """The gradient of <directions, pulled back gradient>: of what was pulled back, then of every tensor given.

    ``wanted`` says which of these tensors need one.
    """
    result, form = call.done, call.compiled.projection_form
    flat, finite = _incoming(call, grad)
    direction = _direction(call, directions)
    if not inputs.all_finite(direction.scores):
        also = torch.isfinite(direction.scores).all(dim=1)
        finite = also if finite is None else finite & also
    direction = replace(direction, scores=_without(direction.scores, finite, result.failed))
    ask = call.rule.second_backward
    second, solves = _asked(ask, result.polytope, result.saved, flat, direction, call.context)
    first = 1 + len(form.auxiliaries)
    asked = [spec.name for spec, needs in zip(form.parameters, wanted[first:], strict=True) if needs]
    if second.depends_on_parameters and asked:
        raise NotImplementedError(
            f"{call.rule!r} has no second derivative with respect to parameters of this polytope ({', '.join(asked)}); "
            "detach them, or take one derivative only"
        )
    failed = call.failed(solves, result.failed)
    of_grad = _finish(second.grad.movedim(-2, 0), failed, finite).movedim(0, -2)
    of_grad = inputs.of_structure(of_grad, form.structure_size)
    out = _outgoing(call, wanted, second.scores, second.parameters, failed, finite)
    return inputs.moved(of_grad, grad.shape, grad.dtype, grad.device), *out


def _direction(call: Call, directions: Gradients) -> Gradient:
    """Directions in the space of gradients, flat; none means 0."""
    result, form = call.done, call.compiled.projection_form
    count, home, first = math.prod(call.batch), call.home, 1 + len(form.auxiliaries)
    sizes = [form.structure_size, *(math.prod(spec.shape) for spec in form.auxiliaries)]
    parts = [
        torch.zeros(count, size, dtype=torch.float64, device=home)
        if given is None
        else inputs.moved(given.detach().to_dense(), (count, size), torch.float64, home)
        for given, size in zip(directions[:first], sizes, strict=True)
    ]
    scores = torch.cat(parts, dim=1)
    if result.forbidden is not None:
        scores = scores.masked_fill(result.forbidden, 0.0)
    parameters = {
        spec.name: inputs.flatten_parameter(given, count, len(call.batch), home)
        for spec, given in zip(form.parameters, directions[first:], strict=True)
        if given is not None
    }
    return Gradient(scores, parameters)


def _at_once(call: Call) -> bool:
    """Whether the numbers are at hand and nobody asks for a graph: then no further function is recorded."""
    return call.result is not None and not torch.is_grad_enabled() and not transforms_active()


def _exactly(function: Callable[..., T], call: Call, *given: Any) -> T:
    """Without autocast, which would let functions of users run in a low precision, and with tensors for autograd."""
    kind = call.home.type
    if torch.is_inference_mode_enabled():
        with outside_inference_mode():
            return _exactly(function, call, *given)
    if not torch.is_autocast_enabled(kind):
        return function(call, *given)
    with torch.autocast(kind, enabled=False):
        return function(call, *given)


class _Forward(torch.autograd.Function):
    """The layer; its tensors are scores, scores of auxiliary variables, and parameters."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if mapped_over(grad):
            return slice_by_slice(partial(_Forward.backward, ctx), grad)
        if grad.layout is not torch.strided:
            grad = grad.to_dense()
        wanted = ctx.needs_input_grad[1:]
        if _at_once(ctx.call):
            return None, *_exactly(_pull_back, ctx.call, wanted, grad)
        return None, *_PullBack.apply(ctx.call, wanted, grad, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        rule = ctx.call.rule
        raise NotImplementedError(
            f"{rule!r} has a backward derivative only: use torch.func.vjp or jacrev instead of jvp, jacfwd or hessian"
        )

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], call: Call, *tensors: Tensor) -> tuple[Tensor, int]:
        dims = in_dims[1:]
        inside = call.under_vmap(info.batch_size, info.randomness, [dim is not None for dim in dims])
        moved = [_in_front(t, dim, info.batch_size) for t, dim in zip(tensors, dims, strict=True)]
        return structures_of(inside, *moved), call.sample_dimension


@final
class _Plain(_Forward):
    """Outside of transforms."""

    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor) -> Tensor:
        value = _exactly(_solve, call, *tensors)
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return value


@final
class _Transformed(_Forward):
    """Inside transforms."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor) -> Tensor:
        return _exactly(_solve, call, *tensors)

    @staticmethod
    def setup_context(ctx: Any, given: tuple[Any, ...], output: Tensor) -> None:
        ctx.call = given[0]
        ctx.save_for_backward(*given[1:])


@final
class _PullBack(torch.autograd.Function):
    """The gradient of a layer, of the gradient that arrives and of the tensors of the layer."""

    @staticmethod
    def forward(call: Call, wanted: tuple[bool, ...], grad: Tensor, *tensors: Tensor) -> Gradients:
        return _exactly(_pull_back, call, wanted, grad.detach())  # torch refuses an input that comes back as it is

    @staticmethod
    def setup_context(ctx: Any, given: tuple[Any, ...], output: Gradients) -> None:
        ctx.call = given[0]
        ctx.save_for_backward(*given[2:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(direction is None for direction in directions):
            return (None,) * len(ctx.needs_input_grad)
        if any(direction is not None and mapped_over(direction) for direction in directions):
            return slice_by_slice(partial(_PullBack.backward, ctx), *directions)
        wanted, (grad, *tensors) = ctx.needs_input_grad[3:], ctx.saved_tensors
        if _at_once(ctx.call):
            return None, None, *_PullBackTwice.forward(ctx.call, wanted, grad, *tensors, *directions)
        return None, None, *_PullBackTwice.apply(ctx.call, wanted, grad, *tensors, *directions)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], call: Call, wanted: tuple[bool, ...], grad: Tensor, *tensors: Tensor
    ) -> tuple[Gradients, tuple[int | None, ...]]:
        size, dims = info.batch_size, in_dims[3:]
        if all(dim is None for dim in dims):  # other gradients at the same scores
            return _one_by_one(lambda g: _PullBack.apply(call, wanted, g, *tensors), size, in_dims[2:3], [grad])
        grad = _in_front(grad, in_dims[2], size, call.sample_dimension)
        moved = [_in_front(t, dim, size) for t, dim in zip(tensors, dims, strict=True)]
        found = _PullBack.apply(call.inside, wanted, grad, *moved)
        return found, tuple(None if g is None else 0 for g in found)


@final
class _PullBackTwice(torch.autograd.Function):
    """The derivative of the gradient of a layer; its tensors are those of :class:`_PullBack`, then directions."""

    @staticmethod
    def forward(call: Call, wanted: tuple[bool, ...], grad: Tensor, *tensors: Tensor | None) -> Gradients:
        return _exactly(_pull_back_twice, call, wanted, grad, tensors[len(wanted) :])

    @staticmethod
    def setup_context(ctx: Any, given: tuple[Any, ...], output: Gradients) -> None:
        ctx.rule = given[0].rule

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> None:
        raise NotImplementedError(f"{ctx.rule!r} has no third derivative")

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        call: Call,
        wanted: tuple[bool, ...],
        grad: Tensor,
        *tensors: Tensor | None,
    ) -> tuple[Gradients, tuple[int | None, ...]]:
        size, dims, given = info.batch_size, in_dims[2:], len(wanted)
        if all(dim is None for dim in dims[1 : 1 + given]):
            return _one_by_one(lambda *some: _PullBackTwice.apply(call, wanted, *some), size, dims, [grad, *tensors])
        grad = _in_front(grad, dims[0], size, call.sample_dimension)
        moved = [None if t is None else _in_front(t, dim, size) for t, dim in zip(tensors, dims[1:], strict=True)]
        found = _PullBackTwice.apply(call.inside, wanted, grad, *moved)
        places = [call.sample_dimension] + [0] * given
        return found, tuple(None if g is None else place for g, place in zip(found, places, strict=True))


def _in_front(tensor: Tensor, dim: int | None, size: int, place: int = 0) -> Tensor:
    """With the dimension of ``vmap`` at ``place``; a tensor that has none is the same for all."""
    if dim is not None:
        return tensor.movedim(dim, place)
    return tensor.unsqueeze(place).expand(*tensor.shape[:place], size, *tensor.shape[place:])


def _one_by_one(
    function: Callable[..., Gradients], size: int, dims: Sequence[int | None], tensors: Sequence[Tensor | None]
) -> tuple[Gradients, tuple[int | None, ...]]:
    """``vmap`` by a loop: what forward left is that of one batch, so each direction is asked for by itself."""
    found = [
        function(*(t if t is None or dim is None else t.select(dim, k) for t, dim in zip(tensors, dims, strict=True)))
        for k in range(size)
    ]
    columns = [None if column[0] is None else torch.stack(column) for column in zip(*found, strict=True)]
    return tuple(columns), tuple(None if column is None else 0 for column in columns)

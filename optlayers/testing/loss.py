"""What a loss keeps: a gradient that is its own, one loss per instance, failures that show."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from optlayers.compilation.compiled import compile_polytope
from optlayers.family import Family
from optlayers.losses import AbstractLoss
from optlayers.polytope import Polytope
from optlayers.solution import SolveError
from optlayers.testing.confined import ROOM, confined
from optlayers.testing.draws import draw, with_scores
from optlayers.testing.failures import MARKED, FailingSolves
from optlayers.testing.pickling import check_pickled, is_pickled

__all__ = ["check_loss"]

STEP = 1e-5
"""Of finite differences."""
SLOPE = 1e-5
"""Errors of slopes, relative to their size."""
SECOND = 1e-4
"""Errors of second derivatives, relative to their size."""
SAME = 1e-8
"""How far what must be the same may differ, relative to its size."""
LOW = -1e4
"""Parts with such scores are in no structure, nor in a mean of them, as forbidden parts are not."""
WINS = (10.0, 1e3, 1e5)
"""How far apart scores are stretched until a target wins by enough."""


def check_loss(
    loss: Callable[..., nn.Module],
    polytope: Polytope,
    *,
    target: Literal["structures", "scores"] = "structures",
    convex: bool = True,
    nonnegative: bool = True,
    zero: bool = True,
    families: bool = True,
    samples: int = 4,
    seed: int = 0,
    **parameters: Any,
) -> None:
    """Check a loss on a polytope: its gradient is its own, instances do not meddle, failures show.

    Everything is asked through ``loss(polytope, reduction=...)(scores, target, **parameters)``. With ``"none"`` there
    is a loss per instance, of which ``"mean"`` and ``"sum"`` are the mean and the sum, with the gradients of these, and
    so is a sum with weights. A loss and its gradient are finite, have the dtype of the scores, depend on their own
    instance alone (not on the others, nor on their order), are the same when asked twice, by a copy, and after
    ``pickle`` (where the declaration can be pickled; a warning says if not), and leave the caller's tensors as they
    are.

    Slopes in random directions are compared with finite differences; at a kink they lie between those on both sides.
    So are those by the scores of scored auxiliary variables, where the loss is called with structures, and those by
    parameters, where the loss has a gradient for them. Where it has second derivatives, these are compared with finite
    differences of the slopes.
    A convex loss also lies above each of its tangents: at random, tied, equal and large scores. The gradient of a
    forbidden part is 0, and the loss is what it is where the part has a very low score. An instance without a
    structure, which one more constraint sees to, makes the loss raise :class:`optlayers.SolveError` with its index, and
    so does an instance that all solves are made to fail for, whether or not somebody waits for a gradient. A loss that
    draws from torch's own generator meets the same random numbers each time.

    Parameters
    ----------
    loss : makes the loss, a ``torch.nn.Module``: a class such as ``SparseMAPLoss``, or a function such as
        ``partial(PerturbedFenchelYoungLoss, samples=3)``.
    polytope : the declaration of a polytope that the loss takes. The loss is given it compiled.
    target : what the loss is called with besides scores: best ``"structures"`` of other scores, or these ``"scores"``
        themselves, as :class:`optlayers.SPOPlusLoss` takes them.
    convex : whether the loss is a convex function of the scores.
    nonnegative : whether the loss is never below 0.
    zero : whether the loss is 0, or comes as close to it as one likes, where the target wins by enough.
    families : whether the loss takes a :class:`optlayers.Family` too, and ``sizes=``; instances of size 0 have a
        gradient of 0, and a loss of 0 where losses come to 0.
    samples : how many scores are tried, at least 2.
    seed : of the random scores.
    parameters : one value for all samples per declared parameter, and scores of scored auxiliary variables, which are
        drawn where they are not given.

    Raises
    ------
    AssertionError : naming the loss, and what it breaks.
    ValueError : an unknown kind of target, too few samples, or what the loss says of a polytope that it does not take.

    Examples
    --------
    >>> import optlayers as ol
    >>> from polytopes import simplex
    >>> check_loss(ol.SparseMAPLoss, simplex(3))
    >>> check_loss(ol.SPOPlusLoss, simplex(3), target="scores")
    """
    if target not in ("structures", "scores"):
        raise ValueError(f'target is "structures" or "scores", but got {target!r}')
    if samples < 2:
        raise ValueError(f"check_loss takes at least 2 samples, but got {samples}")
    parameters = with_scores(polytope, parameters, seed)
    compiled = compile_polytope(polytope)
    truth = _generic(polytope, samples, seed + 1)
    best = compiled.maximize(truth, **parameters).check().value
    targets = best if target == "structures" else truth
    made = loss(compiled, reduction="none")
    check = _Check(type(made).__name__, loss, made, parameters)
    generic = _Batch(_generic(polytope, samples, seed), targets)
    for batch in (generic, _Batch(draw(polytope.shape, samples, seed), targets)):
        _check_answers(check, batch, nonnegative)
        _check_slopes(check, batch, seed)
        if convex:
            _check_convex(check, batch, seed)
    _check_second(check, generic, seed)
    if target == "structures":
        _check_scored(check, generic, polytope, seed)
    _check_reductions(check, compiled, generic)
    _check_independence(check, generic)
    _check_copies(check, generic, polytope)
    _check_forbidden(check, generic, best)
    _check_precision(check, generic)
    if zero:
        _check_zero(check, truth, targets, [v.name() for v in polytope.scored])
    if families:
        _check_families(check, generic, polytope, zero)
    _check_failures(check, generic, polytope)
    _check_hidden(check, compiled, generic)
    _check_parameters(check, generic, polytope, seed)


def _generic(polytope: Polytope, samples: int, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(samples, *polytope.shape, generator=generator, dtype=torch.float64, device="cpu")


@final
@dataclass(frozen=True)
class _Batch:
    """Scores, and what they are compared with."""

    scores: Tensor
    targets: Tensor

    def take(self, index: Any) -> _Batch:
        """Some instances, or one without a batch."""
        return _Batch(self.scores[index], self.targets[index])


@final
@dataclass(frozen=True)
class _Check:
    """A loss per instance, and how it was made."""

    name: str
    """As messages say it."""
    make: Callable[..., nn.Module]
    loss: nn.Module
    parameters: Mapping[str, Any]

    def value(self, scores: Tensor, targets: Tensor, **further: Any) -> Tensor:
        """The losses, without a gradient, and with the same random numbers each time."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            value: Tensor = self.loss(scores, targets, **self.parameters, **further)
        return value

    def both(self, batch: _Batch, weights: Tensor | None = None, **further: Any) -> tuple[Tensor, Tensor]:
        """The losses, and the gradient of their sum, or of one with weights."""
        leaf = batch.scores.detach().clone().requires_grad_()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            value = self.loss(leaf, batch.targets, **self.parameters, **further)
        assert torch.equal(leaf.detach(), batch.scores), f"{self.name} writes to the scores that it is given"
        assert value.requires_grad, f"{self.name} has no gradient for scores that require one"
        (gradient,) = torch.autograd.grad((value if weights is None else value * weights).sum(), leaf)
        return value.detach(), gradient

    def second(self, batch: _Batch, direction: Tensor) -> Tensor | None:
        """The derivative of the gradient in a direction, None where the loss says that it has none."""
        leaf = batch.scores.detach().clone().requires_grad_()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            value = self.loss(leaf, batch.targets, **self.parameters)
        try:
            (gradient,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
            if not gradient.requires_grad:
                return torch.zeros_like(leaf)
            (along,) = torch.autograd.grad(gradient, leaf, direction, allow_unused=True)
        except NotImplementedError:
            return None
        return torch.zeros_like(leaf) if along is None else along

    def draws(self, batch: _Batch) -> bool:
        """Whether the loss draws from torch's own generator."""
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            self.loss(batch.scores, batch.targets, **self.parameters)
            return not torch.equal(before, torch.get_rng_state())


def _same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str, tolerance: float = SAME) -> None:
    for mine, theirs, name in zip(found, expected, ("losses", "gradients")[: len(found)], strict=True):
        assert mine.shape == theirs.shape, f"{what} has {name} of shape {tuple(mine.shape)}, not {tuple(theirs.shape)}"
        moved = float((mine - theirs).abs().max()) if mine.numel() else 0.0
        size = 1.0 + (float(theirs.abs().max()) if theirs.numel() else 0.0)
        assert moved <= tolerance * size, f"{what} gives other {name}: they moved by {moved:.3g}"


def _check_answers(check: _Check, batch: _Batch, nonnegative: bool) -> None:
    """Shape, dtype, sign, and the caller's tensors."""
    name, given = check.name, {"target": batch.targets, **check.parameters}
    before = {what: value.clone() for what, value in given.items() if isinstance(value, Tensor)}
    value, gradient = check.both(batch)
    for what, old in before.items():
        assert torch.equal(given[what], old), f"{name} writes to the {what} that it is given"
    count = len(batch.scores)
    assert tuple(value.shape) == (count,), (
        f'{name} with reduction="none" has shape {tuple(value.shape)}, not {(count,)}'
    )
    assert value.dtype == batch.scores.dtype, f"{name} gives {value.dtype} for scores of {batch.scores.dtype}"
    assert bool(torch.isfinite(value).all()), f"{name} is not finite: {value.tolist()}"
    assert bool(torch.isfinite(gradient).all()), f"{name} has a gradient that is not finite: {gradient.tolist()}"
    least, size = float(value.min()), 1.0 + float(batch.scores.abs().max())
    assert not nonnegative or least >= -SAME * size, f"{name} is {least:.6g}, but a loss that is never below 0"


def _directions(batch: _Batch, count: int, seed: int) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(count, *batch.scores.shape, generator=generator, dtype=torch.float64, device="cpu")


def _rows(values: Tensor) -> Tensor:
    """One row per instance."""
    return values.reshape(len(values), 1) if values.ndim == 1 else values.flatten(1)


def _products(first: Tensor, second: Tensor) -> Tensor:
    return _rows(first * second).sum(1)


def _check_slopes(check: _Check, batch: _Batch, seed: int) -> None:
    """Finite differences in random directions, and along the gradient: to both sides, as there may be a kink."""
    value, gradient = check.both(batch)
    step = STEP * (1.0 + _rows(batch.scores).abs().amax(1))
    wide = step.reshape(-1, *[1] * (batch.scores.ndim - 1))
    for direction in (*_directions(batch, 3, seed + 2), gradient):
        forth = (check.value(batch.scores + wide * direction, batch.targets) - value) / step
        back = (value - check.value(batch.scores - wide * direction, batch.targets)) / step
        slope, size = _products(gradient, direction), 1.0 + torch.maximum(forth.abs(), back.abs())
        off = torch.maximum(torch.minimum(forth, back) - slope, slope - torch.maximum(forth, back))
        for k in torch.nonzero(off > SLOPE * size).flatten().tolist():
            raise AssertionError(
                f"{check.name}, instance {k}: its gradient says that it grows by {float(slope[k]):.6g} in a direction, "
                f"but finite differences say {float(back[k]):.6g} from behind and {float(forth[k]):.6g} ahead"
            )


def _check_scored(check: _Check, batch: _Batch, polytope: Polytope, seed: int) -> None:
    """The slopes by the scores of auxiliary variables, one after the other."""
    for variable in polytope.scored:
        others = dict(check.parameters)
        mine = others.pop(variable.name()).expand(len(batch.scores), *variable.shape)
        turned = _ByNamed(check.loss, batch.scores, variable.name())
        by_scored = _Check(f"{check.name}, by the scores of {variable.name()}", check.make, turned, others)
        _check_slopes(by_scored, _Batch(mine, batch.targets), seed)


@final
class _ByNamed(nn.Module):
    """A loss as a function of a parameter, or of the scores of an auxiliary variable."""

    def __init__(self, loss: nn.Module, scores: Tensor, name: str) -> None:
        super().__init__()
        self.loss, self.scores, self.name = loss, scores, name

    def forward(self, values: Tensor, target: Tensor, **named: Any) -> Any:
        """The loss at the given scores of the structure."""
        return self.loss(self.scores, target, **named, **{self.name: values})


def _check_second(check: _Check, batch: _Batch, seed: int) -> None:
    """Second derivatives in random directions, next to differences of slopes to both sides."""
    step = STEP * (1.0 + _rows(batch.scores).abs().amax(1))
    wide = step.reshape(-1, *[1] * (batch.scores.ndim - 1))
    _, here = check.both(batch)
    for direction in _directions(batch, 2, seed + 4):
        curved = check.second(batch, direction)
        if curved is None:
            return
        forth = check.both(replace(batch, scores=batch.scores + wide * direction))[1] - here
        back = here - check.both(replace(batch, scores=batch.scores - wide * direction))[1]
        forth, back = forth / wide, back / wide
        size = 1.0 + torch.maximum(forth.abs(), back.abs())
        off = torch.maximum(torch.minimum(forth, back) - curved, curved - torch.maximum(forth, back))
        for k in torch.nonzero(_rows(off > SECOND * size).any(1)).flatten().tolist():
            part = int((off / size)[k].argmax())
            mine, behind, ahead = (float(values[k].flatten()[part]) for values in (curved, back, forth))
            raise AssertionError(
                f"{check.name}, instance {k}: its second derivative says that a slope grows by {mine:.6g} in a "
                f"direction, but differences of slopes say {behind:.6g} from behind and {ahead:.6g} ahead"
            )


def _check_parameters(check: _Check, batch: _Batch, polytope: Polytope, seed: int) -> None:
    """The slopes by parameters, one after the other, of a loss that has them, by solvers that do."""
    named = [parameter.name() for parameter in polytope.parameters]
    if not named or polytope.rows == "relaxation" or not _has_parameters(check.loss):
        return
    compiled = compile_polytope(polytope.without_oracle())
    if compiled.rows_are_not_all:  # which an oracle answers for that does not say how vertices move
        return
    made = check.make(compiled, reduction="none")
    _trust_targets(made)
    count = len(batch.scores)
    for name in named:
        others = dict(check.parameters)
        shape = next(p.shape for p in polytope.parameters if p.name() == name)
        mine = torch.as_tensor(others.pop(name), dtype=torch.float64, device="cpu").expand(count, *shape)
        turned = _ByNamed(made, batch.scores, name)
        by_parameter = _Check(f"{check.name}, by the parameter {name}", check.make, turned, others)
        moved = _Batch(mine, batch.targets)
        try:
            for step in (STEP, -STEP):  # where it is at the end of what it may be, there are no differences
                for direction in (torch.ones_like(mine), *_directions(moved, 3, seed + 2)):
                    by_parameter.value(mine + 4.0 * step * (1.0 + mine.abs()) * direction, batch.targets)
        except (SolveError, ValueError):
            continue
        _check_slopes(by_parameter, moved, seed)


def _has_parameters(loss: nn.Module) -> bool:
    """Whether a loss says that it has gradients for parameters."""
    made = [module for module in loss.modules() if isinstance(module, AbstractLoss)]
    return bool(made) and all(module.differentiates_parameters for module in made)


def _trust_targets(loss: nn.Module) -> None:
    """Targets are what they are called: what they are held to is not asked."""
    for module in loss.modules():
        if isinstance(module, AbstractLoss):
            module.validate = False


def _check_convex(check: _Check, batch: _Batch, seed: int) -> None:
    """The loss lies above its tangents, near and far."""
    value, gradient = check.both(batch)
    for scale, direction in zip((1e-2, 1.0, 30.0), _directions(batch, 3, seed + 3), strict=True):
        there = check.value(batch.scores + scale * direction, batch.targets)
        below = value + scale * _products(gradient, direction) - there
        size = 1.0 + there.abs() + value.abs() + _rows(batch.scores).abs().amax(1)
        for k in torch.nonzero(below > SAME * size).flatten().tolist():
            raise AssertionError(
                f"{check.name}, instance {k}: it lies {float(below[k]):.3g} below its tangent, at a distance of "
                f"{scale:g}; a convex loss, whose gradient is right, does not"
            )


def _check_reductions(check: _Check, compiled: Any, batch: _Batch) -> None:
    value, gradient = check.both(batch)
    for reduction, expected in (
        ("sum", (value.sum(), gradient)),
        ("mean", (value.mean(), gradient / len(value))),
    ):
        reduced = replace(check, loss=check.make(compiled, reduction=reduction))
        _same(reduced.both(batch), expected, f"{check.name} with reduction={reduction!r} beside that of its losses")
    weights = torch.linspace(-1.0, 2.0, len(value), dtype=torch.float64, device="cpu")
    weighted = check.both(batch, weights=weights)
    each = gradient * weights.reshape(-1, *[1] * (gradient.ndim - 1))
    _same(weighted, (value, each), f"{check.name}, in a sum with weights,")


def _check_independence(check: _Check, batch: _Batch) -> None:
    """Each instance alone and in another order; or next to others, as what is drawn depends on the place in a batch."""
    value, gradient = check.both(batch)
    draws = check.draws(batch)
    for k in range(len(value)):
        mine, what = slice(k, k + 1), f"{check.name}, instance {k} in another batch,"
        if draws:
            scores, targets = batch.scores.roll(1, dims=0) + 1.0, batch.targets.roll(1, dims=0).clone()
            scores[mine], targets[mine] = batch.scores[mine], batch.targets[mine]
            found = tuple(part[mine] for part in check.both(_Batch(scores, targets)))
        else:
            found = check.both(batch.take(mine))
        _same(found, (value[mine], gradient[mine]), what)
    if not draws:
        found = tuple(part.flip(0) for part in check.both(_Batch(batch.scores.flip(0), batch.targets.flip(0))))
        _same(found, (value, gradient), f"{check.name}, in another order of the batch,")
        _same(check.both(batch.take(0)), (value[0], gradient[0]), f"{check.name}, of an instance without a batch,")
        rows = 2 if len(value) % 2 == 0 else 1
        scores, targets, *expected = (
            part.reshape(rows, -1, *part.shape[1:]) for part in (batch.scores, batch.targets, value, gradient)
        )
        _same(check.both(_Batch(scores, targets)), tuple(expected), f"{check.name}, of a batch of two dimensions,")
    empty = check.both(batch.take(slice(0, 0)))
    _same(empty, (value[:0], gradient[:0]), f"{check.name}, of an empty batch,")


def _check_copies(check: _Check, batch: _Batch, polytope: Polytope) -> None:
    expected = check.both(batch)
    copies = {"asked again": check.loss, "copied": copy.deepcopy(check.loss)}
    if is_pickled(polytope, "check_loss", "loss"):
        check_pickled(check.loss, check.name, "models that have it")
        copies["pickled"] = pickle.loads(pickle.dumps(check.loss))
    for what, other in copies.items():
        _same(replace(check, loss=other).both(batch), expected, f"{check.name}, {what},")


def _check_forbidden(check: _Check, batch: _Batch, best: Tensor) -> None:
    """Forbid one part per instance that a structure does without which is left, the target where it is one."""
    unused = (best == 0).flatten(1)
    having, part = unused.any(dim=1), unused.to(torch.int8).argmax(dim=1)
    masked = batch.scores.flatten(1).clone()
    masked[having, part[having]] = -torch.inf
    hidden = torch.isinf(masked).reshape(batch.scores.shape)
    value, gradient = check.both(_Batch(masked.reshape(batch.scores.shape), batch.targets))
    low = check.value(masked.clamp(min=LOW).reshape(batch.scores.shape), batch.targets)
    assert bool(torch.isfinite(value).all()), f"{check.name} beside a forbidden part is not finite: {value.tolist()}"
    assert bool((gradient[hidden] == 0).all()), f"{check.name} gives a forbidden part a gradient"
    assert bool(torch.isfinite(gradient).all()), f"{check.name}: a gradient beside a forbidden part is not finite"
    _same((value,), (low,), f"{check.name}, where a part is forbidden that has a score of {LOW:g} else,", 1e-6)


def _check_precision(check: _Check, batch: _Batch) -> None:
    expected = check.both(batch)
    low = check.both(_Batch(batch.scores.to(torch.float32), batch.targets))
    for part, what in zip(low, ("losses", "gradients"), strict=True):
        assert part.dtype == torch.float32, f"{check.name} has {what} of {part.dtype} for scores of float32"
    _same((low[0].double(),), expected[:1], f"{check.name} of scores of float32", 1e-4)


def _check_zero(check: _Check, truth: Tensor, targets: Tensor, scored: Sequence[str]) -> None:
    """Stretch the scores of which the target is the best structure: it wins by as much as one likes."""
    nearest = torch.full((len(truth),), torch.inf, dtype=torch.float64, device="cpu")
    for scale in WINS:
        stretched = {name: scale * value if name in scored else value for name, value in check.parameters.items()}
        found = replace(check, parameters=stretched).value(
            scale * truth, scale * truth if targets is truth else targets
        )
        nearest = torch.minimum(nearest, found.double() - 1e-9 * scale * (1.0 + truth.abs().flatten(1).sum(1)))
    worst = float(nearest.max())
    assert worst <= 1e-6, f"{check.name} is {worst:.6g} where the target wins by as much as one likes; it must be 0"


def _check_families(check: _Check, batch: _Batch, polytope: Polytope, zero: bool) -> None:
    """A family of one size, with an instance of size 0 among the others."""
    value, gradient = check.both(batch)
    size = max(polytope.shape, default=1)
    of_sizes = replace(check, loss=check.make(Family(lambda size: polytope), reduction="none"))
    sizes = torch.full((len(value),), size, device="cpu")
    sizes[0] = 0
    targets = batch.targets.clone()
    targets[0] = 0.0
    found = of_sizes.both(_Batch(batch.scores, targets), sizes=sizes)
    padding = (torch.zeros_like(value[:1]) if zero else found[0][:1], torch.zeros_like(gradient[:1]))
    _same(tuple(part[:1] for part in found), padding, f"{check.name}, of an instance of size 0,")
    if not check.draws(batch):
        _same(tuple(part[1:] for part in found), (value[1:], gradient[1:]), f"{check.name}, of a family,")


def _check_failures(check: _Check, batch: _Batch, polytope: Polytope) -> None:
    """One more constraint, on the sum of the structure, which an instance cannot satisfy."""
    if polytope.rows == "relaxation":  # an oracle knows nothing of the constraint
        return
    declared = compile_polytope(polytope.without_oracle())
    ones = torch.ones(polytope.shape, dtype=torch.float64, device="cpu")
    most = float(declared.maximize(ones, **check.parameters).check().value.sum())
    least = float(declared.maximize(-ones, **check.parameters).check().value.sum())
    rooms = torch.full((len(batch.scores),), most + 1.0, dtype=torch.float64, device="cpu")
    made = replace(
        check,
        loss=check.make(compile_polytope(confined(polytope, least)), reduction="none"),
        parameters={**check.parameters, ROOM: rooms},
    )
    expected = check.value(batch.scores, batch.targets)
    found = made.value(batch.scores, batch.targets)
    _same((found,), (expected,), f"{check.name}, beside a constraint with room,", 1e-6)
    rooms[MARKED] = least - 1.0
    for ask in (lambda: made.value(batch.scores, batch.targets), lambda: made.both(batch)):
        try:
            ask()
        except SolveError as error:
            named = [failure.index for failure in error.failures]
            assert named == [(MARKED,)], f"{check.name}: SolveError names {named}, but {[(MARKED,)]} is infeasible"
        else:
            raise AssertionError(f"{check.name} hides that an instance is infeasible: no SolveError is raised")


def _check_hidden(check: _Check, compiled: Any, batch: _Batch) -> None:
    """All solves fail for an instance, but those that targets are held to."""
    made = replace(check, loss=check.make(compiled, reduction="none"))
    _trust_targets(made.loss)
    made.both(batch)  # what is found out of a polytope once
    for ask in (lambda: made.value(batch.scores, batch.targets), lambda: made.both(batch)):
        solves = FailingSolves(len(batch.scores))
        try:
            with solves:
                ask()
        except SolveError as error:
            named = [failure.index for failure in error.failures]
            assert named == [(MARKED,)], f"{check.name}: SolveError names {named}, but solves failed for {[(MARKED,)]}"
        else:
            assert not solves.failed, (
                f"{check.name} hides that {solves.told} failed for an instance: no SolveError is raised"
            )

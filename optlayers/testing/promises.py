"""What a rule says of itself: each of these words changes what a layer does, so each is held to what the rule does."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor

from optlayers.bound.dual_points import NoPrices
from optlayers.layer import OptLayer
from optlayers.polytope import Polytope
from optlayers.rules.regularized import Regularized
from optlayers.solution import Solution
from optlayers.testing.answers import total
from optlayers.testing.failures import MARKED
from optlayers.testing.through import forward, same, through, with_gradients

__all__ = ["check_promises"]

BEST = 1e-6
"""How far from the best an answer may be, relative to the size of its scores."""
KEPT = 1e-6
"""A step may be kept by this much more than wholly."""


def check_promises(
    layer: OptLayer, polytope: Polytope, scores: Tensor, weights: Tensor, parameters: dict[str, Any]
) -> None:
    """Hold a rule to ``optimizes``, ``has_jacobian``, ``takes_any_gradient``, ``kept``, to how it adapts, and to its
    gradients of parameters. Its forward map is the same where nobody waits for a gradient."""
    expected = through(layer, scores, weights, parameters)
    alone = forward(layer, scores, parameters)
    same((alone,), expected[:1], f"{layer.rule!r}, where nobody waits for a gradient,")
    if layer.rule.optimizes and not layer.rule.needs_objective:  # whose answers come without auxiliary variables
        _check_best(layer, scores, parameters)
    if layer.rule.has_jacobian:
        _check_linear(layer, scores, weights, expected, parameters)
    if layer.rule.takes_any_gradient:
        _check_any_gradient(layer, scores, weights, expected, parameters)
    if layer.rule.apart is None and not polytope.scored:
        _check_kept(layer, weights, expected[1])
    if layer.rule.initial_state():
        _check_adapting(layer, scores, weights, parameters)
    if polytope.parameters and not layer.compiled().rows_are_not_all:
        _check_parameters(layer, polytope, scores, weights, parameters)


def _check_best(layer: OptLayer, scores: Tensor, parameters: dict[str, Any]) -> None:
    """An answer that is to be the best point of <s, z> - Ω(z), beside that point."""
    rule, compiled = layer.rule, layer.compiled()
    found = layer.solve(scores, **parameters)
    size = 1.0 + scores.flatten(1).abs().amax(dim=1)
    if rule.omega is None:
        best = compiled.maximize(scores, **parameters).check()
        far = (total(scores, parameters, best) - total(scores, parameters, found)).abs() / size
    else:
        best = OptLayer(compiled, Regularized(rule.omega)).solve(scores, **parameters).check()
        far = _distance(found, best) / size
    worst = int(far.argmax())
    assert float(far[worst]) <= BEST, (
        f"{rule!r} says that it optimizes, but on instance {worst} its answer is {float(far[worst]):.3g} from the best "
        "point (relative)"
    )


def _distance(found: Solution, other: Solution) -> Tensor:
    return (found.value - other.value).flatten(1).abs().amax(dim=1)


def _check_linear(
    layer: OptLayer, scores: Tensor, weights: Tensor, expected: tuple[Tensor, Tensor], parameters: dict[str, Any]
) -> None:
    """A gradient that is to be a matrix times what comes in."""
    value, gradient = expected
    others = weights.roll(1, dims=0)
    _, of_others = through(layer, scores, others, parameters)
    combined = through(layer, scores, weights - 2.0 * others, parameters)
    what = f"{layer.rule!r} says has_jacobian, but its backward is not linear: a sum of gradients"
    same(combined, (value, gradient - 2.0 * of_others), what)


def _check_any_gradient(
    layer: OptLayer, scores: Tensor, weights: Tensor, expected: tuple[Tensor, Tensor], parameters: dict[str, Any]
) -> None:
    """A loss that is NaN for one instance: this one shows it, and the others go on."""
    spoiled = weights.clone()
    spoiled[MARKED] = torch.nan
    value, gradient = through(layer, scores, spoiled, parameters)
    others = torch.arange(len(scores), device="cpu") != MARKED
    what = f"{layer.rule!r} says takes_any_gradient, but beside a gradient of NaN"
    same((value[others], gradient[others]), (expected[0][others], expected[1][others]), what)
    hidden = bool(torch.isfinite(gradient[MARKED]).all()) and bool((expected[1][MARKED] != 0.0).any())
    assert not hidden, f"{layer.rule!r} says takes_any_gradient, but hides a gradient of NaN: it sends back numbers"


def _check_kept(layer: OptLayer, weights: Tensor, gradient: Tensor) -> None:
    """Parts of steps are between 0 and 1."""
    kept = layer.rule.kept(gradient.flatten(1), weights.flatten(1), copy.deepcopy(layer.rule.initial_state()))
    if kept is None:
        return
    assert tuple(kept.shape) == (len(weights),), (
        f"{layer.rule!r}: kept has shape {tuple(kept.shape)}, not one number for each of {len(weights)} instances"
    )
    known = kept[~kept.isnan()]
    assert bool(((known >= -KEPT) & (known <= 1.0 + KEPT)).all()), (
        f"{layer.rule!r}: kept is {kept.tolist()}, but no part of a step is below 0 or above 1"
    )


def _check_adapting(layer: OptLayer, scores: Tensor, weights: Tensor, parameters: dict[str, Any]) -> None:
    """What a layer adapts to is finite, changes after backward passes alone, and not by the order of the batch."""
    rule, before = layer.rule, _buffers(layer)
    asked = copy.deepcopy(layer)
    with torch.no_grad():
        _losses(asked, scores, scores, parameters)
    _same_buffers(_buffers(asked), before, f"{rule!r} adapts in a forward pass: ")
    after = _adapted(layer, scores, weights, parameters)
    for name, value in after.items():
        assert bool(torch.isfinite(value).all()), f"{rule!r} adapts {name} to {value.tolist()}"
    if not rule.draws:
        turned = _adapted(layer, scores.flip(0), weights.flip(0), parameters)
        _same_buffers(turned, after, f"{rule!r} adapts by the order of the batch: ")


def _adapted(layer: OptLayer, scores: Tensor, weights: Tensor, parameters: dict[str, Any]) -> dict[str, Tensor]:
    """The buffers after a backward pass."""
    asked = copy.deepcopy(layer)
    torch.autograd.backward(_losses(asked, scores.detach().requires_grad_(), weights, parameters).sum())
    return _buffers(asked)


def _losses(layer: OptLayer, scores: Tensor, weights: Tensor, parameters: dict[str, Any]) -> Tensor:
    """<weights, structure> of every instance."""
    generator = torch.Generator("cpu").manual_seed(0) if layer.rule.draws else None
    losses: Tensor = layer(
        scores, objective=lambda x: (x * weights).flatten(1).sum(1), generator=generator, **parameters
    )
    return losses


def _buffers(layer: OptLayer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in layer.named_buffers()}


def _same_buffers(found: dict[str, Tensor], expected: dict[str, Tensor], what: str) -> None:
    for name, value in expected.items():
        moved = (found[name] - value).abs().max() if value.numel() else value.new_zeros(())
        size = 1.0 + float(value.abs().max()) if value.numel() else 1.0
        assert float(moved) <= 1e-9 * size, f"{what}{name} is {found[name].tolist()} beside {value.tolist()}"


def _check_parameters(
    layer: OptLayer, polytope: Polytope, scores: Tensor, weights: Tensor, parameters: dict[str, Any]
) -> None:
    """Gradients of parameters: there are some where the rule says so, finite, of each instance by itself."""
    rule = layer.rule
    if rule.differentiates_parameters is False:
        return
    try:
        found = _of_parameters(layer, polytope, scores, weights, parameters)
    except NoPrices:  # of a polytope that is not described by its constraints
        return
    for name, gradient in found.items():
        if gradient is None:
            assert rule.differentiates_parameters is None, f"{rule!r} says that {name} has a gradient, but it has none"
            continue
        what = f"{rule!r}, the gradient of {name}"
        assert bool(torch.isfinite(gradient).all()), f"{what}: it is {gradient.tolist()}"
        if rule.draws:  # what is drawn depends on the size of a batch
            continue
        for k in range(len(scores)):
            mine = slice(k, k + 1)
            alone = _of_parameters(layer, polytope, scores[mine], weights[mine], parameters)[name]
            assert alone is not None, f"{what} depends on the batch"
            far, size = float((alone - gradient[mine]).abs().max()), 1.0 + float(alone.abs().max())
            assert far <= 1e-6 * size, f"{what}, instance {k} in another batch: it moved by {far:.3g}"


def _of_parameters(
    layer: OptLayer, polytope: Polytope, scores: Tensor, weights: Tensor, parameters: dict[str, Any]
) -> dict[str, Tensor | None]:
    """The gradient of every parameter ``(batch, *shape)``, None where it has none."""
    count = len(scores)
    leaves = {
        p.name(): torch.as_tensor(parameters[p.name()], dtype=torch.float64, device="cpu")
        .expand(count, *p.shape)
        .clone()
        .requires_grad_()
        for p in polytope.parameters
    }
    others = {name: value for name, value in parameters.items() if name not in leaves}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* has no gradient for parameters of the polytope")
        _, found = with_gradients(layer, scores, weights, {**others, **leaves}, tuple(leaves.values()))
    return dict(zip(leaves, found[1:], strict=True))

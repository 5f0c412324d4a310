"""What a rule keeps: structures of the polytope, and gradients that behave."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import torch
from torch import Tensor

from optlayers.layer import OptLayer
from optlayers.polytope import Polytope
from optlayers.rules.base import AbstractRule
from optlayers.testing.draws import draw, with_scores
from optlayers.testing.failures import check_failures
from optlayers.testing.geometry import contains
from optlayers.testing.pickling import check_pickled, is_pickled
from optlayers.testing.promises import check_promises
from optlayers.testing.through import same, through

__all__ = ["check_rule"]


def check_rule(rule: AbstractRule, polytope: Polytope, *, samples: int = 4, seed: int = 0, **parameters: Any) -> None:
    """Check a rule on a polytope: structures in the polytope, gradients that behave, failures that show.

    Gradients are finite, have the shape and dtype of the scores, depend on their own instance alone, do not change
    when asked twice, even after structures and gradients that came out were overwritten, survive ``deepcopy`` and
    ``pickle`` (where the declaration can be pickled: a function of it that is a lambda cannot, and a warning says so),
    come for empty batches and for strided scores, and are 0 for forbidden parts (:func:`check_log_partition` looks at
    forbidden blocks, too).

    What a rule says of itself is true: that it ``optimizes``, that ``backward`` is a matrix (``has_jacobian``), that it
    ``takes_any_gradient``, which part of a step was ``kept``, that parameters have a gradient, which is finite and of
    each instance by itself. Its structures are the same where nobody waits for a gradient, and what it adapts to
    changes after backward passes alone, whatever the order of the batch.

    A rule does not hide a failed solve. The solves of its forward pass, and then those of its backward pass, are made
    to fail for one instance: all that it asks of the polytope that it is given, and after that what it asks of others:
    compiled or bound by itself, or within a layer, of the whole batch or of one instance after the other. The layer
    must raise :class:`optlayers.SolveError` that names this
    instance; with ``on_failure="nan"`` it must have no answer, or no gradient, while the others have theirs.

    Parameters
    ----------
    rule : a rule that draws gets the same seed each time; one that works with losses gets linear ones; one that takes
        no zeros gets scores of 0.1 instead.
    polytope : the declaration of a polytope that the rule takes.
    samples : how many scores are tried: random, tied, all equal and large ones.
    seed : of the random scores.
    parameters : one value for all samples per declared parameter, and scores of scored auxiliary variables, which are
        drawn where they are not given.

    Raises
    ------
    AssertionError : naming the rule, and what it breaks.
    """
    parameters = with_scores(polytope, parameters, seed)
    layer = OptLayer(polytope, rule)
    scores = _taken_by(rule, draw(polytope.shape, samples, seed))
    weights = draw(polytope.shape, samples, seed + 1).roll(2, dims=0).clamp(-3, 3)
    value, gradient = through(layer, scores, weights, parameters)
    assert bool(contains(polytope, value, **parameters).all()), f"{rule!r} leaves the polytope"
    assert gradient.shape == scores.shape and bool(torch.isfinite(gradient).all()), f"{rule!r}: {gradient}"
    copies = {"asked again": layer, "copied": copy.deepcopy(layer)}
    check_pickled(rule, f"{rule!r}", "layers that have it")
    if is_pickled(polytope, "check_rule", "layer"):
        copies["pickled"] = pickle.loads(pickle.dumps(layer))
    for what, other in copies.items():
        same(through(other, scores, weights, parameters), (value, gradient), f"{rule!r}, {what},")
    _check_independence(layer, scores, weights, (value, gradient), parameters)
    _check_memory(layer, scores, weights, (value, gradient), parameters)
    strided = torch.stack([scores, scores], dim=-1)[..., 0]
    same(through(layer, strided, weights, parameters), (value, gradient), f"{rule!r} on strided scores")
    _check_forbidden(layer, scores, weights, value, parameters)
    check_promises(layer, polytope, scores, weights, parameters)
    empty = through(layer, scores[:0], weights[:0], parameters)
    assert empty[0].shape == value[:0].shape and empty[1].shape == scores[:0].shape, f"{rule!r} on an empty batch"
    single = scores.to(torch.float32)
    low, low_gradient = through(layer, single, weights.to(torch.float32), parameters)
    assert low.dtype == low_gradient.dtype == torch.float32, f"{rule!r} changes float32 to {low.dtype}"
    generator = torch.Generator("cpu").manual_seed(seed)
    plain, signal = torch.randn(2, 3, *polytope.shape, generator=generator, dtype=torch.float64, device="cpu")
    check_failures(rule, layer.compiled(), plain, signal, parameters)


def _taken_by(rule: AbstractRule, scores: Tensor) -> Tensor:
    return scores if rule.takes_zero else scores.masked_fill(scores == 0.0, 0.1)


def _check_independence(
    layer: OptLayer, scores: Tensor, weights: Tensor, expected: tuple[Tensor, Tensor], parameters: dict[str, Any]
) -> None:
    """Each instance alone, or, as what is drawn depends on the size of a batch, next to others."""
    for k in range(len(scores)):
        mine = slice(k, k + 1)
        if layer.rule.draws:
            others = _taken_by(layer.rule, scores.roll(1, dims=0) + 1.0)
            others[mine] = scores[mine]
            found = tuple(part[mine] for part in through(layer, others, weights, parameters))
        else:
            found = through(layer, scores[mine], weights[mine], parameters)
        same(found, tuple(part[mine] for part in expected), f"{layer.rule!r}, instance {k} in another batch,")


def _check_memory(
    layer: OptLayer, scores: Tensor, weights: Tensor, expected: tuple[Tensor, Tensor], parameters: dict[str, Any]
) -> None:
    """Overwrite what came out, structures and then a gradient, and ask for the gradient of the same structures."""
    if layer.rule.initial_state():  # which adapts in between
        return
    leaf, seen = scores.detach().requires_grad_(), []

    def linear(structures: Tensor) -> Tensor:
        seen.append(structures)
        return (structures * weights).flatten(1).sum(1)

    generator = torch.Generator("cpu").manual_seed(0) if layer.rule.draws else None
    losses = layer(leaf, objective=linear, generator=generator, **parameters)
    for structures in seen:
        structures.detach().zero_()
    for what in ("structures that came out are", "a gradient that came out is"):
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, retain_graph=True)
        same((expected[0], gradient), expected, f"{layer.rule!r}, when {what} overwritten,")
        gradient.zero_()


def _check_forbidden(
    layer: OptLayer, scores: Tensor, weights: Tensor, value: Tensor, parameters: dict[str, Any]
) -> None:
    """Forbid one part per instance that its answer does without, so that the instance stays feasible."""
    used = value if layer.rule.apart is None else value.abs().sum(dim=1)
    unused = (used == 0).flatten(1)
    having = unused.any(dim=1)
    part = unused.to(torch.int8).argmax(dim=1)
    masked = scores.flatten(1).clone()
    masked[having, part[having]] = -torch.inf
    found, gradient = through(layer, masked.reshape(scores.shape), weights, parameters)
    found = found if layer.rule.apart is None else found.abs().sum(dim=1)
    hidden = torch.isinf(masked).reshape(scores.shape)
    assert bool((found[hidden] == 0).all()), f"{layer.rule!r} uses a forbidden part"
    assert bool((gradient[hidden] == 0).all()), f"{layer.rule!r} gives a forbidden part a gradient"
    assert bool(torch.isfinite(gradient).all()), f"{layer.rule!r}: a gradient beside a forbidden part is not finite"

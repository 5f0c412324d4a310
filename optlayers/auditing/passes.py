"""Passes through a layer, forward and backward: what a rule sends back, how long it takes, what its steps keep."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.auditing.estimate import Sent
from optlayers.auditing.problem import Problem
from optlayers.calls.layer_call import call_behind, is_nothing
from optlayers.layer import OptLayer

__all__ = ["BackwardPasses", "passes_through"]

ADAPTING = 20
"""A rule that adapts does so in so many passes before it is looked at."""
TIMED = 3
"""A pass is timed so often, unless it is slow."""
SLOW = 1.0


@final
@dataclass(frozen=True)
class BackwardPasses:
    """What came of some passes.

    ``sent`` are gradients of the losses of instances, whatever weight these enter with; 0 for those that ``failed``.
    ``arrives`` says for which instances some gradient came to the rule, None where that is not seen. ``kept`` is which
    part of its step every instance was left, None for rules without steps. ``milliseconds`` is the median of a pass.
    """

    sent: Sent
    failed: Bool[Tensor, " instances"]
    arrives: Bool[Tensor, " instances"] | None
    kept: Float64[Tensor, " instances"] | None
    milliseconds: float


def passes_through(
    layer: OptLayer, problem: Problem, parameters: Mapping[str, Any], weight: float, runs: int, seed: int
) -> BackwardPasses:
    """As many runs as are asked for of a rule that draws, 3 of one that is slow; once what a rule without random
    numbers sends back."""
    generator = torch.Generator().manual_seed(seed)
    found, times = [], list[float]()
    for _ in range(ADAPTING if layer.rule.initial_state() else 1):  # the first pass may compile something
        one = _pass(layer, problem, parameters, weight, generator)
    if layer.rule.draws:
        generator.manual_seed(seed)
    for _ in range(runs if layer.rule.draws else TIMED):
        start = time.perf_counter()
        one = _pass(layer, problem, parameters, weight, generator)
        times.append(time.perf_counter() - start)
        found.append(one)
        if times[-1] > SLOW and (not layer.rule.draws or len(times) >= TIMED):
            break
    found = found if layer.rule.draws else [one]
    failed = torch.stack([each.failed for each in found]).any(dim=0)
    gradients = torch.stack([each.gradient for each in found]).masked_fill(failed[:, None], 0.0)
    times.sort()
    arrives = None if one.arrives is None else torch.stack([_known(each.arrives) for each in found]).any(dim=0)
    kept = None if one.kept is None else torch.stack([_known(each.kept) for each in found]).nanmean(dim=0)
    return BackwardPasses(Sent(gradients), failed, arrives, kept, 1e3 * times[len(times) // 2])


@final
@dataclass(frozen=True)
class _Pass:
    gradient: Float64[Tensor, "instances size"]
    failed: Bool[Tensor, " instances"]
    arrives: Bool[Tensor, " instances"] | None
    kept: Float64[Tensor, " instances"] | None


def _known(value: Tensor | None) -> Tensor:
    assert value is not None
    return value


def _pass(
    layer: OptLayer, problem: Problem, parameters: Mapping[str, Any], weight: float, generator: torch.Generator
) -> _Pass:
    structures: list[Tensor] = []

    def objective(value: Tensor) -> Tensor:
        structures.append(value)
        return problem.objective(value)

    state = {name.removeprefix("rule_"): value.clone() for name, value in layer.named_buffers()}
    with torch.enable_grad():
        leaf = problem.scores.clone().requires_grad_()
        losses = layer(leaf, sizes=problem.sizes, objective=objective, generator=generator, **parameters)
        behind = call_behind(losses)
        assert behind is not None
        call = behind[1]
        # Of a rule with several structures each goes to the objective as a view, which is not what the losses are of.
        whole = call.apart is None
        wanted = [leaf, structures[0]] if whole else [leaf]
        found = torch.autograd.grad(weight * losses.sum(), wanted, allow_unused=True)
    sent = torch.zeros_like(leaf) if found[0] is None else found[0]
    incoming = None
    if whole:
        incoming = torch.zeros_like(structures[0]) if found[1] is None else found[1]
    with torch.no_grad():
        kept = None if incoming is None else call.kept(incoming, sent, state)
        kept = None if kept is None else kept.cpu()
        came = None if incoming is None else incoming.reshape(problem.count, -1)
        norm, arrived = (torch.zeros(problem.count, dtype=torch.float64) for _ in range(2))
        norm.copy_(torch.linalg.vector_norm(sent.reshape(problem.count, -1), dim=1, dtype=torch.float64))
        if came is not None:
            arrived.copy_(torch.linalg.vector_norm(came, dim=1, dtype=torch.float64))
        nothing = is_nothing(norm, arrived)
        flat = sent.reshape(problem.count, -1).to("cpu", torch.float64) / weight
        failed = call.failed() | ~torch.isfinite(flat).all(dim=1)
        gradient = torch.where(problem.movable & ~(failed | nothing)[:, None], flat, 0.0)
        arrives = None
        if came is not None:
            arrives = ((came != 0).cpu() & problem.movable).any(dim=1)
    return _Pass(gradient, failed, arrives, kept)

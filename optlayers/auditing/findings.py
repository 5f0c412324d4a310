"""What is found of one rule: all of it is numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING as NOTHING
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, final

import cvxpy as cp
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.auditing.estimate import Cosine, Estimate, Sent
from optlayers.auditing.passes import BackwardPasses
from optlayers.auditing.problem import Problem
from optlayers.calls.call_part import GradientUnit
from optlayers.layer import OptLayer
from optlayers.rules.base import AbstractRule

__all__ = ["Findings", "Steps", "compare", "name_of", "steps_along"]

CUT_OFF = 0.99
"""A step of which less than this is left is cut off."""
SURE = 2.0
"""A product is told from 0 by so many standard errors."""
ROUNDING = 1e-6
"""Losses that differ by less, relative to their size, are the same."""


@final
@dataclass(frozen=True)
class Steps:
    """What comes of steps of one length against a gradient: shares of the instances whose loss is lower, and higher,
    and the mean change of the loss."""

    lower: float
    higher: float
    change: float


@final
@dataclass(frozen=True)
class Findings:
    """What is found of the gradients of a rule. Shares are of the instances that have an answer.

    Attributes
    ----------
    name : the rule, with the settings that are not their defaults.
    rule : the rule itself.
    skipped : why the rule could not be asked, None where it could; nothing else is known then.
    gradient_unit : what gradients that come in are measured in, see :class:`optlayers.OptLayer`.
    failed : the share of all instances without an answer or without a gradient.
    zero : of the instances to which the loss sends a gradient, the share that gets 0 for every part.
    arrives : the share to which the loss sends a gradient at all, None where that is not seen.
    cosine : by scale, the cosine between the gradient (of rules that draw its mean) and that of the smoothed loss.
    single : by scale, the cosine of a single run, for rules that draw.
    along, against : the shares whose gradient points along the truth, and against it, by 2 standard errors.
    bias : the distance of the mean gradient from the truth in units of the truth's norm, NaN where it is not known.
    variance : the mean squared distance of a run from the mean, in units of the mean's squared norm; 0 without draws.
    steps : by length, what comes of steps against the gradient.
    cut_off : the share whose step ends at a side of the polytope, None for rules that take no steps.
    kept : the mean part of a step that is left, None likewise.
    own : for smooth forward maps, the cosine with the gradient of the loss of what the rule sends forward.
    milliseconds : of a pass forward and backward through layer and loss, the median.
    """

    name: str
    rule: AbstractRule
    skipped: str | None = None
    gradient_unit: GradientUnit = None
    failed: float = 0.0
    zero: float = torch.nan
    arrives: float | None = None
    cosine: Mapping[float, Cosine] = field(default_factory=dict)
    single: Mapping[float, Cosine] = field(default_factory=dict)
    along: float = torch.nan
    against: float = torch.nan
    bias: float = torch.nan
    variance: float = torch.nan
    steps: Mapping[float, Steps] = field(default_factory=dict)
    cut_off: float | None = None
    kept: float | None = None
    own: Cosine | None = None
    milliseconds: float = torch.nan


def compare(
    name: str,
    layer: OptLayer,
    passes: BackwardPasses,
    truths: Mapping[float, Estimate],
    scale: float | None,
    own: Estimate | None,
    steps: Mapping[float, Steps],
) -> Findings:
    """The numbers of a layer's rule; ``scale`` is that of the truth for what is found once, None where all is noise."""
    rule, sent, answered = layer.rule, passes.sent, ~passes.failed
    nothing = (sent.gradients == 0.0).all(dim=2).all(dim=0)
    asked = answered if passes.arrives is None else answered & passes.arrives
    cosine = {s: truth.cosine(sent, answered & truth.known) for s, truth in truths.items()}
    single = {}
    if rule.draws:
        single = {s: truth.cosine(sent, answered & truth.known, single=True) for s, truth in truths.items()}
    along = against = bias = torch.nan
    if scale is not None:
        truth = truths[scale]
        rows = answered & truth.known
        product, error = truth.along(sent)
        sizes = sent.mean.norm(dim=1) * truth.mean.norm(dim=1)
        sure = torch.maximum(SURE * error, 1e-9 * sizes)
        along, against = _share(product > sure, rows), _share(product < -sure, rows)
        bias = _bias(truth, sent, product, rows)
    kept = passes.kept
    moved = None if kept is None else answered & torch.isfinite(kept)
    return Findings(
        name=name,
        rule=rule,
        gradient_unit=layer.gradient_unit,
        failed=1.0 - float(answered.to(torch.float64).mean()),
        zero=_share(nothing, asked) if bool(asked.any()) else float(nothing[answered].all()),
        arrives=None if passes.arrives is None else _share(passes.arrives, answered),
        cosine=cosine,
        single=single,
        along=along,
        against=against,
        bias=bias,
        variance=_variance(sent, answered) if rule.draws else 0.0,
        steps=steps,
        cut_off=None if kept is None or moved is None else _share(kept < CUT_OFF, moved),
        kept=None if kept is None or moved is None else float(kept[moved].mean()),
        own=None if own is None else own.cosine(sent, answered & own.known),
        milliseconds=passes.milliseconds,
    )


def _share(which: Bool[Tensor, " instances"], rows: Bool[Tensor, " instances"]) -> float:
    """Of the instances ``rows``, NaN where there are none."""
    return float(which[rows].to(torch.float64).mean())


def _bias(truth: Estimate, sent: Sent, product: Tensor, rows: Tensor) -> float:
    assert truth.norm2 is not None
    total = float(truth.norm2[rows].sum())
    if not (total > 0.0 and sent.resolved(rows)):
        return torch.nan
    apart = float((sent.norm2 - 2.0 * product + truth.norm2)[rows].sum())
    return math.sqrt(max(apart, 0.0) / total)


def _variance(sent: Sent, rows: Tensor) -> float:
    mean, spread = float(sent.norm2[rows].sum()), float(sent.variance[rows].sum())
    if spread == 0.0:
        return 0.0 if mean > 0.0 else torch.nan
    return spread / mean if mean > 0.0 else torch.inf


def steps_along(
    problem: Problem,
    gradients: Float64[Tensor, "runs instances size"],
    rows: Bool[Tensor, " instances"],
    lengths: Mapping[float, Float64[Tensor, " instances"]],
) -> dict[float, Steps]:
    """What comes of steps of these lengths against gradients, for the instances ``rows``; where a gradient is 0, there
    is none. Lengths are norms, for every instance its own."""
    norm = torch.linalg.vector_norm(gradients, dim=2, keepdim=True)
    unit = gradients / torch.where(norm > 0.0, norm, 1.0)
    found = {}
    for length, mine in lengths.items():
        after = problem.losses_at(problem.numbers - mine[:, None] * unit)
        change = torch.where(norm[:, :, 0] > 0.0, after - problem.losses, 0.0)
        there = torch.isfinite(change) & rows
        near = ROUNDING * (problem.losses.abs() + after.abs())
        lower, higher = ((sign * change > near)[there].to(torch.float64).mean() for sign in (-1.0, 1.0))
        found[length] = Steps(float(lower), float(higher), float(change[there].mean()))
    return found


def name_of(value: Any) -> str:
    """A rule with the settings that are not their defaults."""
    if isinstance(value, cp.Parameter):
        return str(value.name())
    if not is_dataclass(value) or isinstance(value, type):
        return repr(value)
    settings = list[str]()
    for spec in fields(value):
        mine = getattr(value, spec.name)
        default = spec.default
        if spec.default_factory is not NOTHING:
            default = spec.default_factory()
        first = not settings and spec is fields(value)[0] and is_dataclass(mine)
        if default is NOTHING or (first and not _same(mine, default)):
            settings.append(name_of(mine))
        elif not _same(mine, default):
            settings.append(f"{spec.name}={name_of(mine)}")
    return f"{type(value).__name__}({', '.join(settings)})"


def _same(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # arrays and expressions are compared entry by entry, and have no one truth value
        return False

"""Advice in words, from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from optlayers.auditing.estimate import Estimate
from optlayers.auditing.findings import Findings
from optlayers.rules.imle import IMLE
from optlayers.rules.interpolation import Interpolation
from optlayers.rules.lpgd import LPGD
from optlayers.rules.spigot import AdaptiveStep

__all__ = ["advice_on", "advice_on_truth"]

MANY = 0.5
"""Shares from here on are worth a word,"""
AGAINST = 0.2
"""and those that point the wrong way from here on."""
NOISE = 10.0
"""Draws whose variance is so many times the squared mean are mostly noise."""
SURE = 2.0
"""A cosine is told from 0, and from another one, by so many standard errors."""
OWN = 0.95
"""A gradient of the rule's own loss has a cosine of 1 with it; from here on it passes."""


def percent(share: float) -> str:
    """A share in words; never 100 % for less than all, nor 0 % for more than nothing."""
    rounded = round(100.0 * share)
    if share < 1.0 and rounded == 100:
        rounded = 99
    if share > 0.0 and rounded == 0:
        return "less than 1 %"
    return f"{rounded} %"


def advice_on(found: Findings, truths: Mapping[float, Estimate], scale: float | None) -> list[str]:
    """What the numbers of one rule say, in the order of their weight."""
    name, said = found.name, list[str]()
    if found.skipped is not None:
        return []
    if found.failed > 0.0:
        said.append(f"{name} has no answer or no gradient in {percent(found.failed)} of instances.")
    if math.isnan(found.zero):
        return said
    if found.arrives is not None and found.arrives == 0.0 and found.zero == 1.0:
        return [*said, f"The loss sends no gradient to {name}: use a rule that works with losses, ScoreFunction()."]
    if found.zero == 1.0:
        return [*said, f"{name} sends nothing back: its gradient is 0 in all instances.{_stronger(found)}"]
    if found.zero >= MANY:
        said.append(f"{name} is 0 in {percent(found.zero)} of instances.{_stronger(found)}")
    if found.cut_off is not None and found.cut_off >= MANY:
        said.append(_cut_off(found))
    cosine = found.cosine.get(scale) if scale is not None else None
    if cosine is not None and cosine.value + 2.0 * cosine.error < 0.0:
        said.append(
            f"{name} points against the truth: cosine {cosine.value:.2f} ± {cosine.error:.2f}, against it in "
            f"{percent(found.against)} of instances."
        )
    elif found.against >= AGAINST:
        said.append(
            f"{name} points against the truth in {percent(found.against)} of instances, and along it in "
            f"{percent(found.along)}."
        )
    elif cosine is not None and abs(cosine.value) < 2.0 * cosine.error:
        said.append(f"{name} is not told from a random direction: cosine {cosine.value:.2f} ± {cosine.error:.2f}.")
    worst = [length for length, steps in found.steps.items() if steps.higher > max(steps.lower, 0.05)]
    if worst:
        length = worst[0]
        steps = found.steps[length]
        said.append(
            f"Steps of length {length:g} against the gradient of {name} raise the loss in {percent(steps.higher)} of "
            f"instances and lower it in {percent(steps.lower)}."
        )
    if found.variance > NOISE:
        times = "without bound" if found.variance == float("inf") else f"{found.variance:.0f} times its squared mean"
        said.append(f"{name} is mostly noise: the variance of a draw is {times}.{_more(found)}")
    if found.own is not None and found.own.value + 2.0 * found.own.error < OWN:
        said.append(
            f"{name} is not the gradient of the loss of what it sends forward: cosine {found.own.value:.2f} ± "
            f"{found.own.error:.2f}."
        )
    return said


def _stronger(found: Findings) -> str:
    """What makes a difference quotient see other structures."""
    if isinstance(found.rule, (Interpolation, LPGD, IMLE)):
        return f" Raise strength (it is {found.rule.strength:g}){_or_unit(found)}."
    return ""


def _or_unit(found: Findings) -> str:
    if found.gradient_unit is not None or found.rule.needs_objective:
        return ""
    return ', or use gradient_unit="norm"'


def _more(found: Findings) -> str:
    samples = getattr(found.rule, "samples", None)
    return "" if samples is None else f" Raise samples (they are {samples})."


def _cut_off(found: Findings) -> str:
    size = getattr(found.rule, "step_size", None)
    start = (
        f"{found.name}'s step is cut off in {percent(found.cut_off or 0.0)} of instances, which keep "
        f"{percent(found.kept or 0.0)} of it on average"
    )
    if isinstance(size, AdaptiveStep):
        return f"{start}: it adapts to keep {percent(size.target)}."
    known = "" if size is None else f" (it is {size:g})"
    return f"{start}: lower step_size{known}, let it adapt by AdaptiveStep(){_or_unit(found)}."


def advice_on_truth(
    truths: Mapping[float, Estimate], scale: float | None, samples: int, found: Sequence[Findings]
) -> list[str]:
    """What there is to say of the truth itself, and which rule comes nearest to it."""
    noisy = [f"{s:g}" for s, truth in truths.items() if not truth.resolved]
    said = []
    if scale is None:
        said.append(
            f"Nothing is known of the truth: at all scales ({', '.join(noisy)}) its error is larger than the gradient "
            f"of the smoothed loss. Raise samples (they were {samples}), give more instances or larger scales; or no "
            "score matters to this loss."
        )
    elif noisy:
        said.append(
            f"At scale {', '.join(noisy)} the truth is not told from its own error: no cosines there. Raise samples "
            f"(they were {samples})."
        )
    if scale is not None and truths[scale].relative_error > 1.0:
        said.append(
            f"At scale {scale:g} the truth of a single instance is mostly error ({truths[scale].relative_error:.1f} "
            "times its size). Cosines are over all instances and allow for that; shares along and against it count the "
            "instances that are sure."
        )
    if scale is not None:
        said += _nearest(found, scale)
    return said


def _nearest(found: Sequence[Findings], scale: float) -> list[str]:
    """The rules whose cosine is the largest, as far as errors tell, and which of them costs the least."""
    known = [f for f in found if f.skipped is None and not math.isnan(f.cosine[scale].value)]
    along = [f for f in known if f.cosine[scale].value > SURE * f.cosine[scale].error]
    if len(known) < 2 or not along:
        return []
    along.sort(key=lambda f: -f.cosine[scale].value)
    best = along[0].cosine[scale]
    first = [
        f for f in along if best.value - f.cosine[scale].value <= SURE * math.hypot(best.error, f.cosine[scale].error)
    ]
    told = [
        f"{f.name} (cosine {f.cosine[scale].value:.2f} ± {f.cosine[scale].error:.2f}, {_time(f)} a pass)" for f in first
    ]
    if len(first) == 1:
        return [f"Nearest to the truth at scale {scale:g} is {told[0]}."]
    cheapest = min(first, key=lambda f: f.milliseconds)
    return [
        f"Nearest to the truth at scale {scale:g} are {', '.join(told[:-1])} and {told[-1]}: their cosines are not "
        f"told apart by 2 standard errors. The cheapest of them is {cheapest.name}."
    ]


def _time(found: Findings) -> str:
    return f"{found.milliseconds:.{1 if found.milliseconds < 10.0 else 0}f} ms"

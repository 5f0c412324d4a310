"""Whether all vertices of the rows are integral, and which inequalities are missing where they are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from optlayers.reporting.fractional import Sampled, Witness, point_text
from optlayers.reporting.missing import MissingInequality
from optlayers.reporting.rows import expression
from optlayers.reporting.statement import EXHAUSTIVE, LEFT_OUT, PROOF, ROUNDING, Section, Statement, sampled

__all__ = ["Integrality", "ends_of", "section_of_missing", "section_of_verdict"]

SHOWN = 3
"""So many lines of one kind are printed."""
TERMS = 12
"""Scores of so many parts are printed."""


@final
@dataclass(frozen=True)
class Integrality:
    """What is known of the vertices of the rows."""

    integral: bool | None
    why: str
    known: str
    witnesses: tuple[Witness, ...]
    samples: Sampled | None


def section_of_verdict(verdict: Integrality, parts: tuple[str, ...], what: str) -> Section:
    """Integrality in words: proven, refuted by a vertex, or unknown after so many objectives."""
    told: list[Statement] = []
    samples = verdict.samples
    if verdict.integral:
        told.append(Statement(f"{what} integral: {verdict.why}", verdict.known))
    elif verdict.integral is False:
        told.append(Statement(f"{what} not integral: {verdict.why}", verdict.known))
    else:
        count = 0 if samples is None else samples.random + samples.structured
        told.append(Statement(f"whether {what} integral is not known: {verdict.why}", sampled(count)))
    for witness in verdict.witnesses[:SHOWN]:
        known = PROOF if witness.proved else ROUNDING
        scores = _scores_of(witness, parts)
        what_it_is, best = ("vertex", "alone best") if witness.basis else ("point", "best")
        text = f"a fractional {what_it_is}: {witness.text(parts)} (the others are 0), {best} for {scores}"
        told.append(Statement(text, known))
    if samples is not None and samples.random:
        share = samples.fractional / samples.random
        told.append(Statement(f"{share:.0%} of random objectives end in a fractional point", sampled(samples.random)))
        if samples.gap is not None:
            scores = _shown_scores(samples.gap_scores, parts)
            told.append(
                Statement(
                    f"integrality gap: the rows promise up to {samples.gap:.1%} more than integer points have, next to "
                    f"the spread of these, for {scores}",
                    sampled(samples.gaps_of, "fractional ones"),
                )
            )
    facts = {
        "integral": verdict.integral,
        "why": verdict.why,
        "known": verdict.known,
        "fractional_vertices": [
            {"point": [str(v) for v in w.point], "scores": list(w.scores), "proved": w.proved}
            for w in verdict.witnesses
        ],
        "share_fractional": None if samples is None or not samples.random else samples.fractional / samples.random,
        "integrality_gap": None if samples is None else samples.gap,
        "gap_scores": [] if samples is None else list(samples.gap_scores),
    }
    return Section("Integrality", tuple(told), facts)


def _scores_of(witness: Witness, parts: tuple[str, ...]) -> str:
    count = sum(s != 0 for s in witness.scores)
    if count > TERMS:
        return f"scores of {count} parts (facts['fractional_vertices'] has them)"
    return expression(dict(enumerate(witness.scores)), parts) if witness.scores else "some scores"


def _shown_scores(scores: Sequence[float], parts: tuple[str, ...]) -> str:
    if len(set(scores)) == 1 and scores[0] == 1.0:
        return "the sum of all parts"
    if all(s == int(s) for s in scores) and sum(s != 0 for s in scores) <= TERMS:
        return f"the scores {expression({j: int(s) for j, s in enumerate(scores)}, parts)}"
    return "random scores (facts['gap_scores'] has them)"


def section_of_missing(
    missing: Sequence[MissingInequality],
    facets: int | None,
    dimension: int | None,
    all_proved: bool,
    open_ones: int,
    why_not: str,
    parts: tuple[str, ...],
) -> Section:
    """The missing inequalities by their kinds, each with lines to paste."""
    told: list[Statement] = []
    by_kind: dict[str, list[MissingInequality]] = {}
    for one in missing:
        by_kind.setdefault(one.kind, []).append(one)
    if facets is not None:
        known = EXHAUSTIVE if not open_ones else f"{facets - open_ones} of {facets} looked at"
        equations = sum(m.is_equation for m in missing)
        hull = f"the hull of all integer points has dimension {dimension} and {_many(facets, 'facet')}"
        shortened = any(len(ones) > SHOWN for ones in by_kind.values())
        all_of_them = "all of report.missing, of which some are below," if shortened else "the lines below"
        if missing:
            told.append(
                Statement(
                    f"{hull}, of which the rows lack {sum(not m.is_equation for m in missing)}"
                    + (f", and {_many(equations, 'equation')}" * bool(equations))
                    + (f"; with {all_of_them} the polytope is integral" * (not open_ones)),
                    known,
                )
            )
        elif not open_ones:
            told.append(
                Statement(
                    f"nothing: {hull}, and the rows imply all of them",
                    EXHAUSTIVE if all_proved else f"{EXHAUSTIVE}, {ROUNDING}",
                )
            )
        if open_ones:
            told.append(Statement(f"of {_many(open_ones, 'facet')} it is open whether the rows imply them", LEFT_OUT))
    elif missing:
        told.append(Statement("cuts that all integer points satisfy (Chvátal-Gomory); they may be no facets", PROOF))
    for kind, ones in by_kind.items():
        lines = "".join(f"\n      {m.line}," for m in ones[:SHOWN])
        more = f"\n      # and {len(ones) - SHOWN} more of this kind: report.missing" if len(ones) > SHOWN else ""
        first = ones[0].cuts_off
        point = point_text(first, parts, exact=ones[0].known == PROOF) if first else ""
        cut_off = f"\n      # the first one cuts off {point} (the others are 0)" if first else ""
        told.append(Statement(f"{len(ones)} with {kind}:{lines}{more}{cut_off}", ones[0].known))
    if why_not:
        told.append(Statement(why_not, LEFT_OUT if facets is None else EXHAUSTIVE))
    facts = {"missing": [m.to_dict() for m in missing], "facets": facets, "hull_dimension": dimension}
    return Section("What is missing", tuple(told), facts)


def ends_of(points: np.ndarray | None) -> Callable[[np.ndarray], tuple[float, float] | None]:
    """The best and the worst value of an objective over integer points, where these are known."""
    if points is None or len(points) == 0:
        return lambda _: None

    def ends(objective: np.ndarray) -> tuple[float, float]:
        values = points @ objective
        return float(values.max()), float(values.min())

    return ends


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"

"""What a report is asked for: a declaration or a family, and how much time it takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from optlayers.batch.sizes import named_size
from optlayers.compilation.compiled_once import compiled_of_size, compiled_once
from optlayers.compiled_oracle import name_of
from optlayers.family import Family
from optlayers.polytope import Polytope
from optlayers.reporting.clock import Clock
from optlayers.reporting.polytope_report import PolytopeReport
from optlayers.reporting.study import Study, theta_of

__all__ = ["report"]

EFFORTS = {"quick": (2.5, 64), "normal": (8.0, 256), "thorough": (120.0, 4096)}
"""Seconds behind the compilation of the declaration, and random objectives."""


def report(
    polytope_or_family: Polytope | Family,
    *,
    sizes: Sequence[int | tuple[int, ...]] | None = None,
    seed: int = 0,
    effort: str = "normal",
    **parameters: Any,
) -> PolytopeReport:
    """What a declaration says: its dimension, whether it is integral, what it lacks, what it costs, what it supports.

    Of the rows as they are declared (without integers, where variables are integers): the equations that all points
    satisfy, rows that may be left out, bounds, blocks and parts that may change places; whether all vertices are
    integral, or a fractional one with the scores that lead there. Of the integer points: the inequalities that the rows
    lack, as lines of cvxpy to paste; all of them for up to 9 parts or 500 points, for larger polytopes a cut for every
    fractional vertex that was found. And which solver answers, in which time and memory, which rules, losses and
    distributions work, and which numbers may cause trouble.

    Parameters
    ----------
    polytope_or_family : the declaration. Of a family the first of the ``sizes`` is looked at, and the costs are those
        of all of them.
    sizes : sizes of a family, an int or a tuple for each.
    seed : of the objectives that are drawn.
    effort : ``"quick"``, ``"normal"`` or ``"thorough"``: some 3, 10 or 120 seconds at most, and 64, 256 or 4096 random
        objectives. What there was no time for is named in ``left_out``. Ctrl-C ends a report with what is known so far.
    parameters : a value for every parameter of the declaration, of one instance.

    Returns
    -------
    PolytopeReport : printed, a page of text in which every statement says how it is known.

    Raises
    ------
    TypeError : for what is no polytope; missing or unexpected parameters.
    DeclarationError : when the declaration does not compile, is empty or unbounded.
    ValueError : for another effort; a family without sizes; parameters that leave no point, or an unbounded set.

    Examples
    --------
    >>> import optlayers as ol, polytopes
    >>> found = ol.report(polytopes.matching(3), effort="quick")
    >>> found.dimension, found.integral
    (4, True)
    """
    if not isinstance(polytope_or_family, (Polytope, Family)):
        raise TypeError(f"report takes a Polytope or a Family, but got {type(polytope_or_family).__name__}")
    if effort not in EFFORTS:
        raise ValueError(f"effort is one of {', '.join(map(repr, EFFORTS))}, but got {effort!r}")
    seconds, samples = EFFORTS[effort]
    chosen = _sizes(polytope_or_family, sizes)
    with Clock(seconds, steps=8) as clock:
        if isinstance(polytope_or_family, Family):
            first = chosen[0]
            compiled = compiled_of_size(polytope_or_family, None, None, *first)
            subject = f"Report on {name_of(polytope_or_family.factory)}, size {named_size(first)}"
        else:
            compiled = compiled_once(polytope_or_family, None, None)
            subject = f"Report on a polytope of shape {polytope_or_family.shape}"
        study = Study(compiled, theta_of(compiled, parameters), dict(parameters), clock, samples, seed)
        study.refuse_improper()
        clock.restart()
        family = polytope_or_family if isinstance(polytope_or_family, Family) else None
        return study.made(subject, family, chosen)


def _sizes(given: Polytope | Family, sizes: Sequence[int | tuple[int, ...]] | None) -> list[tuple[int, ...]]:
    if isinstance(given, Polytope):
        if sizes is not None:
            raise ValueError("sizes= are those of a Family; a Polytope has one shape: leave sizes out")
        return []
    if sizes is None or len(sizes) == 0:
        raise ValueError(f"{given} needs sizes= to report on, such as sizes=[5] or sizes=[(3, 4), (6, 8)]")
    found = [size if isinstance(size, tuple) else (size,) for size in sizes]
    for size in found:
        if not all(isinstance(k, (int, np.integer)) and not isinstance(k, bool) for k in size):
            raise ValueError(f"sizes are integers or tuples of them, but got {size!r}")
    return [tuple(int(k) for k in size) for size in found]

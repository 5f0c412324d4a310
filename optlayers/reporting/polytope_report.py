"""The report on a polytope: text, a page in a notebook, plain data."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any, final

from optlayers.reporting.missing import MissingInequality
from optlayers.reporting.statement import Section

__all__ = ["PolytopeReport"]

_NOTHING: dict[str, Any] = {}


@final
@dataclass(frozen=True, repr=False)
class PolytopeReport:
    """What :func:`optlayers.report` found. Printed, it is a page of text; in a notebook, a page with headings.

    Every statement says in brackets how it is known: ``proof`` (arithmetic without rounding), ``exhaustive``
    (all integer points were listed and looked at), ``sampled`` with the number of samples, ``tried``, ``measured``, or
    ``to rounding`` (a computation in floating point that nothing proves).

    Examples
    --------
    >>> import cvxpy as cp, optlayers as ol
    >>> x = cp.Variable(3, nonneg=True)
    >>> triangle = ol.report(ol.Polytope(x, [x[0] + x[1] <= 1, x[0] + x[2] <= 1, x[1] + x[2] <= 1]), effort="quick")
    >>> triangle.dimension, triangle.integral, [inequality.line for inequality in triangle.missing]
    (3, False, ['x[0] + x[1] + x[2] <= 1'])
    """

    subject: str
    sections: tuple[Section, ...]
    missing: tuple[MissingInequality, ...] = ()
    """The inequalities that the declaration lacks: all of them for small polytopes, cuts for larger ones."""
    left_out: tuple[str, ...] = ()
    """What was not done, and why."""
    seconds: float = field(default=0.0, compare=False)

    @property
    def facts(self) -> dict[str, Any]:
        """What all sections say, as plain data by their names."""
        return {name: value for section in self.sections for name, value in section.facts.items()}

    @property
    def dimension(self) -> int | None:
        """The dimension of what the rows describe; None where it was not found."""
        return self.facts.get("dimension")

    @property
    def integral(self) -> bool | None:
        """Whether all vertices of the rows are integral; None where it is not known."""
        return self.facts.get("integral")

    @property
    def redundant(self) -> tuple[str, ...]:
        """The constraints that others imply, by the names that error messages use."""
        return tuple(self.facts.get("redundant", ()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may go wrong with the numbers, and what to change."""
        return tuple(self.facts.get("warnings", ()))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, which json takes: ``subject``, ``facts``, ``statements`` by section, ``left_out``."""
        return {
            "subject": self.subject,
            "seconds": round(self.seconds, 3),
            "facts": self.facts,
            "statements": {s.title: [{"text": t.text, "known": t.known} for t in s.statements] for s in self.sections},
            "left_out": list(self.left_out),
        }

    def __str__(self) -> str:
        lines = [self.subject]
        for section in self.sections:
            if section.statements:
                lines += ["", section.title, *(f"  - {statement}" for statement in section.statements)]
        if self.left_out:
            lines += ["", "Left out", *(f"  - {text}" for text in self.left_out)]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        pieces = [f"<h3>{html.escape(self.subject)}</h3>"]
        for section in self.sections:
            if section.statements:
                pieces.append(f"<h4>{html.escape(section.title)}</h4>")
                told = "".join(
                    f"<li>{_lines(statement.text)} <small>[{html.escape(statement.known)}]</small></li>"
                    for statement in section.statements
                )
                pieces.append(f"<ul>{told}</ul>")
        if self.left_out:
            left = "".join(f"<li>{html.escape(text)}</li>" for text in self.left_out)
            pieces.append(f"<h4>Left out</h4><ul>{left}</ul>")
        return "".join(pieces)


def _lines(text: str) -> str:
    """Lines to paste stand in a block of their own."""
    first, *lines = text.split("\n")
    block = "\n".join(line.strip() for line in lines)
    return html.escape(first) + (f"<pre>{html.escape(block)}</pre>" if lines else "")

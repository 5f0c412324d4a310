"""The report on a polytope: text, a page in a notebook, plain data."""

from __future__ import annotations

import base64
import html
import io
import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, final

import numpy as np

from optlayers.plots.structure import structure
from optlayers.polytope import Polytope
from optlayers.reporting.missing import MissingInequality
from optlayers.reporting.statement import Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    polytope: Polytope = field(compare=False)
    """What was looked at; of a family the first size."""
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

    def plot(self, ax: Axes | None = None, *, vertex: int = 0, **options: Any) -> Axes:
        """A fractional vertex as the mixture of parts that it is, drawn as the declaration draws structures.

        Parameters
        ----------
        ax : matplotlib Axes to draw on; by default those of a new figure (``ax.figure``).
        vertex : which of ``facts["fractional_vertices"]``.
        options : what :func:`optlayers.plots.structure` takes, such as ``words=``. Bars have the names of parts in the
            report, ``x[0]`` and so on, unless there are others.

        Returns
        -------
        Axes : those that were drawn on.

        Raises
        ------
        ValueError : where no fractional vertex is known, or not so many.
        ImportError : without matplotlib: ``pip install 'optlayers[plots]'``.
        """
        found = self.facts.get("fractional_vertices", [])
        if not 0 <= vertex < len(found):
            raise ValueError(f"{len(found)} fractional vertices are known, so there is nothing to draw at {vertex}")
        shape = self.polytope.shape
        point = [float(Fraction(part)) for part in found[vertex]["point"][: math.prod(shape)]]
        if len(shape) == 1 and self.polytope.draw is None:
            options.setdefault("words", [f"x[{part}]" for part in range(shape[0])])
        drawn = structure(self.polytope, np.array(point).reshape(shape), ax=ax, **options)
        several = f"one of {len(found)} fractional vertices that were found"
        drawn.set_title("the fractional vertex that was found" if len(found) == 1 else several, fontsize=9)
        return drawn

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
            if section.facts.get("fractional_vertices"):
                pieces.append(self._picture())
        if self.left_out:
            left = "".join(f"<li>{html.escape(text)}</li>" for text in self.left_out)
            pieces.append(f"<h4>Left out</h4><ul>{left}</ul>")
        return "".join(pieces)

    def _picture(self) -> str:
        """A fractional vertex, where there are pictures: with matplotlib, of matrices, vectors and what brings one."""
        try:
            figure: Any = self.plot().figure
        except (ImportError, ValueError):
            return ""
        stream = io.BytesIO()
        figure.savefig(stream, format="png", dpi=90)
        data = base64.b64encode(stream.getvalue()).decode()
        return f'<img alt="a fractional vertex" src="data:image/png;base64,{data}">'


def _lines(text: str) -> str:
    """Lines to paste stand in a block of their own."""
    first, *lines = text.split("\n")
    block = "\n".join(line.strip() for line in lines)
    return html.escape(first) + (f"<pre>{html.escape(block)}</pre>" if lines else "")

"""How many vertices there are: counted, or bounded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from optlayers.form.standard import StandardForm
from optlayers.integer.diagram import DecisionDiagram, TooWide, compiled_diagram
from optlayers.integer.program import NoIntegers, integer_program
from optlayers.reporting.missing import Facets
from optlayers.reporting.rationals import Elimination
from optlayers.reporting.rows import Rows
from optlayers.reporting.statement import EXHAUSTIVE, PROOF, TRIED, Section, Statement
from optlayers.solvers.batch import make_instances

__all__ = ["diagram_of", "most_least_faces", "most_vertices", "vertices_among", "width_of"]


COMPARISONS = 3 * 10**8
"""Incidences of points, twice, and facets that are compared."""


def diagram_of(form: StandardForm, theta: np.ndarray, bounds: np.ndarray | None, limit: int) -> dict[str, Any] | str:
    """The decision diagram of the integer points of a form: its nodes, its width, how many points; or why there is
    none. ``bounds`` of the parts stand in where none are declared."""
    instances = make_instances(form, theta[None], None)
    width = form.unslacked
    entries = form.matrix.data if instances.matrix is None else instances.matrix[0]
    low, high = instances.lower[0, :width].copy(), instances.upper[0, :width].copy()
    if bounds is not None:
        low[: form.scored] = np.maximum(low[: form.scored], bounds[0, form.kept])
        high[: form.scored] = np.minimum(high[: form.scored], bounds[1, form.kept])
    try:
        program = integer_program(form, instances.rhs[0], entries, low, high)
        diagram = compiled_diagram(program, limit)
    except (NoIntegers, TooWide) as error:
        return str(error)
    return {"nodes": diagram.nodes, "width": width_of(diagram), "points": diagram.count}


def width_of(diagram: DecisionDiagram) -> int:
    """The most nodes of one variable, where arcs that skip it have nodes on the way, one for each node ahead.

    Variables that no node decides are 0 in all points, and are not counted.
    """
    if diagram.nodes < 2:
        return diagram.nodes
    columns = diagram.column[:-1]
    _, first, layer = np.unique(columns, return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[layer]  # nodes of one variable follow each other
    last = int(place.max())
    begins = np.append(place, last + 1)
    np.minimum.at(begins, diagram.child, np.repeat(place, np.diff(diagram.start)[: len(place)]) + 1)
    change = np.bincount(begins, minlength=last + 2)
    change[1:] -= np.bincount(np.append(place, last), minlength=last + 1)[: last + 1]
    return int(np.cumsum(change[: last + 1]).max())


def vertices_among(points: np.ndarray, facets: Facets, dimension: int) -> int | None:
    """How many of some points are vertices of their hull: those on facets that no other point is on all of.

    A vertex is on as many facets as there are dimensions, at least. None where too many points would be compared.
    """
    on = points @ facets.coefficients.T == facets.sides
    on = on[on.sum(axis=1) >= dimension]
    if len(on) ** 2 * max(1, on.shape[1]) > COMPARISONS:
        return None
    return sum(int(on[:, mine].all(axis=1).sum() == 1) for mine in on)


def most_vertices(dimension: int, inequalities: int) -> int:
    """The most vertices that a polytope of some dimension with so many facets can have (McMullen, 1970)."""
    d, m = dimension, inequalities
    if d == 0 or m <= d:
        return 1
    return math.comb(m - (d + 1) // 2, m - d) + math.comb(m - (d + 2) // 2, m - d)


def most_least_faces(rows: Rows) -> int:
    """The most vertices of a shadow: each is that of a least face, at which so many inequalities hold as equalities as
    the rank of all rows exceeds that of the equalities."""
    elimination = Elimination(range(rows.columns))
    for i in np.flatnonzero(rows.equality).tolist():
        elimination.add(rows.row(i))
    before = len(elimination.rows)
    loose = np.flatnonzero(~rows.equality).tolist()
    for i in sorted(loose, key=lambda i: len(rows.row(i))):
        if len(elimination.rows) == rows.columns:
            break
        elimination.add(rows.row(i))
    return math.comb(len(loose), len(elimination.rows) - before)


def section_of(
    counted: int | None,
    how: str,
    whose: str,
    found: int,
    how_found: str,
    most: int | None,
    diagram: dict[str, Any] | str | None,
) -> Section:
    """Numbers of vertices, and the width of the diagram, in words. ``whose`` vertices they are is said."""
    told = []
    if counted is not None:
        told.append(Statement(f"{whose} has {_many(counted, 'vertex', 'vertices')}", how))
    else:
        if most is not None:
            size = _many(most, "vertex", "vertices") if most < 10**9 else f"10^{len(str(most)) - 1} and some vertices"
            told.append(Statement(f"{whose} has at most {size}, by the number of inequalities", PROOF))
        if found:
            told.append(
                Statement(f"{whose} has at least {_many(found, 'vertex', 'vertices')}: as many are known", how_found)
            )
    if isinstance(diagram, dict):
        nodes = f"{_many(diagram['nodes'], 'node', 'nodes')}, at most {diagram['width']} for one variable"
        points = f"{_many(diagram['points'], 'integer point', 'integer points')} of the declared rows"
        told.append(
            Statement(f"a decision diagram has {nodes} (arcs that skip it counted), for the {points}", EXHAUSTIVE)
        )
    elif diagram is not None:
        told.append(Statement(f"no decision diagram: {diagram}", TRIED))
    facts = {"vertices": counted, "at_least": found, "at_most": most, "diagram": diagram}
    return Section("Vertices", tuple(told), facts)


def _many(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}"

"""Declarations with a name: choices, subsets, matchings, transport, paths, balls, and shadows of known points."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from fuzzing.declarations import Declaration, Line, Term, literal
from fuzzing.recipes import Drawn
from fuzzing.writing import INSTANCES, Writer, dyadic

__all__ = ["STRUCTURES", "structured"]


NAMES = ("simplex", "cube", "subset", "matching", "partial_matching", "rectangular_matching")
"""Of the catalogue."""


def structured(generator: np.random.Generator) -> Drawn:
    """One of them, sometimes with a row that never binds."""
    writer = Writer(generator)
    names = list(STRUCTURES)
    declared = STRUCTURES[names[generator.integers(len(names))]](writer)
    if isinstance(declared, Declaration):
        theta = writer.theta() if writer.parameters else np.zeros((INSTANCES, 0))
        return declared, theta
    if writer.happens(0.15):
        writer.without_limit("cp.sum(x)" if writer.happens(0.5) else "x")
    theta = writer.theta() if writer.parameters else np.zeros((INSTANCES, 0))
    return writer.finish(), theta


def _repeated(values: np.ndarray | float) -> np.ndarray:
    """An array, flat, once for every instance."""
    flat = np.asarray(values, dtype=float).reshape(-1)
    return np.tile(flat, (INSTANCES, 1))


def _nonnegative(writer: Writer, shape: tuple[int, ...], most: float | None = None) -> None:
    """The structure, its entries from 0 to ``most``, said in one of several ways."""
    size = int(np.prod(shape))
    low = [Line({j: Term(-1.0)}, Term(0.0)) for j in range(size)]
    high = [] if most is None else [Line({j: Term(1.0)}, Term(most)) for j in range(size)]
    way = writer.generator.integers(3)
    if way == 0:
        writer.variable("x", shape, "nonneg=True", low)
    elif way == 1 and most is not None:
        writer.variable("x", shape, f"bounds=[0.0, {most!r}]", low + high)
        return
    else:
        writer.variable("x", shape)
        writer.at_least("x", _repeated(np.zeros(size)), False)
    if most is not None:
        writer.at_most("x", _repeated(np.full(size, most)), False)


def simplex(writer: Writer) -> None:
    """One of several, or of several groups."""
    sizes = writer.generator.integers(1, 6, writer.generator.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))
    _nonnegative(writer, (int(sizes.sum()),), 1.0 if writer.happens(0.4) else None)
    ends = [0, *np.cumsum(sizes).tolist()]
    total = writer.generator.choice([0.5, 1.0, 2.0], (INSTANCES, 1), p=[0.1, 0.8, 0.1])
    total = total if writer.happens(0.2) else np.ones((INSTANCES, 1))
    for start, stop in itertools.pairwise(ends):
        text = f"cp.sum(x[{start}:{stop}])" if len(ends) > 2 else "cp.sum(x)"
        most = total if "bounds" not in writer.x.text else np.minimum(total, 1.0)
        if writer.happens(0.7):
            writer.equal(text, most)
        else:
            writer.at_most(text, most)


def subset(writer: Writer) -> None:
    """So many of several; also none of them, or all."""
    n = int(writer.generator.integers(2, 11))
    _nonnegative(writer, (n,), 1.0)
    if writer.happens(0.5):
        values = writer.generator.integers(0, n + 1, (INSTANCES, 1)).astype(float)
    else:
        values = _repeated(float(writer.generator.integers(1, n)))
    if writer.happens(0.25):
        values = np.maximum(values - 0.5, 0.0)
    if writer.happens(0.6):
        writer.equal("cp.sum(x)", values)
    else:
        writer.at_most("cp.sum(x)", values)
    if writer.happens(0.2):
        writer.at_most("cp.cumsum(x)", np.tile(np.arange(1.0, n + 1), (INSTANCES, 1)))


def matching(writer: Writer) -> None:
    """Rows and columns that are matched once, or at most once."""
    rows, columns = (int(v) for v in writer.generator.integers(2, 5, 2))
    if writer.happens(0.5):
        columns = rows
    _nonnegative(writer, (rows, columns), 1.0 if writer.happens(0.2) else None)
    square = rows == columns
    if square and writer.happens(0.7):
        writer.equal("cp.sum(x, axis=0)", _repeated(np.ones(columns)))
        writer.equal("cp.sum(x, axis=1)", _repeated(np.ones(rows)))
    else:
        ends = [("cp.sum(x, axis=0)", columns, rows), ("cp.sum(x, axis=1)", rows, columns)]
        for text, count, others in ends:
            if count <= others and writer.happens(0.5):
                writer.equal(text, _repeated(np.ones(count)))
            else:
                writer.at_most(text, _repeated(np.ones(count)))


def transport(writer: Writer) -> None:
    """Given sums of rows and columns, in numbers that add up, or in decimals that add up but for rounding."""
    rows, columns = (int(v) for v in writer.generator.integers(2, 4, 2))
    _nonnegative(writer, (rows, columns))
    inside = dyadic(writer.generator, 0, 1, (INSTANCES, rows, columns))
    inside = inside if writer.happens(0.6) else np.repeat(inside[:1], INSTANCES, axis=0)
    if writer.happens(0.2):
        writer.kinds.add("rounded sums")
        inside = np.round(inside * 10 + writer.generator.uniform(-0.3, 0.3, inside.shape)) / 10 + 0.1
    writer.chance = max(writer.chance, 0.7)
    sums = inside.sum(axis=2)
    if writer.happens(0.1):
        sums = sums + writer.generator.choice([0.0, 0.5], (INSTANCES, 1))  # more than there is
    writer.equal("cp.sum(x, axis=1)", sums)
    writer.equal("cp.sum(x, axis=0)", inside.sum(axis=1))


def knapsack(writer: Writer) -> None:
    """Weights and a capacity; the capacity may be 0."""
    n = int(writer.generator.integers(2, 8))
    _nonnegative(writer, (n,), 1.0)
    weights = dyadic(writer.generator, 0, 3, n) + 1 / 16
    capacity = dyadic(writer.generator, 0, n, (INSTANCES, 1))
    capacity[writer.generator.random(INSTANCES) < 0.15] = 0.0
    writer.at_most(f"{literal(weights[None])} @ x", capacity, True if writer.happens(0.7) else None)


def capacity(writer: Writer) -> None:
    """A few upper bounds that are parameters: of parts, of all of them, of what comes first; 0 at times."""
    n = int(writer.generator.integers(1, 7))
    way = writer.generator.integers(5)
    if way == 4:
        values = dyadic(writer.generator, 0, 2, (INSTANCES, n)) * (writer.generator.random((INSTANCES, n)) < 0.8)
        writer.parameter("p", values, "nonneg=True" if writer.happens(0.5) else "")
        low = [Line({j: Term(-1.0)}, Term(0.0)) for j in range(n)]
        high = [Line({j: Term(1.0)}, Term(0.0, ((j, 1.0),))) for j in range(n)]
        writer.variable("x", (n,), f"bounds=[np.zeros({n}), p]", low + high)
        if writer.happens(0.5):
            writer.at_most("cp.sum(x)", _repeated(1.0), False)
        return
    _nonnegative(writer, (n,), 1.0)
    text = ("x", "cp.sum(x)", "cp.cumsum(x)", "x[0]")[way]
    entries = len(writer.affine(text))
    values = dyadic(writer.generator, 0, 1, (INSTANCES, entries))
    values[writer.generator.random(INSTANCES) < 0.3] = 0.0
    if writer.happens(0.3):
        values = np.where(writer.generator.random(values.shape) < 0.3, 1.0, values)
    if way != 2 and writer.happens(0.3):
        writer.chance = 1.0
        writer.equal(text, values)
    else:
        writer.at_most(text, values, True)


def path(writer: Writer) -> None:
    """One unit of flow through a small graph without cycles."""
    nodes = int(writer.generator.integers(3, 6))
    arcs = [(a, b) for a, b in itertools.combinations(range(nodes), 2) if b == a + 1 or writer.happens(0.6)]
    _nonnegative(writer, (len(arcs),), 1.0 if writer.happens(0.3) else None)
    ends = np.zeros((nodes, len(arcs)))
    for j, (a, b) in enumerate(arcs):
        ends[a, j], ends[b, j] = 1.0, -1.0
    supply = np.zeros(nodes)
    supply[0], supply[-1] = 1.0, -1.0
    kept = slice(None) if writer.happens(0.6) else slice(0, -1)
    writer.equal(f"{literal(ends[kept])} @ x", _repeated(supply[kept]))


def ball(writer: Writer) -> None:
    """Of a norm that has corners, by itself or with a box."""
    n = int(writer.generator.integers(2, 6))
    writer.variable("x", (n,))
    writer.anchors = np.zeros((1, n))
    rooms = writer.generator.choice([0.5, 1.0, 2.0], (INSTANCES, 1))
    rooms[writer.generator.random(INSTANCES) < 0.1] = 0.0
    writer.at_most("x", _repeated(np.full(n, 2.0)), False)
    writer.at_least("x", _repeated(np.full(n, -2.0)), False)
    for text in ("x", "cp.diff(x)", "cp.cumsum(x)", "x[1:] - x[:-1]")[: int(writer.generator.integers(1, 5))]:
        if len(writer.affine(text)) > 1 or text == "x":
            writer.atom(text, rooms, np.zeros(INSTANCES, int))


def order(writer: Writer) -> None:
    """Numbers that rise, rankings, and numbers that change little."""
    n = int(writer.generator.integers(2, 6))
    if writer.happens(0.4) and n <= 5:
        writer.variable("x", (n,))
        for most in range(1, n):
            total = float(sum(range(n - most + 1, n + 1)))
            _sum_largest(writer, n, most, total)
        writer.equal("cp.sum(x)", _repeated(n * (n + 1) / 2))
        return
    _nonnegative(writer, (n,), 1.0)
    if writer.happens(0.5):
        writer.at_least("cp.diff(x)", _repeated(np.zeros(n - 1)))
    else:
        writer.anchors = np.zeros((1, n))
        writer.atom("x", writer.generator.choice([0.25, 1.0], (INSTANCES, 1)), np.zeros(INSTANCES, int))
        writer.at_most("cp.diff(x)", _repeated(np.full(n - 1, 0.5)))


def _sum_largest(writer: Writer, n: int, most: int, total: float) -> None:
    rows = [np.eye(n)[list(c)].sum(0) for c in itertools.combinations(range(n), most)]
    lines = [Line({int(j): Term(1.0) for j in np.flatnonzero(row)}, Term(total)) for row in rows]
    text = "cp.max(x)" if most == 1 else f"cp.sum_largest(x, {most})"
    writer.add(f"{text} <= {total!r}", lines)


def hull(writer: Writer) -> None:
    """Mixtures of known points, sums of known segments, or what two nonnegative vectors differ by."""
    n, points = int(writer.generator.integers(1, 5)), int(writer.generator.integers(2, 7))
    way = writer.generator.integers(3)
    if way == 2:
        writer.variable("x", (n,))
        low = [Line({n + j: Term(-1.0)}, Term(0.0)) for j in range(2 * n)]
        writer.variable("w", (2 * n,), "nonneg=True", low)
        writer.equal(f"x - w[:{n}] + w[{n}:]", _repeated(np.zeros(n)))
        writer.at_most("cp.sum(w)", writer.generator.choice([0.0, 1.0, 1.5], (INSTANCES, 1), p=[0.1, 0.6, 0.3]))
        return
    writer.variable("x", (n,))
    low = [Line({n + j: Term(-1.0)}, Term(0.0)) for j in range(points)]
    writer.variable("w", (points,), "nonneg=True", low)
    corners = dyadic(writer.generator, -1, 1, (n, points))
    if writer.happens(0.5):
        corners = writer.generator.integers(0, 2, (n, points)).astype(float)
    writer.equal(f"x - {literal(corners)} @ w", _repeated(np.zeros(n)))
    if way == 0:
        writer.equal("cp.sum(w)", _repeated(1.0))
    else:
        writer.at_most("w", _repeated(np.ones(points)), False)


def fixed(writer: Writer) -> None:
    """Parts that the constraints leave no choice, with auxiliary variables beside them."""
    n, points = int(writer.generator.integers(1, 4)), int(writer.generator.integers(1, 5))
    writer.variable("x", (n,))
    low = [Line({n + j: Term(-1.0)}, Term(0.0)) for j in range(points)]
    writer.variable("w", (points,), "nonneg=True", low)
    value = dyadic(writer.generator, 0, 1, n)
    writer.equal("x", _repeated(value))
    if writer.happens(0.7):
        writer.equal("x[0] - 0.5 * cp.sum(w)", _repeated(value[0] - 0.5))
    writer.equal("cp.sum(w)", _repeated(1.0))


def catalogue(writer: Writer) -> Declaration:
    """One that comes with the project, with its compiled oracle."""
    kind = writer.generator.choice(NAMES)
    n = int(writer.generator.integers(1, 6))
    if kind in ("simplex", "cube", "subset"):
        writer.variable("x", (n,))
        made = f"polytopes.{kind}({n})"
        if kind == "subset":
            values = writer.generator.integers(0, n + 1, INSTANCES).astype(float)
            writer.parameter("budget", values)
    else:
        rows, columns = int(writer.generator.integers(1, 4)), int(writer.generator.integers(1, 5))
        columns = rows if kind == "matching" else columns
        writer.variable("x", (rows, columns))
        made = f"polytopes.{kind}({rows})" if kind == "matching" else f"polytopes.{kind}({rows}, {columns})"
    writer.add("x >= 0", [Line({j: Term(-1.0)}, Term(0.0)) for j in range(writer.columns)])
    writer.add("x <= 1", [Line({j: Term(1.0)}, Term(1.0)) for j in range(writer.columns)])
    one = [Term(1.0)]
    if kind == "simplex":
        writer.compare(writer.affine("cp.sum(x)"), "==", one, "1")
    elif kind == "subset":
        writer.compare(writer.affine("cp.sum(x)"), "==", [Term(0.0, ((0, 1.0),))], "budget")
    elif kind != "cube":
        smaller_rows = kind == "matching" or (kind == "rectangular_matching" and rows <= columns)
        smaller_columns = kind == "matching" or (kind == "rectangular_matching" and columns <= rows)
        writer.compare(writer.affine("cp.sum(x, axis=1)"), "==" if smaller_rows else "<=", one * rows, "1")
        writer.compare(writer.affine("cp.sum(x, axis=0)"), "==" if smaller_columns else "<=", one * columns, "1")
    return writer.finish(made_by=made)


STRUCTURES: dict[str, Callable[[Writer], Declaration | None]] = {
    "simplex": simplex,
    "subset": subset,
    "matching": matching,
    "transport": transport,
    "knapsack": knapsack,
    "capacity": capacity,
    "path": path,
    "ball": ball,
    "order": order,
    "hull": hull,
    "fixed": fixed,
    "catalogue": catalogue,
}

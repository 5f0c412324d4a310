"""Random declarations without a name: boxes, equalities, inequalities and atoms around known points."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fuzzing.declarations import Declaration, Line, Term, literal
from fuzzing.writing import INSTANCES, Writer, dyadic

__all__ = ["Drawn", "generic"]

SIZES = np.repeat(np.arange(1, 11), [1, 3, 5, 5, 5, 4, 3, 2, 1, 1])
Drawn = tuple[Declaration, np.ndarray]
"""A declaration, and the values of its parameters per instance."""


def generic(generator: np.random.Generator) -> Drawn:
    """Any mixture of what a declaration can have."""
    writer = Writer(generator)
    low, high = _structure(writer)
    _auxiliary(writer)
    anchors = _anchors(writer, low, high)
    _box(writer, low, high)
    _box_of_auxiliary(writer)
    for _ in range(int(generator.integers(0, 3))):
        _equality(writer, anchors)
    for _ in range(int(generator.integers(1, 4))):
        _inequality(writer, anchors)
    if writer.happens(0.15):
        writer.without_limit(_expression(writer))
    if writer.happens(0.2):
        _weights(writer, anchors)
    if writer.happens(0.04):
        _nothing_left(writer)
    _shake(writer)
    theta = writer.theta() if writer.parameters else np.zeros((INSTANCES, 0))
    return writer.finish(), theta


def _structure(writer: Writer) -> tuple[np.ndarray, np.ndarray]:
    """The scored variable, and the box that its anchors are taken from."""
    generator = writer.generator
    kind = generator.choice(["vector", "matrix", "symmetric", "diag"], p=[0.68, 0.16, 0.09, 0.07])
    reach = float(generator.choice([1.0, 2.0, 3.0, 128.0], p=[0.6, 0.15, 0.15, 0.1]))
    if kind == "vector":
        shape: tuple[int, ...] = (int(generator.choice(SIZES)),)
    elif kind == "matrix":
        shape = tuple(int(v) for v in generator.integers(1, 4, 2))
    else:
        shape = (int(generator.integers(2, 4)),) * 2
    size = int(np.prod(shape))
    low = np.where(generator.random(size) < 0.6, 0.0, -reach) if writer.happens(0.6) else np.zeros(size)
    high = np.full(size, reach)
    attributes, lines = "", []
    if kind == "symmetric":
        attributes, n = "symmetric=True", shape[0]
        low, high = np.zeros(size), np.full(size, reach)
        lines = [_same(i * n + j, j * n + i) for i in range(n) for j in range(i)]
    elif kind == "diag":
        attributes, n = "diag=True", shape[0]
        off = ~np.eye(n, dtype=bool).reshape(-1)
        low, high = np.where(off, 0.0, low), np.where(off, 0.0, high)
        lines = [_is(j, 0.0) for j in np.flatnonzero(off)]
    elif writer.happens(0.35) and np.all(low >= 0):
        attributes, lines = "nonneg=True", [_at_least(j, 0.0) for j in range(size)]
    elif writer.happens(0.4):
        low_text, high_text = literal(low.reshape(shape)), literal(high.reshape(shape))
        attributes = f"bounds=[{low_text}, {high_text}]"
        lines = [_at_least(j, v) for j, v in enumerate(low)] + [_at_most(j, v) for j, v in enumerate(high)]
    writer.variable("x", shape, attributes, lines)
    return low, high


def _auxiliary(writer: Writer) -> None:
    if not writer.happens(0.35):
        return
    size = int(writer.generator.integers(1, 4))
    if writer.happens(0.4):
        writer.variable("w", (size,), "nonneg=True", [_at_least(writer.columns + j, 0.0) for j in range(size)])
    else:
        writer.variable("w", (size,))


def _anchors(writer: Writer, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Points that are inside, and which of them each instance has."""
    generator, count = writer.generator, int(writer.generator.choice([1, 2, 3], p=[0.6, 0.2, 0.2]))
    corners = writer.happens(0.3)
    shape = count, len(low)
    part = generator.choice([0.0, 0.5, 1.0], shape) if corners else dyadic(generator, 0, 1, shape)
    points = low + (high - low) * part
    if "symmetric" in writer.x.text:
        n = writer.x.shape[0]
        square = points.reshape(count, n, n)
        points = (np.tril(square) + np.tril(square, -1).transpose(0, 2, 1)).reshape(count, -1)
    if len(writer.variables) > 1:
        least = 0 if "nonneg" in writer.variables[1].text else -2
        beside = dyadic(generator, least, 2, (count, writer.variables[1].size))
        points = np.concatenate([points, beside], axis=1)
    writer.anchors = points
    return generator.integers(0, count, INSTANCES)


def _box(writer: Writer, low: np.ndarray, high: np.ndarray) -> None:
    """Bounds on every part, as constraints."""
    name, shape, text = writer.x.name, writer.x.shape, writer.x.text
    if "bounds" in text:
        return
    if "diag" in text:
        name, inside = f"cp.diag({name})", np.eye(shape[0], dtype=bool).reshape(-1)
        low, high, shape = low[inside], high[inside], shape[:1]
    if np.all(low == -high) and writer.happens(0.6):
        _absolute(writer, name, high)
        return
    if "nonneg" not in text or writer.happens(0.2):
        writer.at_least(name, np.tile(low, (INSTANCES, 1)), False)
    writer.at_most(name, np.tile(high, (INSTANCES, 1)), None if writer.happens(0.3) else False)


def _absolute(writer: Writer, name: str, high: np.ndarray) -> None:
    affine = writer.affine(name)
    lines = [
        Line({int(j): Term(sign * row[j]) for j in np.flatnonzero(row)}, Term(float(bound)))
        for row, bound in zip(affine.matrix, high, strict=True)
        for sign in (1.0, -1.0)
    ]
    writer.add(f"cp.abs({name}) <= {float(high[0])!r}", lines)


def _box_of_auxiliary(writer: Writer) -> None:
    if len(writer.variables) == 1 or writer.happens(0.1):
        return
    size = writer.variables[1].size
    if writer.happens(0.3):
        rooms = np.ones((INSTANCES, 1))
        writer.atom("w", rooms, np.zeros(INSTANCES, int))
    writer.at_most("w", np.full((INSTANCES, size), 2.0), False)
    if "nonneg" not in writer.variables[1].text:
        writer.at_least("w", np.full((INSTANCES, size), -2.0), False)


def _expressions(writer: Writer) -> list[str]:
    """Affine expressions in the structure, and auxiliary variables where there are any."""
    generator, x = writer.generator, writer.x
    n = x.size
    if len(x.shape) == 1:
        start = int(generator.integers(0, n))
        stop = int(generator.integers(start + 1, n + 1))
        found = ["x", f"x[{start}:{stop}]", "cp.sum(x)", "cp.cumsum(x)", f"cp.sum(x[{start}:{stop}])"]
        if n > 1:
            found += ["cp.diff(x)", "x[1:] - x[:-1]", "cp.diff(x)"]
        if n > 2:
            found.append("cp.diff(x, k=2)")
        if n <= 6:
            factors = literal(generator.integers(-2, 3, (1, 2)).astype(float))
            found.append(f'cp.kron({factors}, cp.reshape(x, ({n}, 1), order="C"))')
    else:
        row, column = (int(generator.integers(0, k)) for k in x.shape)
        found = ["cp.sum(x, axis=0)", "cp.sum(x, axis=1)", "cp.sum(x)", f"x[{row}, :]", f"x[:, {column}]", "x.T"]
        found.append('cp.vec(x, order="F")')
        factors = literal(generator.integers(-1, 3, (2, 1)).astype(float))
        found.append(f"cp.kron({factors}, x)")
        if x.shape[0] == x.shape[1]:
            found += ["cp.trace(x)", "cp.diag(x)"]
    if len(writer.variables) > 1:
        flat = "x" if len(x.shape) == 1 else 'cp.vec(x, order="C")'
        most = min(n, writer.variables[1].size)
        found += [f"cp.hstack([{flat}, w])", f"{flat}[:{most}] - w[:{most}]", f"{flat}[:{most}] + w[:{most}]"]
        found.append(f"cp.sum({flat}) + cp.sum(w)")
    return found


def _expression(writer: Writer) -> str:
    menu = _expressions(writer)
    return menu[writer.generator.integers(len(menu))]


def _flat(writer: Writer) -> str:
    """All columns as a vector."""
    flat = "x" if len(writer.x.shape) == 1 else 'cp.vec(x, order="C")'
    return f"cp.hstack([{flat}, w])" if len(writer.variables) > 1 else flat


def _matrix(writer: Writer, count: int, kinds: tuple[str, ...]) -> np.ndarray:
    generator, width = writer.generator, writer.columns
    kind = generator.choice(kinds)
    if kind == "signs":
        return generator.integers(-1, 2, (count, width)).astype(float)
    if kind == "whole":
        return generator.integers(-3, 4, (count, width)).astype(float)
    normal = generator.standard_normal((count, width))
    return np.round(64 * normal) / 64 if kind == "dyadic" else normal


def _equality(writer: Writer, anchors: np.ndarray) -> None:
    """Rows through the anchors; where these differ, what is at the right is a parameter."""
    generator = writer.generator
    if writer.happens(0.5):
        text = _expression(writer)
    else:
        count = int(generator.integers(1, max(2, writer.columns // 2)))
        matrix = _matrix(writer, count, ("signs", "whole", "dyadic"))
        if writer.happens(0.35):  # a combination of the rows, said again
            matrix = np.vstack([matrix, generator.integers(-1, 2, count).astype(float) @ matrix])
        text = f"{literal(matrix)} @ {_flat(writer)}"
    affine = writer.affine(text)
    if np.linalg.matrix_rank(affine.matrix) >= writer.columns and writer.happens(0.9):
        return  # it would leave a single point
    exact = affine.exact(writer.anchors)
    inside = np.array([[float(v) for v in row] for row in exact])
    if any(v != w for row, near in zip(exact, inside, strict=True) for v, w in zip(row, near, strict=True)):
        return  # numbers at the right would be rounded
    writer.equal(text, inside[anchors])


def _inequality(writer: Writer, anchors: np.ndarray) -> None:
    generator = writer.generator
    kind = generator.choice(["rows", "expression", "atom"], p=[0.4, 0.2, 0.4])
    if kind == "rows":
        count = int(generator.integers(1, 4))
        text = f"{literal(_matrix(writer, count, ('signs', 'whole', 'dyadic', 'normal')))} @ {_flat(writer)}"
    else:
        text = _expression(writer)
        if kind == "atom" and (len(writer.affine(text).shape) != 1 or len(writer.affine(text)) > 6):
            start = int(generator.integers(0, max(1, writer.columns - 4)))
            text = f"{_flat(writer)}[{start}:{min(writer.columns, start + 4)}]"
    entries = len(writer.affine(text))
    size = float(np.abs(writer.anchors).max(initial=1.0))
    rooms = _rooms(generator, entries, size)
    if kind == "atom":
        writer.atom(text, rooms, anchors)
    else:
        writer.bounded_by(text, rooms, anchors)
        if writer.happens(0.2):  # the same once more, with other room: a corner where rows are parallel or the same
            writer.bounded_by(text, rooms * generator.choice([1.0, 2.0]), anchors)


def _rooms(generator: np.random.Generator, entries: int, size: float) -> np.ndarray:
    """Room between anchors and what is allowed: none, some that is exact, or any."""
    kinds: dict[str, Callable[[], np.ndarray]] = {
        "none": lambda: np.zeros((INSTANCES, entries)),
        "exact": lambda: size * dyadic(generator, 0, 1, (INSTANCES, entries)),
        "any": lambda: size * generator.uniform(0, 1, (INSTANCES, entries)),
    }
    return kinds[str(generator.choice(list(kinds), p=[0.3, 0.4, 0.3]))]()


def _weights(writer: Writer, anchors: np.ndarray) -> None:
    """A parameter in the matrix."""
    text = _flat(writer)
    affine = writer.affine(text)
    weights = dyadic(writer.generator, -2, 2, (INSTANCES, len(affine)))
    if writer.happens(0.3):
        weights = np.abs(weights)
    values = np.array([float(w @ writer.anchors[a]) for w, a in zip(weights, anchors, strict=True)])
    kind = writer.generator.choice(["equal", "most", "far"], p=[0.2, 0.5, 0.3])
    if kind == "equal":
        writer.weighted(text, weights, "==", values, True)
    elif kind == "most":
        rooms = _rooms(writer.generator, 1, float(np.abs(writer.anchors).max(initial=1.0)))[:, 0]
        writer.weighted(text, weights, "<=", values + rooms, True)
    else:
        writer.weighted(text, weights, "<=", np.full(INSTANCES, float(np.abs(values).max() * 3 + 5)), False)


def _nothing_left(writer: Writer) -> None:
    """Rows that nothing satisfies, for all instances or for some of them."""
    text = "cp.sum(x)"
    reach = 200.0 * writer.x.size
    if writer.happens(0.5):
        values = np.where(writer.generator.random((INSTANCES, 1)) < 0.4, -reach, reach)
        writer.at_most(text, values, True)
    else:
        writer.at_most(text, np.full((INSTANCES, 1), -reach), False)


def _shake(writer: Writer) -> None:
    """Some instances get other values of a parameter: the edge where nothing is left, or beyond."""
    for parameter, values in zip(writer.parameters, writer.values, strict=True):
        for k in range(INSTANCES):
            if writer.happens(0.03):
                flat = values[k].reshape(-1) if values[k].ndim else values[k : k + 1]
                place = writer.generator.integers(flat.size)
                if np.isfinite(flat[place]):
                    least = 0.0 if "nonneg" in parameter.text else -np.inf
                    flat[place] = max(least, writer.generator.choice([0.0, flat[place] / 2, flat[place] - 1.0]))


def _same(first: int, second: int) -> Line:
    return Line({first: Term(1.0), second: Term(-1.0)}, Term(0.0), equality=True)


def _is(column: int, value: float) -> Line:
    return Line({int(column): Term(1.0)}, Term(value), equality=True)


def _at_least(column: int, value: float) -> Line:
    return Line({int(column): Term(-1.0)}, Term(-float(value)))


def _at_most(column: int, value: float) -> Line:
    return Line({int(column): Term(1.0)}, Term(float(value)))

"""A failing case made smaller while it goes on to fail: one instance, fewer constraints, fewer parts, round numbers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from fuzzing.cases import Case
from fuzzing.declarations import Constraint, Declaration, Line, Parameter, Term, Variable, literal
from fuzzing.exact import Unbounded
from fuzzing.session import Finding, findings

__all__ = ["smallest", "sort_of"]

SECONDS = 6.0
"""So long is a case made smaller."""


def smallest(case: Case, finding: Finding) -> tuple[Case, Finding]:
    """The smallest case at hand with a finding of the same kind, and that finding."""
    end = time.perf_counter() + SECONDS
    best = case, finding

    def fails(candidate: Case) -> bool:
        nonlocal best
        if time.perf_counter() > end:
            return False
        found = _again(candidate, finding)
        if found is not None:
            best = candidate, found
        return found is not None

    fails(case.take([finding.instance]))
    for step in (_fewer_constraints, _as_rows, _fewer_constraints, _fewer_parts, _rounder):
        _descend(lambda: best[0], step, fails)
    return best


def _descend(
    current: Callable[[], Case], step: Callable[[Case], Iterator[Case]], fails: Callable[[Case], bool]
) -> None:
    """Take every step that goes on to fail, until none does."""
    going = True
    while going:
        going = False
        for candidate in step(current()):
            if fails(candidate):
                going = True
                break


def _again(case: Case, finding: Finding) -> Finding | None:
    """A finding of the same kind in another case."""
    try:
        for other in findings(case, finding.question):
            same = other.verdict.kind == "wrong" and other.part == finding.part
            if same and sort_of(other.verdict.reason) == sort_of(finding.verdict.reason):
                return other
    except (Unbounded, ValueError, IndexError, AssertionError, ZeroDivisionError):
        return None  # what is left is no polytope that could be judged
    return None


def sort_of(reason: str) -> str:
    """The words of a reason, without its numbers."""
    return " ".join(word for word in reason.split()[:6] if not any(letter.isdigit() for letter in word))


def _fewer_constraints(case: Case) -> Iterator[Case]:
    declaration = case.declaration
    if declaration.made_by is not None:
        return
    for position in reversed(range(len(declaration.constraints))):
        yield _pruned(replace(case, declaration=replace(declaration.without(position), vertices=None)))


def _pruned(case: Case) -> Case:
    """Without the parameters that nothing mentions."""
    declaration = case.declaration
    used = {
        place
        for line in declaration.lines
        for term in (line.bound, *line.coefficients.values())
        for place, _ in term.parameters
    }
    kept = [p for p in declaration.parameters if used & set(range(p.start, p.start + p.size))]
    if len(kept) == len(declaration.parameters):
        return case
    places, parameters = [], []
    for p in kept:
        parameters.append(Parameter(p.name, p.shape, p.text, len(places), p.unlimited))
        places += range(p.start, p.start + p.size)
    moved = {old: new for new, old in enumerate(places)}

    def term(given: Term) -> Term:
        return Term(given.constant, tuple((moved[place], factor) for place, factor in given.parameters))

    def line(given: Line) -> Line:
        return Line({c: term(t) for c, t in given.coefficients.items()}, term(given.bound), given.equality)

    variables = tuple(replace(v, lines=tuple(map(line, v.lines))) for v in declaration.variables)
    constraints = tuple(replace(c, lines=tuple(map(line, c.lines))) for c in declaration.constraints)
    fewer = replace(declaration, variables=variables, parameters=tuple(parameters), constraints=constraints)
    return replace(case, declaration=fewer, theta=case.theta[:, places])


def _as_rows(case: Case) -> Iterator[Case]:
    """Every row by itself, with its numbers, in a vector of parts."""
    declaration = case.declaration
    if len(case) > 1 or declaration.made_by is not None or _is_plain(declaration):
        return
    rows = declaration.rows(case.theta[0].tolist())
    matrix = np.array([[float(a) for a in row.coefficients] for row in rows])
    bounds = [float(row.bound) for row in rows]
    yield _of_rows(case, matrix, bounds, [row.equality for row in rows], declaration.columns, declaration.size)


def _is_plain(declaration: Declaration) -> bool:
    """Whether it is one of those that are made here: a row per constraint, and nothing else."""
    attributes = any(v.lines for v in declaration.variables)
    rows = all(c.text.startswith("np.array(") and len(c.lines) == 1 for c in declaration.constraints)
    return not declaration.parameters and not attributes and rows


def _of_rows(case: Case, matrix: np.ndarray, bounds: list[float], equal: list[bool], columns: int, size: int) -> Case:
    variables = [Variable("x", (size,), f"cp.Variable({size})", 0)]
    text = "x"
    if columns > size:
        variables.append(Variable("w", (columns - size,), f"cp.Variable({columns - size})", size))
        text = "cp.hstack([x, w])"
    constraints = []
    for row, bound, equality in zip(matrix, bounds, equal, strict=True):
        line = Line({int(j): Term(float(row[j])) for j in np.flatnonzero(row)}, Term(bound), equality)
        sense = "==" if equality else "<="
        constraints.append(Constraint(f"{literal(row)} @ {text} {sense} {literal(bound)}", (line,)))
    declaration = Declaration(tuple(variables), (), tuple(constraints), case.declaration.kinds)
    return replace(case, declaration=declaration, theta=np.zeros((len(case), 0)), parameter_dtype="float64")


def _fewer_parts(case: Case) -> Iterator[Case]:
    """One part less, of a declaration by rows: it is 0."""
    declaration = case.declaration
    if declaration.size < 2 or not _is_plain(declaration) or len(case) > 1:
        return
    matrix, bounds, equal = _arrays(declaration)
    for part in reversed(range(declaration.size)):
        kept = [j for j in range(declaration.columns) if j != part]
        some = [j for j in range(declaration.size) if j != part]
        rows = np.abs(matrix[:, kept]).max(axis=1, initial=0.0) > 0
        smaller = replace(
            case,
            scores=case.scores[:, some],
            masked=None if case.masked is None else case.masked[:, some],
            gradients=None if case.gradients is None else case.gradients[:, some],
        )
        chosen = np.flatnonzero(rows)
        yield _of_rows(
            smaller,
            matrix[chosen][:, kept],
            [bounds[i] for i in chosen],
            [equal[i] for i in chosen],
            declaration.columns - 1,
            declaration.size - 1,
        )


def _arrays(declaration: Declaration) -> tuple[np.ndarray, list[float], list[bool]]:
    matrix = np.zeros((len(declaration.constraints), declaration.columns))
    for i, constraint in enumerate(declaration.constraints):
        for column, term in constraint.lines[0].coefficients.items():
            matrix[i, column] = term.constant
    bounds = [c.lines[0].bound.constant for c in declaration.constraints]
    return matrix, bounds, [c.lines[0].equality for c in declaration.constraints]


def _rounder(case: Case) -> Iterator[Case]:
    """Numbers with fewer digits."""
    for digits in (1, 2):
        with np.errstate(over="ignore", invalid="ignore"):
            scores = np.array([[_brief(v, digits) for v in row] for row in case.scores])
        if not np.array_equal(scores, case.scores):
            yield replace(case, scores=scores)
        if case.gradients is not None:
            gradients = np.array([[_brief(v, digits) for v in row] for row in case.gradients])
            if not np.array_equal(gradients, case.gradients):
                yield replace(case, gradients=gradients)
        if _is_plain(case.declaration):
            matrix, bounds, equal = _arrays(case.declaration)
            shorter = np.array([[_brief(v, digits) for v in row] for row in matrix])
            if not np.array_equal(matrix, shorter):
                yield _of_rows(case, shorter, bounds, equal, case.declaration.columns, case.declaration.size)
            for i, bound in enumerate(bounds):
                if _brief(bound, digits) != bound:
                    fewer = [_brief(b, digits) if j == i else b for j, b in enumerate(bounds)]
                    yield _of_rows(case, matrix, fewer, equal, case.declaration.columns, case.declaration.size)


def _brief(value: float, digits: int) -> float:
    return float(f"{value:.{digits}g}")

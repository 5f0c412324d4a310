"""Oracles called from compiled code, through the address of a function.

An address says nothing of what is behind it, so kernels are compiled once for all oracles (and come from numba's
cache), while the oracle itself is compiled on its own. The function takes three addresses: a table of the addresses of
its arguments, the shapes of these one after the other, and the room for the flat structure. It returns :data:`FOUND`,
:data:`NOTHING` (no structure does without the forbidden parts) or the number of a complaint.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from optlayers.solvers.kernels.lanes import jit, part, stay_apart

__all__ = ["FOUND", "NOTHING", "as_pointer", "ask", "fill_scores", "maximize", "sides", "violation", "violations"]

FOUND = 0
NOTHING = 1
SCORES, THETA, CONSTANT = 0, 1, 2
"""Where an argument comes from: the scores or the parameters of the instance, or an array that all share."""


@intrinsic
def as_pointer(_: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(_: Any, builder: Any, __: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


@intrinsic
def _enter(_: Any, function: Any, arguments: Any, shapes: Any, out: Any) -> Any:
    def generate(_: Any, builder: Any, __: Any, values: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word, word, word])
        return builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])

    return types.int64(types.int64, types.int64, types.int64, types.int64), generate


@part
def ask(call, scores, theta, addresses, out):  # type: ignore[no-untyped-def]
    """One question: ``call`` is the oracle, ``addresses`` room for its arguments; NaN everywhere is no structure."""
    stay_apart()
    for position in range(len(call.source)):
        base = call.place[position]
        if call.source[position] == SCORES:
            base = scores.ctypes.data + 8 * base
        elif call.source[position] == THETA:
            base = theta.ctypes.data + 8 * base
        addresses[position] = base
    code = _enter(call.address[0], addresses.ctypes.data, call.shapes.ctypes.data, out.ctypes.data)
    if code == FOUND and len(out) and np.isnan(out[0]):
        return NOTHING
    return code


@part
def violation(rows, k, out, room):  # type: ignore[no-untyped-def]
    """By how much a flat structure violates the rows and bounds of instance ``k``; NaN if it holds one."""
    stay_apart()
    a, b = k if len(rows.matrix) > 1 else 0, k if len(rows.rhs) > 1 else 0
    low, high = k if len(rows.lower) > 1 else 0, k if len(rows.upper) > 1 else 0
    worst = 0.0
    for i in range(len(room)):
        room[i] = 0.0
    for i in range(len(out)):
        value = out[i]
        if np.isnan(value):
            return np.nan
        j = rows.column[i]
        if j < 0:
            worst = max(worst, abs(value - rows.fixed[i]))
            continue
        worst = max(worst, rows.lower[low, j] - value, value - rows.upper[high, j])
        if value != 0.0:
            for e in range(rows.start[j], rows.start[j + 1]):
                room[rows.row[e]] += rows.matrix[a, e] * value
    for i in range(len(room)):
        left = rows.rhs[b, i] - room[i]
        if not rows.loose[i]:
            worst = max(worst, abs(left) if i < rows.equalities[0] else -left)
    return worst


@part
def fill_scores(rows, k, scores, forbidden, out):  # type: ignore[no-untyped-def]
    """The scores of instance ``k`` for every entry of the structure: 0 where it is fixed, -inf where forbidden."""
    stay_apart()
    for i in range(len(out)):
        j = rows.column[i]
        out[i] = 0.0 if j < 0 else scores[k, j]
        if j >= 0 and len(forbidden) and forbidden[k, j]:
            out[i] = -np.inf


@part
def sides(rows, k):  # type: ignore[no-untyped-def]
    """The size of right-hand sides that violations are relative to."""
    largest = 1.0
    b = k if len(rows.rhs) > 1 else 0
    for i in range(rows.rhs.shape[1]):
        largest = max(largest, 1.0 + abs(rows.rhs[b, i]))
    return largest


@jit
def maximize(call, rows, scores, forbidden, theta, which, point, code, residual, relative):  # type: ignore[no-untyped-def]
    """Ask for the instances ``which``; ``point`` ``(batch, size)`` gets the flat structures."""
    full = np.empty(point.shape[1])
    addresses = np.empty(len(call.source), np.int64)
    room = np.empty(rows.rhs.shape[1])
    for k in which:
        fill_scores(rows, k, scores, forbidden, full)
        code[k] = ask(call, full, theta[k], addresses, point[k])
        residual[k], relative[k] = np.nan, np.inf
        if code[k] == FOUND:
            residual[k] = violation(rows, k, point[k], room)
            if residual[k] < np.inf:  # and no NaN
                relative[k] = residual[k] / sides(rows, k)


@jit
def violations(rows, structures, residual):  # type: ignore[no-untyped-def]
    """By how much each of some flat structures violates its rows and bounds."""
    room = np.empty(rows.rhs.shape[1])
    for k in range(len(structures)):
        residual[k] = violation(rows, k, structures[k], room)

"""Why a declaration or an instance cannot be solved, in the user's words."""

from __future__ import annotations

from dataclasses import replace

import cvxpy as cp
import numpy as np
import scipy.optimize
import scipy.sparse as sp
from jaxtyping import Float64

from optlayers.form.names import scored_name
from optlayers.form.standard import AffineMap, StandardForm
from optlayers.polytope import Polytope
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import CONSISTENT, rounding_of
from optlayers.solvers.highs import Highs
from optlayers.solvers.kernels import implied
from optlayers.solvers.plan import plan_of

__all__ = ["explain_infeasible", "improper_set", "is_bounded", "is_rounding", "unbounded_entry"]

VIOLATION = 1e-7
"""Constraints that miss by less than this, relative to their right-hand sides, do not contradict each other."""


def unbounded_entry(form: StandardForm) -> int | None:
    """A flat entry of the structure that can grow without bound, or None.

    A polyhedron is bounded on the structure exactly when its recession cone ``A d = 0`` (d >= 0 where only the lower
    bound is finite, and so on) moves no scored column. The cone is cut at 1, and HiGHS looks for a direction in it.
    """
    open_low, open_high = ~np.isfinite(form.lower.constant), ~np.isfinite(form.upper.constant)
    scored = np.arange(form.columns) < form.scored
    if not form.matrix_is_constant or not ((open_low | open_high) & scored).any():
        return None  # with parameters in the matrix, instances tell
    one_sided = scored & (open_low ^ open_high)
    both_sided = np.flatnonzero(scored & open_low & open_high)
    directions = np.zeros((1 + 2 * len(both_sided), form.scored))
    directions[0] = np.where(one_sided, np.where(open_high, 1.0, -1.0), 0.0)[: form.scored]
    directions[1 + 2 * np.arange(len(both_sided)), both_sided] = 1.0
    directions[2 + 2 * np.arange(len(both_sided)), both_sided] = -1.0
    cone = _recession_cone(form, open_low, open_high)
    nothing = np.zeros((len(directions), form.parameter_count))
    sides = cone.rhs(nothing), cone.lower(nothing), cone.upper(nothing)
    instances = Instances(directions, None, *sides, None, None, nothing)
    low, high = np.array(sides[1][:1], order="C"), np.array(sides[2][:1], order="C")
    entries, rhs = cone.matrix.data[None], np.array(sides[0][:1], order="C")
    implied.tighten(*plan_of(cone).by_row, entries, np.zeros(cone.rows, dtype=bool), rhs, low, high)
    if all((np.abs(bound[0, : form.scored]) <= VIOLATION).all() for bound in (low, high)):
        return None  # one row after the other shows it, as a rule
    solver = Highs()
    answer = solver.maximize(solver.prepare(cone), instances)
    moves = np.abs(np.nan_to_num(answer.point[:, : form.scored])).max(axis=0, initial=0.0)
    loose = np.flatnonzero((moves > VIOLATION) & (open_low | open_high)[: form.scored])
    return int(form.kept[loose[0]]) if len(loose) else None


def is_bounded(form: StandardForm, instances: Instances, k: int) -> bool:
    """Whether the polytope of instance ``k`` is bounded on what is scored, if it is not empty.

    It is when no direction that all constraints allow moves a scored column. Of a cone with such a direction some is
    better than none for almost any scores or for their opposite.
    """
    matrix = sp.csr_array(instances.matrix_of(form, k))
    limited = np.isfinite(instances.rhs[k])
    low, high = np.isfinite(instances.lower[k]), np.isfinite(instances.upper[k])
    bounds = np.stack([np.where(low, 0.0, -1.0), np.where(high, 0.0, 1.0)], axis=1)
    costs = np.zeros(form.columns)
    costs[: form.scored] = np.random.default_rng(0).standard_normal(form.scored)
    sides = np.zeros(int(limited.sum()))
    found = [
        scipy.optimize.linprog(c, A_eq=matrix[limited], b_eq=sides, bounds=bounds, method="highs")
        for c in (costs, -costs)
    ]
    return all(one.status == 0 and -one.fun <= VIOLATION for one in found)


def improper_set(polytope: Polytope) -> str | None:
    """Why a convex set without parameters is empty or unbounded, by cvxpy; None if it is neither."""
    x = polytope.variable
    for entry in np.ndindex(x.shape):
        for sign in (1.0, -1.0):
            objective = sign * x[entry] if x.shape else sign * x
            problem = cp.Problem(cp.Maximize(objective), list(polytope.constraints))
            problem.solve(solver=cp.CLARABEL, canon_backend=cp.SCIPY_CANON_BACKEND)
            if problem.status in (cp.INFEASIBLE, cp.INFEASIBLE_INACCURATE):
                return "the declared set is empty: cvxpy finds no point that satisfies its constraints"
            if problem.status in (cp.UNBOUNDED, cp.UNBOUNDED_INACCURATE):
                flat = int(np.ravel_multi_index(entry, x.shape)) if x.shape else 0
                return f"the declaration is unbounded: {scored_name(polytope, flat)} can move without limit"
    return None


def _recession_cone(form: StandardForm, open_low: np.ndarray, open_high: np.ndarray) -> StandardForm:
    empty = sp.csr_array((form.columns, form.parameter_count))
    return replace(
        form,
        rhs=AffineMap(np.zeros(form.rows), sp.csr_array((form.rows, form.parameter_count))),
        lower=AffineMap(np.where(open_low, -1.0, 0.0), empty),
        upper=AffineMap(np.where(open_high, 1.0, 0.0), empty),
    )


def explain_infeasible(form: StandardForm, instances: Instances, k: int) -> str | None:
    """Which constraints of instance ``k`` contradict each other and by how much; None if none do.

    The least sum of violations is a linear program, and the rows with a dual value in it are a proof (Farkas) that
    they cannot hold together.
    """
    with np.errstate(invalid="ignore"):
        crossed = instances.lower[k] - instances.upper[k]
    if (crossed > 0).any():
        return _explain_crossed(form, instances, k, int(np.nanargmax(crossed)))
    theta = instances.parameters[k : k + 1]
    broken = form.consistency(theta)[0]
    size = np.abs(form.consistency.constant) + abs(form.consistency.matrix) @ np.abs(theta[0])
    if (np.abs(broken) > CONSISTENT * size).any():
        worst = int(np.argmax(np.abs(broken)))
        names = _parameters_in(form, form.consistency.matrix[[worst]])
        return f"{form.consistency_names[worst]} contradicts other equalities by {abs(broken[worst]):.3g}{names}"
    return _explain_rows(form, instances, k)


def _explain_crossed(form: StandardForm, instances: Instances, k: int, column: int) -> str:
    entry = form.column_name(column)
    low, high = instances.lower[k, column], instances.upper[k, column]
    if instances.forbidden is not None and instances.forbidden[k, column]:
        return f"{entry} is forbidden by its score, but {form.bound_names[column][0]} asks for >= {low:.6g}"
    names = _parameters_in(form, form.lower.matrix[[column]], form.upper.matrix[[column]])
    digits = 6 if f"{low:.6g}" != f"{high:.6g}" else 17
    return (
        f"{entry} must be >= {low:.{digits}g} by {form.bound_names[column][0]} and <= {high:.{digits}g} by "
        f"{form.bound_names[column][1]}{names}"
    )


def is_rounding(
    form: StandardForm, instances: Instances, k: int, precision: Float64[np.ndarray, " parameters"]
) -> bool:
    """Whether the constraints of instance ``k`` can hold together when its parameters move by their rounding.

    Each right-hand side and each bound moves by the roundings of its own parameters, and a right-hand side by what
    those of the entries of its row can do within the bounds of the columns, where these are finite. ``precision`` is
    the machine epsilon of the dtype in which each entry of θ came.
    """
    theta = instances.parameters[k : k + 1]
    if precision.max(initial=0.0) <= np.finfo(np.float64).eps:
        return False
    theta = np.where(np.isfinite(theta), theta, 0.0)  # a limit that is infinite is not rounded
    rhs, low, high = (rounding_of(part, theta, precision)[0] for part in (form.rhs, form.lower, form.upper))
    if not form.matrix_is_constant:
        entries = rounding_of(AffineMap(form.matrix.data, form.matrix_map), theta, precision)[0]
        far = np.maximum(np.abs(instances.lower[k]), np.abs(instances.upper[k]))
        moved = entries * np.where(np.isfinite(far), far, 0.0)[form.entry_column]
        rhs = rhs + np.bincount(
            form.matrix.indices, np.where(np.diff(form.matrix_map.indptr) > 0, moved, 0.0), form.rows
        )
    if instances.row_scale is not None:
        rhs = rhs * instances.row_scale[k]
    if instances.forbidden is not None:
        low, high = (np.where(instances.forbidden[k], 0.0, moved) for moved in (low, high))
    limited = np.flatnonzero(np.isfinite(instances.rhs[k]))
    if form.columns + len(limited) == 0:
        return True  # nothing is left that could contradict anything but the parameters themselves
    columns = np.stack([instances.lower[k] - low, instances.upper[k] + high], axis=1)
    result = scipy.optimize.linprog(
        np.zeros(form.columns + len(limited)),
        A_eq=sp.hstack([sp.csr_array(instances.matrix_of(form, k))[limited], sp.eye_array(len(limited))], format="csc"),
        b_eq=instances.rhs[k, limited],
        bounds=np.concatenate([columns, np.stack([-rhs[limited], rhs[limited]], axis=1)]),
        method="highs",
    )
    return bool(result.status == 0)


def _explain_rows(form: StandardForm, instances: Instances, k: int) -> str | None:
    matrix = sp.csr_array(instances.matrix_of(form, k))
    limited = np.flatnonzero(np.isfinite(instances.rhs[k]))  # a row without a limit contradicts nothing
    rows, columns, rhs = len(limited), form.columns, instances.rhs[k, limited]
    elastic = sp.hstack([matrix[limited], sp.eye_array(rows), -sp.eye_array(rows)], format="csc")
    bounds = np.concatenate(
        [
            np.stack([instances.lower[k], instances.upper[k]], axis=1),
            np.tile([0.0, np.inf], (2 * rows, 1)),
        ]
    )
    # Each violation counts relative to its own right-hand side.
    costs = np.concatenate([np.zeros(columns), np.tile(1.0 / (1.0 + np.abs(rhs)), 2)])
    if rows == 0:
        return None
    result = scipy.optimize.linprog(costs, A_eq=elastic, b_eq=rhs, bounds=bounds, method="highs")
    if result.status != 0 or result.fun <= VIOLATION:
        return None
    unit = form.row_scale if instances.row_scale is None else form.row_scale * instances.row_scale[k]
    missing = float(np.sum(result.x[columns:] / np.tile(unit[limited], 2)))
    guilty = limited[np.abs(result.eqlin.marginals) * (1.0 + np.abs(rhs)) > VIOLATION]
    pushed = np.flatnonzero(np.abs(result.lower.marginals + result.upper.marginals)[:columns] > VIOLATION)
    named = [form.row_names[i] for i in guilty]
    named += [n for j in pushed for n in form.bound_names[j] if n not in ("a slack", "no constraint")]
    named = list(dict.fromkeys(named))
    maps = [form.rhs.matrix[guilty], form.lower.matrix[pushed], form.upper.matrix[pushed]]
    masked = ""
    if instances.forbidden is not None:
        parts = [form.entry_name(int(form.kept[j])) for j in pushed if instances.forbidden[k, j]]
        masked = f", with {', '.join(parts[:5])}{' …' if len(parts) > 5 else ''} forbidden" if parts else ""
    return (
        f"{', '.join(named[:4])}{' …' if len(named) > 4 else ''} cannot hold together{masked}: "
        f"they miss by {missing:.3g} in all{_parameters_in(form, *maps)}"
    )


def _parameters_in(form: StandardForm, *maps: sp.csr_array) -> str:
    """The names of the parameters that enter some rows, ready to be appended to a message."""
    used = np.unique(np.concatenate([sp.csr_array(m).indices for m in maps])) if maps else np.zeros(0)
    names = [s.name for s in form.parameters if ((used >= s.start) & (used < s.start + s.size)).any()]
    return f" (parameters involved: {', '.join(names)})" if names else ""

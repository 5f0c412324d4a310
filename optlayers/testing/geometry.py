"""Whether points lie in a declared polytope, how far from it, and whether they are vertices of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cvxpy as cp
import numpy as np
import scipy.optimize
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optlayers.batch.entries import CPU, Entries, batch_of
from optlayers.bound.base import by_name
from optlayers.common.tensors import moved
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.form.compile import form_without_rows
from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.solvers.batch import make_instances
from optlayers.solvers.separation import Separation
from optlayers.variables import is_integer

__all__ = ["are_vertices", "contains", "distance", "distances", "is_vertex"]


def contains(
    polytope: Polytope, points: Float[Tensor, "*batch_and_shape"], *, tolerance: float = 1e-6, **parameters: Any
) -> Bool[Tensor, "*batch"]:
    """Whether points lie in the polytope, asked of the declaration itself.

    No array of this library is involved: cvxpy looks for values of the auxiliary variables that put a point of the
    polytope within ``tolerance`` of each given one (in the maximum norm).

    Parameters
    ----------
    polytope : the declaration.
    points : ``(*batch, *shape)``.
    tolerance : how far from the polytope a point may lie.
    parameters : a tensor per declared parameter, ``shape`` for all points or ``(*batch, *shape)`` for each its own.

    Returns
    -------
    ``(*batch,)``, boolean.

    Raises
    ------
    ValueError : points or parameters of another shape.
    """
    return distance(polytope, points, **parameters) <= tolerance


def distance(polytope: Polytope, points: Tensor, **parameters: Any) -> Tensor:
    """Distance of points to the polytope in the maximum norm, asked of the declaration itself, through cvxpy.

    Parameters
    ----------
    polytope : the declaration.
    points : ``(*batch, *shape)``.
    parameters : a tensor per declared parameter, ``shape`` for all points or ``(*batch, *shape)`` for each its own.

    Returns
    -------
    ``(*batch,)``; inf where the polytope is empty.

    Raises
    ------
    ValueError : points or parameters of another shape.
    """
    batch, entries = batch_of(points, polytope.shape), Entries(form_without_rows(polytope))
    flat = moved(points.detach(), (math.prod(batch), *polytope.shape), torch.float64, CPU)
    values = by_name(entries.parameters, entries.theta(parameters, batch))
    return distances(polytope, [polytope.variable], [flat], values).reshape(batch)


def distances(
    polytope: Polytope, variables: Sequence[cp.Variable], points: Sequence[Tensor], values: Mapping[str, Tensor]
) -> Tensor:
    """Distances of points to the set of values of some variables, ``(points, *shape)`` of each; and of parameters.

    Where variables are integers, to the convex hull of these values; where the declaration brings constraints on
    demand, they are asked for.
    """
    if polytope.has_integers or polytope.separate is not None:
        return _distances_to_hull(polytope, variables, points, values)
    centers = [cp.Parameter(variable.shape) for variable in variables]
    gaps = [cp.max(cp.abs(variable - center)) for variable, center in zip(variables, centers, strict=True)]
    problem = cp.Problem(cp.Minimize(cp.max(cp.hstack(gaps))), list(polytope.constraints))
    found = torch.empty(len(points[0]), dtype=torch.float64, device="cpu")
    for k in range(len(found)):
        for center, part in zip(centers, points, strict=True):
            center.value = part[k].numpy()
        for parameter in polytope.parameters:
            parameter.value = values[parameter.name()][k].numpy()
        value = problem.solve(solver=cp.CLARABEL, canon_backend=cp.SCIPY_CANON_BACKEND, **_PRECISE)
        found[k] = float("inf") if value is None else float(value)
    return found


def _distances_to_hull(
    polytope: Polytope, variables: Sequence[cp.Variable], points: Sequence[Tensor], values: Mapping[str, Tensor]
) -> Tensor:
    """By mixing integer points, which are brought one by one: the one that is farthest along what separates the hull of
    those that are there from the point (Dantzig and Wolfe, 1960). cvxpy asks HiGHS for them."""
    slopes = [cp.Parameter(variable.shape) for variable in variables]
    gain = sum(cp.sum(cp.multiply(slope, variable)) for slope, variable in zip(slopes, variables, strict=True))
    search = cp.Problem(cp.Maximize(gain), list(polytope.constraints))
    ends = np.cumsum([variable.size for variable in variables])[:-1]

    brought: list[cp.Constraint] = []

    def farthest(slope: np.ndarray) -> np.ndarray | None:
        for parameter, part in zip(slopes, np.split(slope, ends), strict=True):
            parameter.value = part.reshape(parameter.shape)
        for _ in range(ROUNDS):
            problem = cp.Problem(search.objective, [*search.constraints, *brought]) if brought else search
            problem.solve(solver=cp.HIGHS, mip_rel_gap=0.0, mip_abs_gap=0.0)
            if problem.status == cp.INFEASIBLE:
                return None
            further = [] if polytope.separate is None else _violated(polytope)
            if not further:
                return np.concatenate([np.asarray(variable.value, dtype=float).reshape(-1) for variable in variables])
            brought.extend(further)
        raise AssertionError(f"{Separation(polytope)} still returned violated inequalities after {ROUNDS:,} rounds")

    found = torch.empty(len(points[0]), dtype=torch.float64, device="cpu")
    for k in range(len(found)):
        brought.clear()
        for parameter in polytope.parameters:
            parameter.value = values[parameter.name()][k].numpy()
        point = np.concatenate([part[k].numpy().reshape(-1) for part in points])
        found[k] = _distance_to_hull(farthest, point)
    return found


def _violated(polytope: Polytope) -> list[cp.Constraint]:
    """What the values of the variables violate of the constraints that a declaration brings on demand."""
    variables = (polytope.variable, *polytope.scored)
    values = [np.asarray(variable.value, dtype=float) for variable in variables]
    values = [np.where(is_integer(v), np.round(value), value) for v, value in zip(variables, values, strict=True)]
    point = np.concatenate([value.reshape(-1) for value in values])
    theta = np.concatenate([np.zeros(0), *(np.asarray(p.value, dtype=float).reshape(-1) for p in polytope.parameters)])
    found: list[cp.Constraint] = []
    for cut in Separation(polytope).cuts(point, theta):
        if cut.violation(point) > BROUGHT:
            parts = np.split(cut.coefficients, np.cumsum([v.size for v in variables])[:-1])
            terms = [cp.sum(cp.multiply(c.reshape(v.shape), v)) for c, v in zip(parts, variables, strict=True)]
            found.append(sum(terms) <= cut.bound)
    return found


def _distance_to_hull(farthest: Callable[[np.ndarray], np.ndarray | None], point: np.ndarray) -> float:
    first = farthest(np.zeros(len(point)))
    if first is None:
        return math.inf
    brought = [first]
    while True:
        # The least t with |point - sum of w_i brought_i| <= t, over weights w.
        body, size = np.stack(brought, axis=1), len(point)
        rows = np.block([[body, -np.ones((size, 1))], [-body, -np.ones((size, 1))]])
        costs = np.append(np.zeros(len(brought)), 1.0)
        ones = np.append(np.ones(len(brought)), 0.0)[None]
        mixed = scipy.optimize.linprog(costs, rows, np.append(point, -point), ones, [1.0], method="highs")
        slope = mixed.ineqlin.marginals[size:] - mixed.ineqlin.marginals[:size]
        slope = -slope if slope @ (point - body @ mixed.x[:-1]) < 0 else slope
        further = farthest(slope)
        if further is None or slope @ further - (slope @ body).max() <= SEPARATED:
            return float(mixed.fun)
        brought.append(further)


SEPARATED = 1e-9
"""Integer points that reach further by less bring a point no nearer to the hull."""
ROUNDS = 1000
"""So often are further constraints brought for one integer point, or vertex."""
BROUGHT = 1e-6
"""Constraints that are violated by less, next to their terms, are not brought: HiGHS leaves them by as much."""
_PRECISE = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


def is_vertex(
    compiled: CompiledPolytope, points: Float[Tensor, "*batch_and_shape"], *, tolerance: float = 1e-6, **parameters: Any
) -> Bool[Tensor, "*batch"]:
    """Whether points of a polytope are vertices of it.

    A point x is no vertex exactly when some d other than 0 has both x + d and x - d in the polytope. The largest such
    d in three random directions is found by linear programming (SciPy), with auxiliary variables of its own on either
    side.

    Parameters
    ----------
    compiled : the compiled polytope.
    points : points of it, ``(*batch, *shape)``.
    tolerance : how long d may be, in the maximum norm.
    parameters : a tensor per declared parameter, ``shape`` for all points or ``(*batch, *shape)`` for each its own.

    Raises
    ------
    AssertionError : for a point that is not in the polytope.
    TypeError : for a set that is not polyhedral.
    """
    form = compiled.form
    if form is None:
        raise TypeError("a set that is not polyhedral has no vertices")
    if compiled.rows_are_not_all:
        return _are_corners(compiled, points, parameters, tolerance)
    batch = batch_of(points, compiled.shape)
    flat = compiled.entries.flat_structure(points.detach(), CPU)[:, : compiled.entries.structure_size]
    return are_vertices(form, flat, parameters, batch, tolerance).reshape(batch)


def _are_corners(
    compiled: CompiledPolytope, points: Tensor, parameters: Mapping[str, Any], tolerance: float
) -> Bool[Tensor, "*batch"]:
    """Whether points are among the vertices of a hull of integer points, which are enumerated for every point."""
    batch = batch_of(points, compiled.shape)
    flat = compiled.entries.flat_structure(points.detach(), CPU)[:, : compiled.entries.structure_size]
    theta = compiled.entries.theta(parameters, batch).numpy()
    found = []
    for k, point in enumerate(flat.numpy()):
        vertices = compiled.enumerated(theta[k])[:, : flat.shape[1]]
        found.append(bool((np.abs(vertices - point).max(axis=1, initial=0.0) <= tolerance).any()))
    return torch.tensor(found, dtype=torch.bool, device="cpu").reshape(batch)


def are_vertices(
    form: StandardForm, flat: Tensor, parameters: Mapping[str, Any], batch: torch.Size, tolerance: float
) -> Bool[Tensor, " points"]:
    """Of flat structures, or of whole scored vectors, which may be vertices where structures alone are none."""
    instances = make_instances(form, Entries(form).theta(parameters, batch).numpy(), None)
    kept = form.kept[form.kept < flat.shape[1]]
    found = [
        _longest_step(form, instances.take(slice(k, k + 1)), point[kept]) <= tolerance
        for k, point in enumerate(flat.numpy())
    ]
    return torch.tensor(found, dtype=torch.bool, device="cpu")


def _longest_step(form: StandardForm, instances: Any, point: np.ndarray) -> float:
    size = len(point)
    if size == 0:
        return 0.0
    data = form.matrix.data if instances.matrix is None else instances.matrix[0]
    body = sp.csc_array((data, form.matrix.indices, form.matrix.indptr), shape=form.matrix.shape)
    pick = sp.eye_array(size, form.columns, format="csc")
    both = sp.block_array([[body, None], [None, body], [pick, pick]], format="csc")
    rhs = np.concatenate([instances.rhs[0], instances.rhs[0], 2 * point])
    # The point itself carries rounding: rows and bounds are met to 1e-9 rather than exactly.
    bounds = np.stack([np.tile(instances.lower[0], 2) - 1e-9, np.tile(instances.upper[0], 2) + 1e-9], axis=1)
    generator = np.random.default_rng(0)
    longest = 0.0
    for _ in range(3):
        direction = np.zeros(2 * form.columns)
        direction[:size] = generator.standard_normal(size)
        result = scipy.optimize.linprog(-direction, A_eq=both, b_eq=rhs, bounds=bounds, method="highs")
        if result.status != 0:
            raise AssertionError(f"the point is not in the polytope: {result.message}")
        longest = max(longest, float(np.abs(result.x[:size] - point).max(initial=0.0)))
    return longest

"""Contracts that a declaration, a solver and a rule keep; run them on your own, as our tests run them on ours.

Each function raises ``AssertionError`` with what was broken, and returns what it measured.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import cvxpy as cp
import numpy as np
import scipy.optimize
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from optlayers import inputs
from optlayers.compiled import CompiledPolytope, compile_polytope
from optlayers.layer import OptLayer
from optlayers.log_partition_contract import check_log_partition
from optlayers.oracle import name_of
from optlayers.polytope import Polytope
from optlayers.rules.base import AbstractRule
from optlayers.solution import Solution, Status
from optlayers.solvers import Highs, Oracle
from optlayers.solvers.base import AbstractMaximizer, AbstractProjector, AbstractSolver
from optlayers.solvers.batch import make_instances
from optlayers.standard_form import StandardForm, form_without_rows

__all__ = [
    "PolytopeReport",
    "check_log_partition",
    "check_oracle",
    "check_polytope",
    "check_rule",
    "check_solver",
    "contains",
    "distance",
    "is_vertex",
]

PICKLING = (AttributeError, pickle.PicklingError, TypeError)
"""What pickle raises where it cannot."""


@final
@dataclass(frozen=True)
class PolytopeReport:
    """What :func:`check_polytope` saw."""

    samples: int
    integral: bool
    """Whether every vertex that was found is integral."""
    largest_violation: float
    """By how much the farthest of all answers misses the declared constraints."""
    largest_gap: float
    explanation: str


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
    parameters : as for :meth:`CompiledPolytope.maximize`.
    """
    return distance(polytope, points, **parameters) <= tolerance


def distance(polytope: Polytope, points: Tensor, **parameters: Any) -> Tensor:
    """Distance of points ``(*batch, *shape)`` to the polytope in the maximum norm, ``(*batch,)``."""
    batch = inputs.batch_shape(points, polytope.shape)
    flat = inputs.flatten_scores(points, polytope.shape).reshape(-1, *polytope.shape)
    _, of_the_set = inputs.split_named(form_without_rows(polytope).auxiliaries, parameters)
    given = inputs.parameter_tensors(form_without_rows(polytope).parameters, of_the_set, batch)
    values = {n: inputs.flatten_parameter(v, len(flat), len(batch)) for n, v in given.items()}
    return _distances(polytope, [polytope.variable], [flat], values).reshape(batch)


def _distances(
    polytope: Polytope, variables: Sequence[cp.Variable], points: Sequence[Tensor], values: Mapping[str, Tensor]
) -> Tensor:
    """Distances of points to the set of values of some variables, ``(points, *shape)`` of each; and of parameters."""
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


_PRECISE = {"tol_gap_abs": 1e-10, "tol_gap_rel": 1e-10, "tol_feas": 1e-10}


def is_vertex(
    compiled: CompiledPolytope, points: Float[Tensor, "*batch_and_shape"], *, tolerance: float = 1e-6, **parameters: Any
) -> Bool[Tensor, "*batch"]:
    """Whether points of a polytope are vertices of it.

    A point x is no vertex exactly when some d other than 0 has both x + d and x - d in the polytope. The largest such
    d in three random directions is found by linear programming (SciPy), with auxiliary variables of its own on either
    side.
    """
    form = compiled.form
    if form is None:
        raise TypeError("a set that is not polyhedral has no vertices")
    batch = inputs.batch_shape(points, compiled.shape)
    flat = inputs.flatten_scores(points, compiled.shape)
    return _are_vertices(form, flat, parameters, batch, tolerance).reshape(batch)


def _are_vertices(
    form: StandardForm, flat: Tensor, parameters: Mapping[str, Any], batch: torch.Size, tolerance: float
) -> Bool[Tensor, " points"]:
    """Of flat structures, or of whole scored vectors, which may be vertices where structures alone are none."""
    _, of_the_set = inputs.split_named(form.auxiliaries, parameters)
    given = inputs.parameter_tensors(form.parameters, of_the_set, batch)
    theta = np.zeros((len(flat), form.parameter_count))
    for spec in form.parameters:
        theta[:, spec.span] = inputs.flatten_parameter(given[spec.name], len(flat), len(batch)).reshape(len(flat), -1)
    instances = make_instances(form, theta, None)
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


def _draw(shape: Sequence[int], samples: int, seed: int) -> Tensor:
    """Scores of unit size, then tied ones (few distinct values), then all equal, then large ones."""
    generator = torch.Generator("cpu").manual_seed(seed)
    scores = torch.randn(samples, *shape, generator=generator, dtype=torch.float64, device="cpu")
    if samples >= 4:
        scores[1] = torch.round(scores[1])
        scores[2] = 0.0
        scores[3] *= 1000.0
    return scores


def _with_scores(polytope: Polytope, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """What is given by name, and drawn scores of the scored auxiliary variables that are not."""
    drawn = {
        v.name(): _draw(tuple(v.shape), 1, seed + 1 + position)[0]
        for position, v in enumerate(polytope.scored)
        if v.name() not in given
    }
    return drawn | dict(given)


def _total(scores: Tensor, named: Mapping[str, Any], solution: Solution) -> Tensor:
    """What the answers ``(samples, *shape)`` score, with their auxiliary variables."""
    total = (scores * solution.value).flatten(1).sum(1)
    for name, values in solution.scored.items():
        total = total + (named[name] * values).reshape(len(scores), -1).sum(1)
    return total


def check_polytope(
    polytope: Polytope, *, samples: int = 12, seed: int = 0, integral: bool | None = None, **parameters: Any
) -> PolytopeReport:
    """Check a declaration: it compiles, is nonempty and bounded, and its solvers give certified, agreeing answers.

    Scores are random, tied, all equal and large. Best vertices must lie in the polytope (asked of cvxpy), be
    vertices, and be what an oracle, if there is one, attains; projections must lie in the polytope and satisfy the
    variational inequality ``<s - x, v - x> <= 0`` for the best v, with what scored auxiliary variables add on both
    sides.

    Parameters
    ----------
    polytope : the declaration.
    samples : how many scores are tried.
    seed : of the random scores.
    integral : whether vertices must be integral; None reports it only, unless the declaration says ``integral=True``.
    parameters : one value for all samples per declared parameter, and scores of scored auxiliary variables, which are
        drawn where they are not given.
    """
    parameters = _with_scores(polytope, parameters, seed)
    compiled = compile_polytope(polytope)
    scores = _draw(polytope.shape, samples, seed)
    best = compile_polytope(polytope, maximizer=Highs()).maximize(scores, **parameters).check()
    near = compiled.project(scores, **parameters).check()
    farthest = max(float(distance(polytope, points, **parameters).max()) for points in (best.value, near.value))
    assert farthest <= 1e-6, f"an answer lies {farthest:.3g} outside of the declared polytope"
    form, whole_points = compiled.form, _in_a_row(best.value, best.scored)
    assert form is not None
    assert bool(_are_vertices(form, whole_points, parameters, torch.Size([samples]), 1e-6).all()), (
        "an argmax is no vertex"
    )
    _check_projection(compiled, scores, near, parameters)
    if polytope.oracle is not None:
        check_oracle(polytope, samples=samples, seed=seed, **parameters)
    whole = bool((best.value - best.value.round()).abs().max() <= 1e-6)
    assert integral is None or integral == whole, f"integral={integral} was expected, but vertices say {whole}"
    assert whole or not polytope.integral, "the declaration says integral=True, but vertices are fractional"
    gap = float(torch.maximum(best.gap.max(), near.gap.max()))
    return PolytopeReport(samples, whole, farthest, gap, compiled.explain())


def _check_projection(compiled: CompiledPolytope, scores: Tensor, near: Solution, parameters: dict[str, Any]) -> None:
    step = scores - near.value
    best = compile_polytope(compiled.polytope).maximize(step, **parameters).check()
    gain = _total(step, parameters, best) - _total(step, parameters, near)
    size = 1 + step.flatten(1).norm(dim=1)
    assert bool((gain <= 1e-7 * size).all()), f"a projection is {float(gain.max()):.3g} from optimal"


def check_oracle(polytope: Polytope, *, samples: int = 24, seed: int = 0, **named: Any) -> None:
    """Hold an oracle and what its answers are checked by to the declaration.

    Of the oracle: the best value, a structure of the polytope, whole numbers, the same twice.

    Scores are random, tied, all equal, large (1000) and extreme (1e-9 and 1e9, also side by side), and some parts are
    forbidden. Each answer is compared with that of HiGHS on the declared constraints, which proves it, and looked for
    in the declared set by cvxpy. Fractional answers are complained of unless HiGHS finds fractional vertices too; where
    the declaration says ``integral=True`` it must find none. With ``rows="relaxation"`` the constraints hold for
    structures without being all that does: HiGHS then looks for the best structure in whole numbers by branch and bound
    where ``integral=True``, and otherwise no answer may score more than the constraints allow.

    A ``membership`` function must accept the vertices that HiGHS finds. Then entries of them are swapped, copied and
    changed: all of these points that the solver of the declaration would certify, of which some are tried, must lie in
    the declared set.

    Parameters
    ----------
    polytope : a declaration with an oracle.
    samples : how many scores are tried.
    seed : of the random scores.
    named : one value for all samples per declared parameter, and scores of scored auxiliary variables, which are drawn
        where they are not given.

    Raises
    ------
    AssertionError : naming the oracle (or the membership function), the sample, and what is wrong with its answer.
    """
    if polytope.oracle is None:
        raise TypeError("check_oracle takes a declaration with an oracle: Polytope(..., oracle=...)")
    name = name_of(polytope.oracle)
    scores = _extreme_scores(polytope.shape, samples, seed)
    given = {
        v.name(): _extreme_scores(tuple(v.shape), samples, seed + 1 + position)
        for position, v in enumerate(polytope.scored)
    } | named
    oracle, declared = compile_polytope(polytope), compile_polytope(polytope.without_oracle(), maximizer=Highs())
    best = declared.maximize(scores, **given)
    relaxed = polytope.rows == "relaxation"
    if relaxed and polytope.integral:
        best = _best_in_whole_numbers(declared, best, scores, given)
    found, again = oracle.maximize(scores, **given), oracle.maximize(scores, **given)
    asked = _in_a_row(scores, {n: given[n].expand(samples, *v.shape[1:]) for n, v in found.scored.items()})
    mine, theirs, second = (_in_a_row(s.value, s.scored) for s in (found, best, again))
    points = torch.where(found.ok.reshape(-1, *[1] * len(polytope.shape)), found.value, best.value).nan_to_num()
    outside = distance(polytope, points, **named)
    proved = [k for k in range(samples) if Status(int(best.status[k])) in (Status.OPTIMAL, Status.INFEASIBLE)]
    assert 2 * len(proved) >= samples, "HiGHS proves too few of its answers to this declaration to compare with"
    fractions = (theirs[best.ok] - theirs[best.ok].round()).abs()
    integral = bool(fractions.max() <= 1e-6) if len(fractions) else False
    assert integral or relaxed or not polytope.integral or not len(fractions), (
        f"the declaration says integral=True, but HiGHS finds a vertex that is {float(fractions.max()):.3g} off"
    )
    if polytope.membership is not None:
        free = best.ok & ~torch.isneginf(asked).any(dim=1)
        parameters = {n: value for n, value in named.items() if n not in found.scored}
        _check_membership(polytope, theirs[free], samples, seed, parameters)
    for k in proved:
        what = f"oracle {name}, on sample {k}: "
        status, expected = Status(int(found.status[k])), Status(int(best.status[k]))
        if expected is Status.INFEASIBLE:
            assert status is not Status.OPTIMAL, what + "it answers, but no structure does without the forbidden parts"
            assert status is expected, what + f"{status.name}, {found.reasons.get(k, status.meaning)}"
            continue
        assert status is Status.OPTIMAL, what + f"{status.name}, {found.reasons.get(k, status.meaning)}"
        assert torch.equal(mine[k], second[k]), what + "it gives different answers to the same scores"
        assert outside[k] <= 1e-6, what + f"it leaves the polytope by {float(outside[k]):.3g}"
        usable = torch.where(torch.isneginf(asked[k]), 0.0, asked[k])
        lost = float((usable * (theirs[k] - mine[k])).sum())
        size = 1.0 + float((usable.abs() * torch.maximum(mine[k].abs(), theirs[k].abs())).sum())
        # Of a relaxation, what oracles know may be worse than all points, and branch and bound ends at a gap of 1e-6.
        missed = lost > 1e-6 * size and polytope.integral if relaxed else abs(lost) > 1e-9 * size
        assert not missed, what + f"it misses the best score by {lost:.6g}"
        fraction = float((mine[k] - mine[k].round()).abs().max())
        assert fraction == 0.0 or not integral, what + f"its structure is not integral, an entry is {fraction:.3g} off"


def _best_in_whole_numbers(
    declared: CompiledPolytope, best: Solution, scores: Tensor, given: Mapping[str, Any]
) -> Solution:
    """The best points whose scored entries are whole, by branch and bound over the rows."""
    form = declared.forms.full
    batch = inputs.batch_shape(scores, form.shape)
    further, of_the_set = inputs.split_named(form.auxiliaries, given)
    auxiliary, _ = inputs.auxiliary_scores(form.auxiliaries, further, batch)
    flat, forbidden = inputs.split_forbidden(
        inputs.flatten_scored(scores, (len(scores), form.structure_size), auxiliary.values(), 1, torch.device("cpu"))
    )
    values = inputs.parameter_tensors(form.parameters, of_the_set, batch)
    theta = [inputs.flatten_parameter(values[spec.name], len(scores), 1).flatten(1) for spec in form.parameters]
    parameters = torch.cat([torch.zeros(len(scores), 0, device="cpu"), *theta], dim=1).to(torch.float64)
    instances = make_instances(form, parameters.numpy(), forbidden.numpy()).with_scores(flat.numpy())
    whole = np.zeros(form.columns)
    whole[: form.scored] = 1.0
    points, status = np.zeros((len(scores), form.size)), best.status.clone()
    for k in range(len(scores)):
        data = form.matrix.data if instances.matrix is None else instances.matrix[k]
        matrix = sp.csc_array((data, form.matrix.indices, form.matrix.indptr), shape=form.matrix.shape)
        costs = np.zeros(form.columns)
        costs[: form.scored] = -instances.scores[k] / max(float(np.abs(instances.scores[k]).max(initial=0.0)), 1e-300)
        found = scipy.optimize.milp(
            costs,
            integrality=whole,
            bounds=scipy.optimize.Bounds(instances.lower[k], instances.upper[k]),
            constraints=scipy.optimize.LinearConstraint(matrix, instances.rhs[k], instances.rhs[k]),
            options={"mip_rel_gap": 0.0},
        )
        status[k] = int({0: Status.OPTIMAL, 2: Status.INFEASIBLE}.get(found.status, Status.FAILED))
        if found.x is not None:
            points[k] = form.expand(np.round(found.x[None, : form.scored]))[0]
    structure = torch.from_numpy(points[:, : form.structure_size]).reshape(scores.shape).to(scores.dtype)
    scored = {s.name: torch.from_numpy(points[:, s.span]).reshape(len(scores), *s.shape) for s in form.auxiliaries}
    return replace(best, value=structure, status=status, scored=scored, reasons={})


def _check_membership(
    polytope: Polytope, vertices: Tensor, samples: int, seed: int, parameters: Mapping[str, Any]
) -> None:
    """Give vertices, and points that are made of them, as answers of an oracle, and see which are certified."""
    assert polytope.membership is not None
    what = f"membership function {name_of(polytope.membership)}"
    vertices = vertices.round() if polytope.integral else vertices
    for failure in _echoed(polytope, vertices, parameters).failures:
        raise AssertionError(f"{what} refuses the vertex {vertices[failure.index].tolist()}: {failure.reason}")
    found = _echoed(polytope, _changed(vertices, 100 * samples, seed), parameters)
    for failure in found.failures:
        assert failure.status is not Status.FAILED, f"{what} fails beside a vertex: {failure.reason}"
    certified = _in_a_row(found.value, found.scored)[found.ok].unique(dim=0)
    new = certified[~(certified[:, None] == vertices).all(dim=2).any(dim=1)]
    generator = torch.Generator("cpu").manual_seed(seed)
    some = new[torch.randperm(len(new), generator=generator, device="cpu")[: 2 * samples]]
    variables = [polytope.variable, *polytope.scored]
    given = inputs.parameter_tensors(form_without_rows(polytope).parameters, dict(parameters), torch.Size([len(some)]))
    values = {n: inputs.flatten_parameter(v, len(some), 1) for n, v in given.items()}
    outside = _distances(polytope, variables, _parts(polytope, some), values)
    for point, far in zip(some, outside.tolist(), strict=True):
        assert far <= 1e-6, f"{what} accepts {point.tolist()}, which lies {far:.3g} outside of the polytope"


def _echoed(polytope: Polytope, points: Tensor, parameters: Mapping[str, Any]) -> Solution:
    """What a polytope makes of flat points ``(points, size)`` when its oracle returns them."""

    def echo(*arrays: np.ndarray) -> Any:
        flat = np.concatenate([array.reshape(-1) for array in arrays[: 1 + len(polytope.scored)]])
        # Entries that the constraints fix come without scores.
        whole = form.expand(flat[None, form.kept])
        answer = tuple(part[0].numpy() for part in _parts(polytope, torch.from_numpy(whole)))
        return answer if len(answer) > 1 else answer[0]

    compiled = compile_polytope(polytope, maximizer=Oracle(echo))
    form = compiled.projection_form if compiled.maximizer_form is None else compiled.maximizer_form
    structure, *scored = _parts(polytope, points)
    named = {v.name(): part for v, part in zip(polytope.scored, scored, strict=True)}
    return compiled.maximize(structure, **named, **parameters)


def _changed(vertices: Tensor, count: int, seed: int) -> Tensor:
    """Vertices of which an entry was swapped with another, replaced by it, or moved by 1, once or twice; and mirrored
    ones: what is as far from a vertex as another vertex, on the other side, is outside of any polytope."""
    generator = torch.Generator("cpu").manual_seed(seed)
    points = vertices[torch.randint(len(vertices), (count,), generator=generator, device="cpu")]
    row = torch.arange(count, device="cpu")
    for share in (1.0, 0.5):
        changes = torch.rand(count, generator=generator, device="cpu") < share
        one = torch.multinomial((points != 0) + 1e-9, 1, generator=generator).flatten()
        other = torch.randint(points.shape[1], (count,), generator=generator, device="cpu")
        kind = torch.randint(4, (count,), generator=generator, device="cpu")
        mine, theirs = points[row, one], points[row, other]
        changed = points.clone()
        changed[row, one] = torch.where(kind < 2, theirs, mine + 2.0 * (kind - 2.5))
        changed[row, other] = torch.where((kind == 0) & (one != other), mine, changed[row, other])
        points = torch.where(changes[:, None], changed, points)
    return torch.cat([points, (2.0 * vertices[:, None] - vertices).flatten(0, 1)])


def _parts(polytope: Polytope, flat: Tensor) -> list[Tensor]:
    """The structure and the scored auxiliary variables ``(points, *shape)`` of flat points ``(points, size)``."""
    variables = (polytope.variable, *polytope.scored)
    return [
        part.reshape(len(flat), *variable.shape)
        for variable, part in zip(variables, flat.split([v.size for v in variables], dim=1), strict=True)
    ]


def _in_a_row(structure: Tensor, auxiliary: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([structure.flatten(1), *(a.flatten(1) for a in auxiliary.values())], dim=1)


def _extreme_scores(shape: Sequence[int], samples: int, seed: int) -> Tensor:
    """Of unit size, then tied, equal, large and extreme ones, in turn; every third has forbidden parts."""
    scores = _draw(shape, samples, seed)
    generator = torch.Generator("cpu").manual_seed(seed)
    for k in range(4, samples):
        kind = k % 6
        if kind == 0:
            scores[k] = torch.round(scores[k])
        if kind == 1:
            scores[k] *= 1e9
        if kind == 2:
            scores[k] *= 1e-9
        if kind == 3:
            scores[k] *= torch.where(torch.rand(*shape, generator=generator, device="cpu") < 0.5, 1e9, 1.0)
        if k % 3 == 0:
            scores[k] = scores[k].masked_fill(torch.rand(*shape, generator=generator, device="cpu") < 0.15, -torch.inf)
    return scores


def check_solver(
    solver: AbstractSolver, polytope: Polytope, *, samples: int = 8, seed: int = 0, **parameters: Any
) -> None:
    """Check a solver on a polytope: certified, equal to the reference solvers, and blind to the rest of the batch.

    A maximizer is compared with HiGHS through SciPy, a projector by the variational inequality; both must give the
    same answer alone, in a batch, in reverse order, and after other questions. Solvers of limited ``accuracy`` are not
    asked with large scores. Scores of scored auxiliary variables are drawn where they are not given.
    """
    parameters = _with_scores(polytope, parameters, seed)
    scores = _draw(polytope.shape, samples, seed)
    if solver.accuracy > 0:
        scores = scores.clamp(-5.0, 5.0)
    size = 1 + scores.flatten(1).norm(dim=1)
    if isinstance(solver, AbstractMaximizer):
        compiled = compile_polytope(polytope, maximizer=solver)
        found = compiled.maximize(scores, **parameters).check()
        value = _total(scores, parameters, found)
        reference = _reference_values(compiled, scores, parameters)
        worst = float(((value - reference).abs() / size).max())
        assert worst <= max(1e-7, solver.accuracy), f"{solver!r} misses the best value by {worst:.3g} (relative)"
        _check_order(compiled.maximize, scores, found, parameters, solver)
    if isinstance(solver, AbstractProjector):
        compiled = compile_polytope(polytope, projector=solver)
        found = compiled.project(scores, **parameters).check()
        far = float((distance(polytope, found.value, **parameters) / size).max())
        assert far <= 1e-6, f"{solver!r} ends {far:.3g} outside of the polytope (relative)"
        if solver.polyhedral_only:
            _check_projection(compiled, scores, found, parameters)
        _check_order(compiled.project, scores, found, parameters, solver)


def _reference_values(compiled: CompiledPolytope, scores: Tensor, parameters: dict[str, Any]) -> Tensor:
    """The best values by a cold solve of the declaration through cvxpy."""
    polytope = compiled.polytope
    direction = cp.Parameter(polytope.shape)
    gain = cp.sum(cp.multiply(direction, polytope.variable))
    for variable in polytope.scored:
        gain = gain + cp.sum(cp.multiply(parameters[variable.name()].numpy(), variable))
    problem = cp.Problem(cp.Maximize(gain), list(polytope.constraints))
    declared = form_without_rows(polytope)
    _, of_the_set = inputs.split_named(declared.auxiliaries, parameters)
    given = inputs.parameter_tensors(declared.parameters, of_the_set, torch.Size([len(scores)]))
    values = []
    for k in range(len(scores)):
        direction.value = scores[k].numpy()
        for parameter in polytope.parameters:
            parameter.value = given[parameter.name()][k].detach().numpy()
        values.append(float(problem.solve(solver=cp.HIGHS, canon_backend=cp.SCIPY_CANON_BACKEND)))
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _check_order(
    solve: Any, scores: Tensor, found: Solution, parameters: dict[str, Any], solver: AbstractSolver
) -> None:
    backward = solve(scores.flip(0), **parameters).check().value.flip(0)
    single = torch.cat([solve(scores[k : k + 1], **parameters).check().value for k in range(len(scores))])
    tolerance = max(1e-8, solver.accuracy) * (1 + float(found.value.abs().max()))
    for other, what in ((backward, "the order of the batch"), (single, "the rest of the batch")):
        moved = float((other - found.value).abs().max())
        assert moved <= tolerance, f"the answer of {solver!r} depends on {what}: it moved by {moved:.3g}"


def check_rule(rule: AbstractRule, polytope: Polytope, *, samples: int = 4, seed: int = 0, **parameters: Any) -> None:
    """Check a rule on a polytope: structures in the polytope, and gradients that behave.

    Gradients are finite, have the shape and dtype of the scores, depend on their own instance alone, do not change
    when asked twice, even after structures and gradients that came out were overwritten, survive ``deepcopy`` and
    ``pickle`` (where the declaration can be pickled: a function of it that is a lambda cannot, and a warning says so),
    come for empty batches and for strided scores, and are 0 for forbidden parts (:func:`check_log_partition` looks at
    forbidden blocks, too). A rule that draws gets the same seed each time; one that works with losses gets linear ones;
    one that takes no zeros gets 0.1 instead. Scores of scored auxiliary variables are drawn where they are not given.
    """
    parameters = _with_scores(polytope, parameters, seed)
    layer = OptLayer(polytope, rule)
    scores = _taken_by(rule, _draw(polytope.shape, samples, seed))
    weights = _draw(polytope.shape, samples, seed + 1).roll(2, dims=0).clamp(-3, 3)
    value, gradient = _through(layer, scores, weights, parameters)
    assert bool(contains(polytope, value, **parameters).all()), f"{rule!r} leaves the polytope"
    assert gradient.shape == scores.shape and bool(torch.isfinite(gradient).all()), f"{rule!r}: {gradient}"
    copies = {"asked again": layer, "copied": copy.deepcopy(layer)}
    if _is_pickled(rule, polytope):
        copies["pickled"] = pickle.loads(pickle.dumps(layer))
    for what, other in copies.items():
        _same(_through(other, scores, weights, parameters), (value, gradient), f"{rule!r}, {what},")
    _check_independence(layer, scores, weights, (value, gradient), parameters)
    _check_memory(layer, scores, weights, (value, gradient), parameters)
    strided = torch.stack([scores, scores], dim=-1)[..., 0]
    _same(_through(layer, strided, weights, parameters), (value, gradient), f"{rule!r} on strided scores")
    _check_forbidden(layer, scores, weights, value, parameters)
    empty = _through(layer, scores[:0], weights[:0], parameters)
    assert empty[0].shape == value[:0].shape and empty[1].shape == scores[:0].shape, f"{rule!r} on an empty batch"
    single = scores.to(torch.float32)
    low, low_gradient = _through(layer, single, weights.to(torch.float32), parameters)
    assert low.dtype == low_gradient.dtype == torch.float32, f"{rule!r} changes float32 to {low.dtype}"


def _taken_by(rule: AbstractRule, scores: Tensor) -> Tensor:
    return scores if rule.takes_zero else scores.masked_fill(scores == 0.0, 0.1)


def _check_independence(
    layer: OptLayer, scores: Tensor, weights: Tensor, expected: tuple[Tensor, Tensor], parameters: dict[str, Any]
) -> None:
    """Each instance alone, or, as what is drawn depends on the size of a batch, next to others."""
    for k in range(len(scores)):
        mine = slice(k, k + 1)
        if layer.rule.draws:
            others = _taken_by(layer.rule, scores.roll(1, dims=0) + 1.0)
            others[mine] = scores[mine]
            found = tuple(part[mine] for part in _through(layer, others, weights, parameters))
        else:
            found = _through(layer, scores[mine], weights[mine], parameters)
        _same(found, tuple(part[mine] for part in expected), f"{layer.rule!r}, instance {k} in another batch,")


def _check_memory(
    layer: OptLayer, scores: Tensor, weights: Tensor, expected: tuple[Tensor, Tensor], parameters: dict[str, Any]
) -> None:
    """Overwrite what came out, structures and then a gradient, and ask for the gradient of the same structures."""
    if layer.rule.initial_state():  # which adapts in between
        return
    leaf, seen = scores.detach().requires_grad_(), []

    def linear(structures: Tensor) -> Tensor:
        seen.append(structures)
        return (structures * weights).flatten(1).sum(1)

    generator = torch.Generator("cpu").manual_seed(0) if layer.rule.draws else None
    losses = layer(leaf, objective=linear, generator=generator, **parameters)
    for structures in seen:
        structures.detach().zero_()
    for what in ("structures that came out are", "a gradient that came out is"):
        (gradient,) = torch.autograd.grad(losses.sum(), leaf, retain_graph=True)
        _same((expected[0], gradient), expected, f"{layer.rule!r}, when {what} overwritten,")
        gradient.zero_()


def _is_pickled(rule: AbstractRule, polytope: Polytope) -> bool:
    """Whether the declaration is; the rule must be."""
    try:
        pickle.dumps(rule)
    except PICKLING as error:
        raise AssertionError(f"{rule!r} cannot be pickled, so layers that have it cannot be saved: {error}") from error
    functions: dict[str, Any] = {
        "oracle": polytope.oracle,
        "log_partition": polytope.log_partition,
        "membership function": polytope.membership,
    }
    for what, function in functions.items():
        try:
            pickle.dumps(function)
        except PICKLING as error:
            warnings.warn(
                f"check_rule has not pickled the layer, for {what} {name_of(function)} cannot be pickled ({error}): "
                "layers over this polytope cannot be saved as a whole, or sent to another process, until it is a "
                "function that a module defines",
                stacklevel=3,
            )
            return False
    return True


def _check_forbidden(
    layer: OptLayer, scores: Tensor, weights: Tensor, value: Tensor, parameters: dict[str, Any]
) -> None:
    """Forbid one part per instance that its answer does without, so that the instance stays feasible."""
    used = value if layer.rule.apart is None else value.abs().sum(dim=1)
    unused = (used == 0).flatten(1)
    having = unused.any(dim=1)
    part = unused.to(torch.int8).argmax(dim=1)
    masked = scores.flatten(1).clone()
    masked[having, part[having]] = -torch.inf
    found, gradient = _through(layer, masked.reshape(scores.shape), weights, parameters)
    found = found if layer.rule.apart is None else found.abs().sum(dim=1)
    hidden = torch.isinf(masked).reshape(scores.shape)
    assert bool((found[hidden] == 0).all()), f"{layer.rule!r} uses a forbidden part"
    assert bool((gradient[hidden] == 0).all()), f"{layer.rule!r} gives a forbidden part a gradient"
    assert bool(torch.isfinite(gradient).all()), f"{layer.rule!r}: a gradient beside a forbidden part is not finite"


def _through(layer: OptLayer, scores: Tensor, weights: Tensor, parameters: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Structures (several of an instance as ``(batch, apart, *shape)``) and the gradient of <weights, structure>.

    From the state that the layer is in, which stays as it is.
    """
    if layer.rule.initial_state():
        layer = copy.deepcopy(layer)
    leaf, seen = scores.detach().requires_grad_(), []

    def linear(structures: Tensor) -> Tensor:
        seen.append(structures.detach())
        return (structures * weights).flatten(1).sum(1)

    generator = torch.Generator("cpu").manual_seed(0) if layer.rule.draws else None
    losses = layer(leaf, objective=linear, generator=generator, **parameters)
    values = seen[0] if layer.rule.apart is None else torch.stack(seen[: layer.rule.apart], dim=1)
    (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    return values, gradient


def _same(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    for mine, theirs, name in zip(found, expected, ("answers", "gradients"), strict=True):
        moved = float((mine - theirs).abs().max()) if mine.numel() else 0.0
        size = 1 + (float(theirs.abs().max()) if theirs.numel() else 0.0)
        assert moved <= 1e-6 * size, f"{what} gives other {name}: they moved by {moved:.3g}"

"""What an oracle and a membership function keep: best structures of the declared polytope, and no others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.optimize
import scipy.sparse as sp
import torch
from torch import Tensor

from optlayers.batch.entries import Entries
from optlayers.bound.base import by_name
from optlayers.compilation.compiled import CompiledPolytope, compile_polytope
from optlayers.compiled_oracle import name_of
from optlayers.form.compile import form_without_rows
from optlayers.polytope import Polytope
from optlayers.solution import Solution, Status
from optlayers.solvers import Highs, Oracle
from optlayers.solvers.batch import make_instances
from optlayers.testing.answers import in_a_row
from optlayers.testing.draws import extreme_scores
from optlayers.testing.geometry import distance, distances

__all__ = ["check_oracle"]


def check_oracle(polytope: Polytope, *, samples: int = 24, seed: int = 0, **named: Any) -> None:
    """Hold an oracle and what its answers are checked by to the declaration.

    Of the oracle: the best value, a structure of the polytope, whole numbers, the same twice.

    Scores are random, all negative, all positive, tied, all equal, large (1000) and extreme (1e-9 and 1e9, also side by
    side), and some parts are forbidden. Each answer is compared with that of HiGHS on the declared constraints, which
    proves it, and looked for in the declared set by cvxpy. Fractional answers are complained of unless HiGHS finds
    fractional vertices too; where the declaration says ``integral=True`` it must find none. With ``rows="relaxation"``
    the constraints hold for structures without being all that does: HiGHS then looks for the best structure in whole
    numbers by branch and bound where ``integral=True``, and otherwise no answer may score more than the constraints
    allow.

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
    TypeError : for a declaration without an oracle.
    """
    if polytope.oracle is None:
        raise TypeError("check_oracle takes a declaration with an oracle: Polytope(..., oracle=...)")
    name = name_of(polytope.oracle)
    scores = extreme_scores(polytope.shape, samples, seed)
    given = {
        v.name(): extreme_scores(tuple(v.shape), samples, seed + 1 + position)
        for position, v in enumerate(polytope.scored)
    } | named
    rows_alone = None if polytope.separate is not None else Highs()
    oracle, declared = compile_polytope(polytope), compile_polytope(polytope.without_oracle(), maximizer=rows_alone)
    best = declared.maximize(scores, **given)
    relaxed = polytope.rows == "relaxation" and polytope.separate is None
    if relaxed and polytope.integral:
        best = _best_in_whole_numbers(declared, best, scores, given)
    found, again = oracle.maximize(scores, **given), oracle.maximize(scores, **given)
    asked = in_a_row(scores, {n: given[n].expand(samples, *v.shape[1:]) for n, v in found.scored.items()})
    mine, theirs, second = (in_a_row(s.value, s.scored) for s in (found, best, again))
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
    entries = Entries(form)
    arrived = entries.arrive(scores, given)
    packed = entries.pack(arrived.tensors, arrived.batch, once=arrived.once)
    theta = np.zeros((len(scores), 0)) if packed.theta is None else packed.theta.numpy()
    forbidden = None if packed.forbidden is None else packed.forbidden.numpy()
    instances = make_instances(form, theta, forbidden).with_scores(packed.scores.numpy())
    whole = np.zeros(form.columns)
    whole[: form.scored] = 1.0
    points, status = np.zeros((len(scores), form.size)), best.status.clone()
    for k in range(len(scores)):
        data = form.matrix.data if instances.matrix is None else instances.matrix[k]
        matrix = sp.csc_array((data, form.matrix.indices, form.matrix.indptr), shape=form.matrix.shape)
        costs = np.zeros(form.columns)
        costs[: form.scored] = -instances.scores[k] / max(float(np.abs(instances.scores[k]).max(initial=0.0)), 1e-300)
        result = scipy.optimize.milp(
            costs,
            integrality=whole,
            bounds=scipy.optimize.Bounds(instances.lower[k], instances.upper[k]),
            constraints=scipy.optimize.LinearConstraint(matrix, instances.rhs[k], instances.rhs[k]),
            options={"mip_rel_gap": 0.0},
        )
        status[k] = int({0: Status.OPTIMAL, 2: Status.INFEASIBLE}.get(result.status, Status.FAILED))
        if result.x is not None:
            points[k] = form.expand(np.round(result.x[None, : form.scored]))[0]
    structure = torch.from_numpy(points[:, : form.structure_size]).reshape(scores.shape).to(scores.dtype)
    scored = {
        s.name: torch.from_numpy(points[:, s.span]).reshape(len(scores), *s.shape) for s in form.scored_auxiliaries
    }
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
    certified = in_a_row(found.value, found.scored)[found.ok].unique(dim=0)  # type: ignore[no-untyped-call]
    new = certified[~(certified[:, None] == vertices).all(dim=2).any(dim=1)]
    generator = torch.Generator("cpu").manual_seed(seed)
    some = new[torch.randperm(len(new), generator=generator, device="cpu")[: 2 * samples]]
    variables = [polytope.variable, *polytope.scored]
    entries = Entries(form_without_rows(polytope))
    values = by_name(entries.parameters, entries.theta(parameters, torch.Size([len(some)])))
    outside = distances(polytope, variables, _parts(polytope, some), values)
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
        for variable, part in zip(variables, flat.split([v.size for v in variables], dim=1), strict=True)  # type: ignore[no-untyped-call]
    ]

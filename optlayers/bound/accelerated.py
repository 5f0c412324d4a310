"""Regularized points where their scores live, and what belongs to them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.bound.arrays import DeviceArrays
from optlayers.bound.base import AbstractBoundPolytope
from optlayers.bound.curved import AbstractOfRegularizer, RegularizedEvidence, worth_gradient
from optlayers.bound.on_host import OnHost
from optlayers.bound.regularized import by_constraints, columns_without_choice, has_negative, on_device
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.form.standard import StandardForm
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.solution import Proof, Solution
from optlayers.solvers.batch import in_scaled_rows
from optlayers.solvers.curves import Curves
from optlayers.solvers.dense import pieces
from optlayers.solvers.derivative import ROOM
from optlayers.solvers.kernels.curves import BITS, ENTROPY, POWER, QUADRATIC
from optlayers.solvers.plan import plan_of
from optlayers.solvers.smooth.faces import polish, polish_again, pull_back
from optlayers.solvers.smooth.interior_point import interior_point
from optlayers.solvers.smooth.newton import dual_newton
from optlayers.solvers.smooth.problem import DenseCurves, SmoothAnswer, SmoothProblem
from optlayers.solvers.smooth.verdict import certify

__all__ = ["AcceleratedEvidence", "OnDevice", "regularized_on_device"]

ATTEMPTS = 4
"""So many times are points moved onto active sets,"""
SETTLED = 1e-13
"""while they are wrong by more than this: the right active set leaves rounding."""
NO_STAND_BY = (
    "the solvers for devices leave it without a certificate, and its constraints are too many and hardly sparse for "
    "those of the CPU"
)
AT_BOUND = 1e-10
"""Beside entropies, what is nearer to its bound is at it."""


class OnDevice(AbstractBoundPolytope):
    """What the polytopes of a batch on a device have besides: what is asked of them here."""

    prepared: AbstractPrepared
    theta: Float64[Tensor, "batch parameters"]
    forbidden: Bool[Tensor, "batch size"] | None
    precision: Float64[np.ndarray, " parameters"]
    arrays: DeviceArrays
    matrix: Tensor
    rhs: Float64[Tensor, "batch rows"]
    lower: Float64[Tensor, "batch columns"]
    upper: Float64[Tensor, "batch columns"]
    masked: Bool[Tensor, "batch columns"] | None
    scale: Float64[Tensor, "batch rows"] | None
    feasible: Bool[Tensor, " batch"]

    @abstractmethod
    def residual(self, point: Float64[Tensor, "batch columns"]) -> Float64[Tensor, " batch"]:
        """The largest violation of a constraint, in the units of the declaration."""


@final
@dataclass(eq=False)
class AcceleratedEvidence(AbstractOfRegularizer):
    """What belongs to regularized points that were found on a device. Gradients of scores and of parameters are worked
    out there too."""

    form: StandardForm
    regularizer: AbstractRegularizer
    theta: Float64[Tensor, "batch parameters"] | None
    polytope: OnDevice
    problem: SmoothProblem
    answer: SmoothAnswer

    @property
    def proof(self) -> Proof:
        """In the rows of the form, which those of the device may be multiples of."""
        answer, scale = self.answer, self.polytope.scale
        point, dual, free = (part.cpu().numpy() for part in (answer.point, answer.dual, answer.free))
        point, dual = in_scaled_rows(self.form, point, dual, None if scale is None else 1.0 / scale.cpu().numpy())
        return Proof(point, dual, free, np.ones(len(point), dtype=bool))

    @property
    def moving(self) -> Bool[Tensor, "batch curved"]:
        """The parts of the structure that move with scores."""
        cut = self.form.curved
        bend = self.problem.bend(self.answer.point)
        return self.answer.free[:, :cut] & torch.isfinite(bend[:, :cut])

    @property
    def points(self) -> Float64[Tensor, "batch size"]:
        """The scored vectors."""
        return _expanded(self.polytope.arrays, self.answer.point)

    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"] | None
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """By the curvature at the points on their active sets; see :class:`AbstractEvidence`."""
        arrays, form, problem = self.polytope.arrays, self.form, self.problem
        good = torch.ones_like(self.polytope.feasible) if ok is None else ok
        side = torch.zeros_like(problem.linear)
        side[:, : form.scored] = torch.where(good[:, None], direction[:, arrays.kept], 0.0)
        answer = replace(self.answer, free=self.answer.free & good[:, None])
        found = [
            pull_back(problem.take(piece), answer.take(piece), side[piece]) for piece in pieces(form, len(side))
        ] or [(torch.zeros_like(side), torch.zeros_like(problem.rhs), good)]
        p, q, solved = (torch.cat(part) for part in zip(*found, strict=True))
        right = good & solved
        p, q = torch.where(right[:, None], p, 0.0), torch.where(right[:, None], q, 0.0)
        scores = torch.zeros_like(direction)
        scores[:, arrays.kept] = p[:, : form.scored]
        return scores, lambda: self._of_parameters(side, p, q, right, scores), right

    def _of_parameters(
        self, side: Tensor, p: Tensor, q: Tensor, right: Tensor, scores: Tensor
    ) -> Float64[Tensor, "batch parameters"]:
        """As :meth:`optlayers.solvers.derivative.PulledBack.parameters` works it out."""
        arrays, problem, point = self.polytope.arrays, self.problem, self.answer.point
        of_lower, of_upper, of_rhs = (arrays.maps[name][1] for name in ("lower", "upper", "rhs"))
        below, above = point - problem.lower, problem.upper - point
        if problem.curves.has_barrier:
            least, moves = problem.curves.least[:, None], problem.movable
            bend_low, bend_high = (torch.where(moves, least / room**2, 0.0) for room in (below, above))
            theta = (p * bend_low) @ of_lower + (p * bend_high) @ of_upper
            push = torch.where(moves, 1.0 / below - 1.0 / above, 0.0)
            moved: Tensor | float = (p * push).sum(1, keepdim=True)
        else:
            pressed = torch.where(self.answer.free, 0.0, side - _priced(problem.matrix, q))
            if self.polytope.masked is not None:  # held at 0 by its score, not by a bound
                pressed = torch.where(self.polytope.masked, 0.0, pressed)
            high = above < below
            theta = torch.where(high, 0.0, pressed) @ of_lower + torch.where(high, pressed, 0.0) @ of_upper
            moved = 0.0
        of_rows, dual = self._in_rows_of_form(q), self._in_rows_of_form(self.answer.dual)
        theta = theta + of_rows @ of_rhs
        if not self.form.matrix_is_constant:
            entries = dual[:, arrays.row] * p[:, arrays.column] + of_rows[:, arrays.row] * point[:, arrays.column]
            theta = theta - torch.where(right[:, None], entries, 0.0) @ arrays.matrix_map
        theta = torch.where(torch.isinf(self.polytope.theta), 0.0, theta)
        for spec in self.of_regularizer if problem.curves.has_barrier else ():
            theta[:, spec.span] += moved
        theta = torch.where(right[:, None], theta, 0.0)
        return theta if problem.curves.has_barrier else theta + self.of_number(scores)

    def _in_rows_of_form(self, dual: Tensor) -> Tensor:
        scale = self.polytope.scale
        return dual if scale is None else dual * scale

    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """From dual points, as :func:`optlayers.solvers.derivative.value_gradient_of` works it out."""
        arrays, problem, form, keep = self.polytope.arrays, self.problem, self.form, ok[:, None]
        point, dual = torch.where(keep, self.answer.point, 0.0), torch.where(keep, self.answer.dual, 0.0)
        first, cut = form.equalities, form.unslacked
        sides = problem.rhs[:, first:].abs()
        room = (point[:, cut:] > ROOM * sides.clamp(min=1.0)) | torch.isinf(problem.lower[:, cut:])
        dual[:, first:] = torch.where(room, 0.0, dual[:, first:].clamp(min=0.0))
        slope = problem.curves.slope(self.answer.point).nan_to_num(posinf=0.0, neginf=0.0)
        reduced = problem.linear - _priced(problem.matrix, dual) - torch.where(keep, slope, 0.0)
        reduced = torch.where(self.answer.free, 0.0, reduced)
        if self.polytope.masked is not None:
            reduced = torch.where(self.polytope.masked, 0.0, reduced)
        dual = self._in_rows_of_form(dual)
        theta = dual @ arrays.maps["rhs"][1]
        theta = (
            theta + reduced.clamp(min=0.0) @ arrays.maps["upper"][1] + reduced.clamp(max=0.0) @ arrays.maps["lower"][1]
        )
        if not form.matrix_is_constant:
            theta = theta - (dual[:, arrays.row] * point[:, arrays.column]) @ arrays.matrix_map
        theta = torch.where(keep & ~torch.isinf(self.polytope.theta), theta, 0.0)
        if self.theta is None or not self.regularizer.parameters:
            return theta
        points = torch.where(keep, self.points, 0.0)
        return theta - worth_gradient(form, points, self.regularizer, self.theta)


def regularized_on_device(
    polytope: OnDevice, scores: Float64[Tensor, "batch size"], regularizer: AbstractRegularizer
) -> Solution:
    """Regularized points, by solvers for devices; the CPU has the last word on what these leave without a certificate,
    and answers where the regularizer is a program over the polytope, or leaves it no choice."""
    prepared, form = polytope.prepared, polytope.form
    scores = scores.detach()
    stays = (
        by_constraints(prepared) is prepared
        and form is prepared.projection_form
        and regularizer.over(prepared.polytope) is None
        and form.unslacked > 0
        and (regularizer.kind_of_fixed <= QUADRATIC or not has_negative(form))
    )
    if not stays:
        return on_device(_on_the_host(polytope, scores, regularizer), scores.device)
    theta = polytope.theta if form.parameters else None
    curves = regularizer.curves(form, theta)
    known = torch.isfinite(scores).all(dim=1)
    problem, inside = _problem(polytope, torch.where(known[:, None], scores, 0.0), curves)
    tolerance = prepared.tolerance
    answer, gap, error = _solved(form, problem, curves, tolerance)
    good = (error <= tolerance) & polytope.feasible & known & inside
    value, status = _expanded(polytope.arrays, answer.point), torch.where(good, 0, 5).to(torch.int8)
    solution = Solution(value, status, polytope.residual(answer.point), gap)
    left = torch.nonzero(~good)[:, 0]
    if len(left) and plan_of(form).dense:  # the CPU has no solver for these
        solution = replace(solution, reasons=dict.fromkeys(left.tolist(), NO_STAND_BY))
    elif len(left):
        solution = _with_those_of_the_host(polytope, scores, regularizer, left, solution, problem, answer)
    return replace(solution, evidence=AcceleratedEvidence(form, regularizer, theta, polytope, problem, answer))


def _on_the_host(
    polytope: OnDevice,
    scores: Float64[Tensor, "some size"],
    regularizer: AbstractRegularizer,
    index: Tensor | None = None,
) -> Solution:
    """The answers of the CPU, for all instances or for some."""
    theta, forbidden = polytope.theta.detach(), polytope.forbidden
    if index is not None:
        theta, scores = theta[index], scores[index]
        forbidden = None if forbidden is None else forbidden[index]
    hidden = None if forbidden is None else forbidden.cpu()
    host = polytope.prepared.bind_on_host(theta.cpu(), hidden, polytope.precision)
    return host.regularized(scores.cpu(), regularizer)


def _with_those_of_the_host(
    polytope: OnDevice,
    scores: Float64[Tensor, "batch size"],
    regularizer: AbstractRegularizer,
    index: Int64[Tensor, " some"],
    solution: Solution,
    problem: SmoothProblem,
    answer: SmoothAnswer,
) -> Solution:
    """Ask the solvers of the CPU about some instances, and put their answers in."""
    form, device = polytope.form, scores.device
    other = _on_the_host(polytope, scores, regularizer, index)
    evidence, scale = other.evidence, None if polytope.scale is None else polytope.scale[index].cpu().numpy()
    if not isinstance(evidence, RegularizedEvidence):
        raise RuntimeError("the solvers of the CPU give evidence")
    proof, held = evidence.proof, evidence.solved.instances
    point, dual = in_scaled_rows(form, proof.point, proof.dual, _between(scale, held.row_scale))
    assert proof.free is not None
    cut = form.unslacked
    for mine, theirs in (
        (solution.value, other.value),
        (solution.status, other.status),
        (solution.primal_residual, other.primal_residual),
        (solution.gap, other.gap),
        (answer.point, torch.from_numpy(point)),
        (answer.dual, torch.from_numpy(dual)),
        (answer.free, torch.from_numpy(proof.free)),
        (problem.lower[:, :cut], torch.from_numpy(held.lower[:, :cut].copy())),
        (problem.upper[:, :cut], torch.from_numpy(held.upper[:, :cut].copy())),
    ):
        mine[index] = theirs.to(device)
    return replace(solution, reasons={int(index[k]): reason for k, reason in other.reasons.items()})


def _between(device: np.ndarray | None, host: np.ndarray | None) -> np.ndarray | None:
    """What rows of the CPU are multiplied by to be those of the device."""
    if device is None or host is None:
        return device
    return np.asarray(device / host)


def _expanded(arrays: DeviceArrays, point: Float64[Tensor, "batch columns"]) -> Float64[Tensor, "batch size"]:
    """Flat scored vectors, with what constraints fix."""
    value: Tensor = arrays.fixed.expand(len(point), -1).clone()
    value[:, arrays.kept] = point[:, : arrays.form.scored]
    return value


def _problem(
    polytope: OnDevice, scores: Float64[Tensor, "batch size"], curves: Curves
) -> tuple[SmoothProblem, Bool[Tensor, " batch"]]:
    """The problem, with the bounds that the regularizer leaves; and for which instances these do not cross."""
    form, arrays = polytope.form, polytope.arrays
    linear = torch.zeros_like(polytope.lower)
    linear[:, : form.scored] = scores[:, arrays.kept]
    lower, upper = polytope.lower.clone(), polytope.upper.clone()
    held = arrays.held.get(b"", partial(_held, polytope)) if _is_plain(polytope) else None
    if held is not None:
        lower, upper = torch.where(held[0], held[1], lower), torch.where(held[0], held[1], upper)
    kind = torch.from_numpy(curves.kind).to(lower.device)
    lower = torch.where(kind > QUADRATIC, lower.clamp(min=0.0), lower)
    upper = torch.where(kind == BITS, upper.clamp(max=1.0), upper)
    inside = (lower <= upper).all(dim=1)
    upper = torch.maximum(lower, upper)  # crossed bounds must not keep the others from being solved
    weight, power, least = (
        torch.from_numpy(np.ascontiguousarray(p)).to(lower.device) for p in (curves.weight, curves.power, curves.least)
    )
    kinds = tuple(int(k) for k in np.unique(curves.kind))
    count = 0 if curves.has_barrier else form.curved
    dense = DenseCurves(kinds, count, kind, weight, power, least, curves.has_barrier)
    return SmoothProblem(polytope.matrix, polytope.rhs, lower, upper, linear, dense, form.slack), inside


def _is_plain(polytope: OnDevice) -> bool:
    return polytope.forbidden is None and not polytope.form.parameters


def _held(polytope: OnDevice, _: bytes) -> tuple[Tensor, Tensor] | None:
    """The columns that constraints leave one value, and these values; None for none."""
    nothing = torch.zeros(1, 0, dtype=torch.float64, device="cpu")
    host = polytope.prepared.bind_on_host(nothing, None, polytope.precision)
    assert isinstance(host, OnHost)
    fixed, at = columns_without_choice(host, host.instances)
    if fixed is None or at is None:
        return None
    return torch.from_numpy(fixed).to(polytope.lower.device), torch.from_numpy(at).to(polytope.lower.device)


def _solved(
    form: StandardForm, problem: SmoothProblem, curves: Curves, tolerance: float
) -> tuple[SmoothAnswer, Float64[Tensor, " batch"], Float64[Tensor, " batch"]]:
    """The answers, their gaps, and how wrong they may be."""
    smooth = curves.bends(form.unslacked) and not curves.has_barrier and not form.slack
    smooth = smooth and not ((curves.kind == POWER) & (curves.power > 2.0)).any()
    steep = bool(np.isin(curves.kind, (ENTROPY, BITS)).any())
    parts = [
        _solved_at_once(problem.take(piece), smooth, steep, tolerance) for piece in pieces(form, len(problem))
    ] or [(problem.lower, problem.rhs, problem.movable, problem.rhs.sum(1), problem.rhs.sum(1))]
    point, dual, free, gap, error = (torch.cat(part) for part in zip(*parts, strict=True))
    return SmoothAnswer(point, dual, free), gap, error


def _solved_at_once(
    problem: SmoothProblem, smooth: bool, steep: bool, tolerance: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """By Newton steps on the dual where all columns are curved, else, and where these fail, by an interior point, from
    which points are moved onto their active sets."""
    if smooth:
        answer = dual_newton(problem)
        answer, gap, error = _better(problem, None, answer)
        index = torch.nonzero(~(error <= tolerance))[:, 0]
        if len(index):
            some = problem.take(index)
            before = answer.take(index), gap[index], error[index]
            found, gap[index], error[index] = _by_interior_point(some, before, steep, tolerance)
            answer.put(index, found)
    else:
        answer, gap, error = _by_interior_point(problem, None, steep, tolerance)
    return answer.point, answer.dual, answer.free, gap, error


Judged = tuple[SmoothAnswer, Tensor, Tensor]
"""Answers, their gaps and errors."""


def _by_interior_point(problem: SmoothProblem, before: Judged | None, steep: bool, tolerance: float) -> Judged:
    first = interior_point(problem)
    best = _better(problem, before, first)
    if problem.curves.has_barrier:
        return best
    # What is tied to a part with an entropy is never at its bound, but often next to it. So there are two guesses: that
    # columns are at bounds that they are nearer to than their multiplier is to 0, and that only those are which are so
    # near that it makes no difference.
    goal = min(SETTLED, tolerance)
    left = torch.arange(len(problem), device=problem.rhs.device)
    for near in (torch.inf, AT_BOUND) if steep else (torch.inf,):
        some = problem.take(left)
        tried = polish(some, first.take(left), near)
        for attempt in range(ATTEMPTS):
            judged = _better(some, tuple(_taken(part, left) for part in best), tried)  # type: ignore[arg-type]
            best[0].put(left, judged[0])
            best[1][left], best[2][left] = judged[1], judged[2]
            still = torch.nonzero(~(judged[2] <= goal))[:, 0]
            left = left[still]
            if len(left) == 0 or attempt + 1 == ATTEMPTS:
                break
            some, tried = some.take(still), tried.take(still)
            tried = polish_again(some, tried)
        if len(left) == 0:
            break
    return best


def _taken(part: SmoothAnswer | Tensor, index: Tensor) -> SmoothAnswer | Tensor:
    return part.take(index) if isinstance(part, SmoothAnswer) else part[index]


def _better(problem: SmoothProblem, before: Judged | None, answer: SmoothAnswer) -> Judged:
    """The answers of less error."""
    gap, error = certify(problem, answer.point, answer.dual)
    answer = replace(answer, free=answer.free & problem.movable)
    if before is None:
        return answer, gap, error
    better = error < before[2]
    pairs = zip(vars(answer).values(), vars(before[0]).values(), strict=True)
    chosen = SmoothAnswer(*(torch.where(better[:, None], mine, theirs) for mine, theirs in pairs))
    return chosen, torch.where(better, gap, before[1]), torch.where(better, error, before[2])


def _priced(matrix: Tensor, dual: Tensor) -> Tensor:
    return dual @ matrix if matrix.ndim == 2 else (matrix.mT @ dual[:, :, None])[:, :, 0]

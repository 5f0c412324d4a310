"""The only maker of certificates: the verdict on an answer, whoever proposed it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from optlayers.common.caches import WeakCache
from optlayers.form.standard import StandardForm
from optlayers.polytope import Polytope
from optlayers.solution import Status
from optlayers.solvers.addresses import OracleCall
from optlayers.solvers.base import Answer, Instances
from optlayers.solvers.declared import WORD as DECLARED
from optlayers.solvers.declared import judge_declared
from optlayers.solvers.kernels import optimality
from optlayers.solvers.kernels import structures as of_structures
from optlayers.solvers.kernels import vertex as of_vertices
from optlayers.solvers.kernels.batches import of_each
from optlayers.solvers.kernels.calling import FOUND, NOTHING
from optlayers.solvers.plan import KernelInput, Plan, plan_of
from optlayers.solvers.scored_rows import OracleBatch
from optlayers.solvers.separation import ADVICE as SEPARATION
from optlayers.solvers.separation import Separation, SeparationError
from optlayers.solvers.shadows import is_vertex_beside_others

__all__ = ["Certificate", "certify", "certify_points"]

NOT_TOLD = np.empty((0, 0), dtype=np.bool_)
"""In place of active sets."""
AS_GOOD = 1e-6
"""An error below which an answer is right but for being no vertex."""
NO_VERTEX = "its answer may score as much as any, but is no vertex of the polytope"
OPTIMAL, LIMIT = int(Status.OPTIMAL), int(Status.LIMIT)
_hiding: WeakCache[Polytope, bool] = WeakCache()
SEPARATED = 1e-6
"""An answer may violate an inequality that is brought on demand by this much, relative to the size of its terms."""
OWN_DERIVATIVE = "the derivative of the answer is the word of its solver"
NO_ORACLE = "nothing shows that its answer is best: it is a structure, but not by an oracle"
NO_MIXTURE = "nothing shows that its answer is the nearest point: it is not given as a mixture of structures"


@final
@dataclass
class Certificate:
    """Per instance: the largest violation, the gap, and how wrong the answer may be, relative to the numbers involved.

    ``exact`` says whether the active set of a projection, where one is told, is that of the point, so that it can be
    differentiated; ``word`` says what is taken on trust, None where everything is proved; ``reasons`` what is wrong,
    and the verdict that this leads to, where more is known than that nothing is proved.
    """

    residual: Float64[np.ndarray, " batch"]
    gap: Float64[np.ndarray, " batch"]
    error: Float64[np.ndarray, " batch"]
    exact: Bool[np.ndarray, " batch"]
    word: str | None = None
    reasons: dict[int, tuple[Status, str]] = field(default_factory=dict)

    @classmethod
    def to_fill(cls, batch: int) -> Certificate:
        """Numbers that are all going to be written."""
        return cls(np.empty(batch), np.empty(batch), np.empty(batch), np.ones(batch, dtype=bool))

    @classmethod
    def of_nothing(cls, batch: int) -> Certificate:
        """Of instances without an answer."""
        nothing = np.full(batch, np.nan)
        return cls(nothing, nothing.copy(), np.full(batch, np.inf), np.zeros(batch, dtype=bool))

    def replace(self, index: np.ndarray, other: Certificate, which: np.ndarray) -> None:
        """Take over the verdicts ``which`` of ``other`` for the instances ``index``."""
        self.residual[index], self.gap[index] = other.residual[which], other.gap[which]
        self.error[index], self.exact[index] = other.error[which], other.exact[which]
        for k, w in zip(index.tolist(), which.tolist(), strict=True):
            self.reasons.pop(k, None)
            if w in other.reasons:
                self.reasons[k] = other.reasons[w]

    def holds(self, tolerance: float) -> Bool[np.ndarray, " batch"]:
        """Which instances are certified."""
        certified: np.ndarray = self.error <= tolerance
        return certified

    def settles(self, tolerance: float) -> Bool[np.ndarray, " batch"]:
        """Which instances need nobody else: certified, and to be differentiated."""
        settled: np.ndarray = self.holds(tolerance) & self.exact
        return settled

    def all_hold(self, tolerance: float) -> bool:
        """Whether every instance is certified."""
        return bool(np.count_nonzero(self.error <= tolerance) == len(self.error))


def certify(
    form: StandardForm,
    instances: Instances,
    answer: Answer,
    *,
    projection: bool,
    dual_low: Float64[np.ndarray, "batch rows"] | None = None,
) -> Certificate:
    r"""How wrong an answer may be, from its points alone. What its solver says of it counts for nothing.

    **A point z of the standard form** with a dual point y. Let c be the scores, for a projection minus the point
    itself. For every y, :math:`\max_z c^\top z \le b^\top y + \sum_j \max_{l_j \le z_j \le u_j} r_j z_j` with the
    reduced costs :math:`r = c - A^\top y`; ``gap`` is that bound minus the value of z. The error is the largest of

    - the violation of each row, relative to the size of its own terms, :math:`|b_i| + \sum_j |a_{ij} z_j|`, and of each
      bound, relative to the unit of its column (1, or \|z_j\| if that is more, but never more than its bounds allow);
    - for best vertices, of each column that is at no bound or at the wrong one, its reduced cost, relative to the
      terms that it is what is left of (but to no more than the largest score of its block), plus rounding next to that
      score; of each inequality with a price, the smaller of its room and its price, both relative. And the point must
      be a vertex (:mod:`optlayers.solvers.kernels.vertex`);
    - for projections, how far z can be from the nearest point, over 1000 units of the smallest column of its block. A
      projection moves by no more than the scores do, and z is the projection of scores that differ by r in those
      columns of the structure that are at no bound or at the wrong one. What other columns and inequalities leave of
      the gap, g, adds :math:`\sqrt g` to that distance. (``exact``: what the active set calls active is at a bound,
      and what it calls free is held by none.)

    Rounding is added to what it may hide, never subtracted: where it is too large, nothing is certified. With
    ``dual_low``, y is ``dual + dual_low`` and sums are computed in twice the precision, so that next to nothing is
    added. What is not finite is not certified.

    What rows leave is written to the slack columns of the answer.

    **Structures** are held to the rows that scored variables satisfy alone, to integrality, and to the membership
    function; mixtures of structures to all of that for each of them. Where a function brings constraints on demand, it
    is asked about every answer. That no structure is better is the word of an oracle. **Points of sets that are not
    polyhedral** are held to their cones, see :mod:`optlayers.solvers.cone_certificate`, or, where these are others,
    to the declaration, see :mod:`optlayers.solvers.declared`.
    """
    if answer.cones is not None:
        return Certificate(*answer.cones.judged(), np.ones(len(instances), dtype=bool))
    if answer.values is not None:
        return _of_declared(form, instances, answer)
    if answer.whole is not None:
        return _of_mixtures(form, instances, answer) if projection else _of_structures(form, instances, answer)
    certificate = certify_points(plan_of(form), form, instances, answer, projection, dual_low)
    if not projection and form.scored:
        _refuse_no_vertices(form, instances, answer, certificate)
    if answer.pullback is not None:
        certificate.word = OWN_DERIVATIVE
    return certificate


def certify_points(
    plan: Plan,
    form: StandardForm,
    instances: Instances,
    answer: Answer,
    projection: bool,
    dual_low: Float64[np.ndarray, "batch rows"] | None = None,
) -> Certificate:
    """The certificate of points of the standard form, of nearest points or of best ones; see :func:`certify`."""
    count = len(instances.whole)
    certificate = Certificate(np.empty(count), np.empty(count), np.empty(count), np.empty(count, dtype=bool))
    rhs, lower, upper, matrix = instances.shared
    point, dual = np.ascontiguousarray(answer.point), np.ascontiguousarray(answer.dual)
    numbers = (
        plan.start,
        plan.row,
        plan.entries if matrix is None else matrix,
        form.equalities,
        plan.row_scale if instances.row_scale is None else plan.row_scale * instances.row_scale,
        plan.column_block,
        plan.row_block,
        plan.blocks,
        of_each(instances.scores),
        form.curved if projection else 0,
        rhs,
        lower,
        upper,
    )
    found = (
        dual_low is not None,
        point,
        dual,
        dual if dual_low is None else dual_low,
        NOT_TOLD if answer.free is None else answer.free,
        certificate.residual,
        certificate.gap,
        certificate.error,
        certificate.exact,
    )
    if count < plan.certified_alone:
        optimality.certify(*numbers, np.arange(count), *found)
    else:
        plan.spread(lambda which: optimality.certify(*numbers, which, *found), count, solves=1)
    answer.point = point
    return certificate


def _refuse_no_vertices(form: StandardForm, instances: Instances, answer: Answer, certificate: Certificate) -> None:
    plan = plan_of(form)
    batch, vertex = KernelInput.of(plan, instances), np.full(len(instances), of_vertices.VERTEX, dtype=np.int8)
    point, dual = np.ascontiguousarray(answer.point), np.ascontiguousarray(answer.dual)
    good = np.flatnonzero(np.isfinite(certificate.error))

    def judge(kernel: Callable[..., None], some: np.ndarray) -> None:
        of_all = form.equalities, form.scored, batch.scores, batch.rhs, batch.lower, batch.upper

        def work(which: np.ndarray) -> None:
            kernel(plan.start, plan.row, batch.matrix, *plan.by_row, *of_all, some[which], point, dual, vertex)

        plan.spread(work, len(some), solves=1)

    judge(of_vertices.are_vertices, good)
    left = np.flatnonzero(vertex == of_vertices.OPEN)
    if len(left):
        judge(of_vertices.are_vertices_by_elimination, left)
    for k in np.flatnonzero(vertex != of_vertices.VERTEX).tolist():
        if vertex[k] == of_vertices.UNKNOWN and is_vertex_beside_others(form, instances, k, point[k]):
            continue
        if certificate.error[k] <= AS_GOOD:
            certificate.reasons[k] = Status.INACCURATE, NO_VERTEX
        certificate.error[k] = np.inf


def _of_structures(form: StandardForm, instances: Instances, answer: Answer) -> Certificate:
    call = answer.oracle
    if call is None:
        certificate = Certificate.of_nothing(len(instances))
        certificate.reasons = dict.fromkeys(range(len(instances)), (Status.INACCURATE, NO_ORACLE))
        return certificate
    certificate = Certificate.to_fill(len(instances))
    certificate.gap[:] = np.nan
    certificate.word = f"that no structure scores more is the word of {call}{_hidden(form)}"
    batch, codes = OracleBatch.of(form, call, instances), _codes(answer.status)
    point = np.ascontiguousarray(answer.scored_vectors)

    def work(which: np.ndarray) -> None:
        of_structures.certify(
            call.call, batch.rows, batch.theta, which, point, codes, certificate.residual, certificate.error
        )

    call.spread("look", work, len(instances))
    _explain(call, codes, certificate)
    if form.polytope.separate is not None:
        _hold_to_separation(form, instances, point, codes, certificate)
    elif form.unslacked == form.scored and not form.polytope.integral and not _hides_variables(form):
        _refuse_no_vertices(form, instances, _as_points(form, instances, point), certificate)
    return certificate


def _as_points(form: StandardForm, instances: Instances, whole: Float64[np.ndarray, "batch size"]) -> Answer:
    """Structures as points of a standard form that has no other variables."""
    answer = Answer.to_fill(form, len(whole))
    answer.point[:, : form.scored] = whole[:, form.kept]
    answer.point[:, form.scored :] = 0.0  # what rows leave is for the kernel to see
    return answer


def _of_mixtures(form: StandardForm, instances: Instances, answer: Answer) -> Certificate:
    mixture, call = answer.decomposition, answer.oracle
    if mixture is None or call is None:
        certificate = Certificate.of_nothing(len(instances))
        certificate.reasons = dict.fromkeys(range(len(instances)), (Status.INACCURATE, NO_MIXTURE))
        return certificate
    # At its limit a solver may have come far enough.
    certificate, codes = (
        Certificate.to_fill(len(instances)),
        _codes(np.where(answer.status == LIMIT, OPTIMAL, answer.status)),
    )
    certificate.word = f"that no structure reaches beyond the answer is the word of {call}{_hidden(form)}"
    batch, point = OracleBatch.of(form, call, instances), np.ascontiguousarray(answer.scored_vectors)

    def work(which: np.ndarray) -> None:
        of_structures.certify_mixtures(
            *batch.arguments,
            form.structure_size,
            which,
            point,
            mixture.first,
            mixture.weight,
            mixture.start,
            mixture.index,
            mixture.value,
            codes,
            certificate.residual,
            certificate.gap,
            certificate.error,
        )

    call.spread("look at mixtures", work, len(instances))
    _explain(call, codes, certificate)
    if form.polytope.separate is not None:
        _hold_to_separation(form, instances, point, codes, certificate)
    return certificate


def _hold_to_separation(
    form: StandardForm,
    instances: Instances,
    points: Float64[np.ndarray, "batch size"],
    codes: Int64[np.ndarray, " batch"],
    certificate: Certificate,
) -> None:
    """Show every answer to the function that brings constraints on demand: it must find nothing that it violates."""
    separation = Separation(form.polytope)
    told: dict[bytes, tuple[Status | None, str]] = {}  # samples of few structures are asked about once
    for k in np.flatnonzero(codes == FOUND).tolist():
        point, theta = points[k], instances.parameters[k]
        key = point.tobytes() + theta.tobytes()
        if key not in told:
            told[key] = _held_to(separation, point, theta)
        status, reason = told[key]
        if status is not None:
            certificate.reasons[k] = status, reason
            certificate.error[k] = np.inf


def _held_to(separation: Separation, point: np.ndarray, theta: np.ndarray) -> tuple[Status | None, str]:
    """What is wrong with an answer by a function that separates; None where that finds nothing."""
    try:
        worst = max((cut.violation(point) for cut in separation.cuts(point, theta)), default=0.0)
    except SeparationError as error:
        return Status.FAILED, str(error)
    if worst <= SEPARATED:
        return None, ""
    return Status.INACCURATE, (
        f"its answer violates an inequality of {separation} by {worst:.3g} next to its terms; {SEPARATION}"
    )


def _codes(status: Int[np.ndarray, " batch"]) -> Int64[np.ndarray, " batch"]:
    """FOUND where the solver has an answer; the others are not looked at."""
    codes = np.full(len(status), FOUND, dtype=np.int64)
    if np.count_nonzero(status):
        codes[status != OPTIMAL] = NOTHING
    return codes


def _hidden(form: StandardForm) -> str:
    """What is taken on trust of the constraints."""
    if form.polytope.membership is not None or not _hides_variables(form):
        return ""
    return "; so are the constraints with auxiliary variables, for no membership function is declared"


def _hides_variables(form: StandardForm) -> bool:
    """Whether there are auxiliary variables without scores, of which the rows of structures say nothing."""
    return _hiding.get(form.polytope, lambda polytope: len(polytope.variables) > 1 + len(polytope.scored))


def _explain(call: OracleCall, codes: Int64[np.ndarray, " batch"], certificate: Certificate) -> None:
    """Put codes of the kernel into words."""
    call.interrupt()
    if np.count_nonzero(codes) == 0:
        return
    for k in np.flatnonzero((codes != FOUND) & (codes != NOTHING)).tolist():
        certificate.reasons[k] = call.explain(int(codes[k]), float(certificate.residual[k]))


def _of_declared(form: StandardForm, instances: Instances, answer: Answer) -> Certificate:
    return Certificate(*judge_declared(form, instances, answer), np.ones(len(instances), dtype=bool), word=DECLARED)

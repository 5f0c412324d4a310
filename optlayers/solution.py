"""Answers that carry their verdict."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int8
from torch import Tensor

from optlayers.common.caches import cached_property
from optlayers.common.pages import facts, heading, page, sentence, table
from optlayers.form.standard import ParameterSpec, StandardForm
from optlayers.mixture import Decomposition
from optlayers.shifted import ByConstraint

__all__ = [
    "AbstractEvidence",
    "AbstractFunction",
    "Failure",
    "Proof",
    "Solution",
    "SolveError",
    "Status",
    "all_of",
    "any_of",
]


class Status(IntEnum):
    """The verdict on one instance.

    ``solution.status`` holds these numbers as int8, one for each instance, and ``Status(int(solution.status[0]))`` is
    the verdict on the first: ``meaning`` says it in words, ``advice`` what to try. Only answers that are OPTIMAL are
    to be used.
    """

    OPTIMAL = 0
    """Every constraint holds and the duality gap is closed, within the tolerance of the compiled polytope; a best
    vertex is a vertex. This is proved from the answer itself, whatever its solver says of it. What cannot be proved
    (that the answer of an oracle is best, for example) is said by :attr:`Solution.word`."""
    INFEASIBLE = 1
    """No point satisfies the constraints of this instance."""
    UNBOUNDED = 2
    """The objective grows without bound."""
    INACCURATE = 3
    """A point was found, but its residual or its gap exceeds the tolerance; or an oracle's answer is no structure."""
    LIMIT = 4
    """The solver stopped at its limit of iterations or of time."""
    FAILED = 5
    """The solver gave up for numerical reasons, or a function of the declaration failed; the reason says which."""

    @property
    def meaning(self) -> str:
        """The verdict in words."""
        return _MEANING[self]

    @property
    def advice(self) -> str:
        """What a user can try."""
        return _ADVICE[self]


_MEANING = {
    Status.OPTIMAL: "feasible, and the duality gap is closed",
    Status.INFEASIBLE: "no point satisfies its constraints",
    Status.UNBOUNDED: "the objective grows without bound",
    Status.INACCURATE: "the residual or the gap of its answer exceeds the tolerance",
    Status.LIMIT: "the solver stopped at its limit of iterations or of time",
    Status.FAILED: "the solver gave up for numerical reasons",
}
_ADVICE = {
    Status.OPTIMAL: "nothing to do",
    Status.INFEASIBLE: "check the parameters and the forbidden parts (scores of -inf) of this instance",
    Status.UNBOUNDED: "bound every scored part from below and from above",
    Status.INACCURATE: "rescale scores and constraints to similar magnitudes, or pass tolerance= to compile_polytope",
    Status.LIMIT: "raise the solver's iteration or time limit, or rescale the scores",
    Status.FAILED: "rescale scores and constraints to similar magnitudes, or choose another solver",
}


TOLD, NAMED = 5, 20
"""So many failures a page explains, and so many more it names."""


@final
@dataclass(frozen=True)
class Failure:
    """One instance without a certified answer.

    ``index`` is its place in the dimensions of the batch, ``()`` without any; ``status`` the verdict, a
    :class:`Status`; ``reason`` a sentence.
    """

    index: tuple[int, ...]
    status: Status
    reason: str

    @property
    def where(self) -> str:
        """The index as a user writes it; nothing where there is no batch."""
        return str(self.index[0] if len(self.index) == 1 else self.index) if self.index else ""

    @property
    def advice(self) -> str:
        """What to try; nothing where the reason says it, as of what an oracle did or a derivative lacks."""
        general = self.reason == self.status.meaning or self.status in (Status.INFEASIBLE, Status.LIMIT)
        return self.status.advice if general else ""

    def __str__(self) -> str:
        where = f"instance {self.where}" if self.index else "the instance"
        return f"{where} is {self.status.name}: {self.reason}{'; ' if self.advice else ''}{self.advice}"


@final
class SolveError(RuntimeError):
    """Some instances of a batch have no certified answer.

    Layers, losses, distributions and :meth:`Solution.check` raise it. ``failures`` has a :class:`Failure` for each of
    them, ``batch`` is how many instances there were, and the message shows the first five. ``on_failure="nan"`` of a
    layer makes such instances NaN instead.
    """

    shown = 5

    def __init__(self, failures: Sequence[Failure], batch: int) -> None:
        self.failures = tuple(failures)
        self.batch = batch
        lines = [f"{len(failures)} of {batch} instances could not be solved"]
        lines += [f"  {failure}" for failure in self.failures[: self.shown]]
        if len(failures) > self.shown:
            rest = [f.index[0] if len(f.index) == 1 else f.index for f in self.failures[self.shown :]]
            lines.append(f"  and instances {rest}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[SolveError], tuple[Sequence[Failure], int]]:
        return type(self), (self.failures, self.batch)


@final
@dataclass(frozen=True)
class Proof:
    """Points of a standard form with their slack, the multipliers of its rows, and the active sets of projections.

    ``free`` marks the columns that no bound holds, None for best vertices; ``exact`` says whether that is the active
    set of the point.
    """

    point: Float64[np.ndarray, "batch columns"]
    dual: Float64[np.ndarray, "batch rows"]
    free: Bool[np.ndarray, "batch columns"] | None
    exact: Bool[np.ndarray, " batch"]


class AbstractFunction(ABC):
    """Answers as functions of scores and θ that autograd differentiates to any order; all of it is flat."""

    @property
    @abstractmethod
    def value(self) -> Float64[Tensor, "batch size"]:
        """The answers, with a graph."""

    @abstractmethod
    def tangent(
        self, direction: Float64[Tensor, "batch size"]
    ) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, "batch parameters"]]:
        """For a gradient of the answers those of scores and of θ, with a graph."""

    @abstractmethod
    def value_gradient(self) -> Float64[Tensor, "batch parameters"]:
        """The gradient of optimal values with respect to θ, with a graph."""


class AbstractEvidence(ABC):
    """What belongs to the answers of a batch besides their values, all of it flat."""

    form: StandardForm
    decomposition: Decomposition | None = None
    """The vertices that answers mix, where they are given so."""
    curvature: Callable[[Tensor, Tensor | None], Tensor] | None = None
    """Of regularized points: the curvature of the regularizer as a function of them and of θ, 0 where no part moves."""
    once: str | None = None
    """Why the derivative of answers that are no projections has none of its own; None where it has."""
    without_derivative: str = (
        "its active constraints are too nearly dependent to differentiate; drop or rescale those that nearly repeat "
        "others"
    )
    """Why there is no derivative where ``tangent`` finds none."""
    without_value_gradient: Mapping[int, str] = MappingProxyType({})
    """Why instances that have an answer have no gradient of its value, by their place; known once it was asked for."""
    of_regularizer: Sequence[ParameterSpec] = ()
    """The parameters that are the number of a regularizer."""

    def slope(self, points: Tensor, theta: Tensor | None) -> Tensor:
        """The slope of the regularizer at regularized points, as a function of them and of θ."""
        raise NotImplementedError("there is a slope where there is a regularizer")

    def function(
        self,
        scores: Float64[Tensor, "batch size"],
        theta: Float64[Tensor, "batch parameters"],
        failed: Callable[[Bool[Tensor, " batch"]], None],
    ) -> AbstractFunction | None:
        """The answers as functions of scores and θ, None where they are not known as such; ``failed`` is told for which
        instances a derivative does not exist."""
        return None

    @property
    @abstractmethod
    def proof(self) -> Proof:
        """What the certificates look at, on the CPU."""

    @abstractmethod
    def tangent(
        self, direction: Float64[Tensor, "batch size"], ok: Bool[Tensor, " batch"] | None
    ) -> tuple[
        Float64[Tensor, "batch size"], Callable[[], Float64[Tensor, "batch parameters"]], Bool[Tensor, " batch"]
    ]:
        """For a gradient of the answers that of the scores, what works out that of θ, and for which of the instances
        ``ok`` (None for all) these are right; 0 for the others."""

    def multipliers(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """The gradient of optimal values with respect to θ by the dual point that was found, though there may be
        several, and though θ may be at the edge of where there are points at all."""
        return self.value_gradient(ok)

    @abstractmethod
    def value_gradient(self, ok: Bool[Tensor, " batch"]) -> Float64[Tensor, "batch parameters"]:
        """The gradient of optimal values with respect to θ; 0 for instances that are not ``ok``.

        Raises
        ------
        ValueError : where there are no dual points.
        """


@final
@dataclass(frozen=True)
class Solution:
    """The answers to a batch, with a verdict for every instance.

    Attributes
    ----------
    value : ``(*batch, *shape)``, in the dtype and on the device of the scores. Where ``status`` is not ``OPTIMAL``
        the value must not be trusted.
    status : ``(*batch,)`` int8, a :class:`Status` per instance.
    primal_residual : ``(*batch,)`` float64, the largest violation of any constraint, in the units of the constraints;
        of an answer by an oracle also how far it is from integers, if it must be integral, and what the membership
        function says. (Whether a violation is one is decided relative to the size of the constraint's own terms.)
    gap : ``(*batch,)`` float64. For ``maximize``: how far ``<scores, value>`` can be below the maximum. For
        ``project``: an upper bound on ``max_v <s - x, v - x>`` over the polytope, so that the distance of ``x`` from
        the true projection is at most ``sqrt(gap)``. NaN for best vertices by an oracle, which proves nothing.
    reasons : what went wrong, per flat index of a failed instance.
    scored : the values of auxiliary variables that are scored, by name, ``(*batch, *shape)``.
    word : what of the verdicts is taken on trust, in words; None where everything is proved.
    """

    value: Tensor
    status: Int8[Tensor, "*batch"]
    primal_residual: Float64[Tensor, "*batch"]
    gap: Float64[Tensor, "*batch"]
    reasons: Mapping[int, str] = field(default_factory=dict)
    evidence: AbstractEvidence | None = field(default=None, repr=False)
    scored: Mapping[str, Tensor] = field(default_factory=dict)
    mixture: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    """Vertices and weights where the latter have a gradient."""
    word: str | None = None
    violation: Float64[Tensor, "*batch"] | None = None
    """Of :class:`optlayers.Elastic`: the weighted norm of the least violation, 0 where all constraints hold."""
    violations: ByConstraint | None = field(default=None, repr=False)
    """Of :class:`optlayers.Elastic`: by how much each constraint is violated, ``(*batch, *shape of it)``."""
    ask_for_duals: Callable[[], ByConstraint] | None = field(default=None, repr=False)
    """What works out :attr:`duals`."""
    asked: Tensor | None = field(default=None, repr=False)
    """The scores that an answer with a graph is of, where it is known as a function of these alone."""
    function: AbstractFunction | None = field(default=None, repr=False)
    """The answer as a function of scores and θ, where it has a graph."""

    @property
    def vertices(self) -> Float[Tensor, "*batch most *shape"]:
        """The vertices that a projection mixes, ``(*batch, most, *shape)``; 0 where an instance has fewer.

        Raises
        ------
        ValueError : when the answer is not a mixture of vertices; :class:`optlayers.ActiveSet` gives such answers.
        """
        return (self.mixture or self._mixture)[0]

    @property
    def weights(self) -> Float[Tensor, "*batch most"]:
        """How much of each vertex, ``(*batch, most)``, sums to 1; 0 where an instance has fewer.

        Differentiable with respect to the scores when the solution comes from :meth:`optlayers.OptLayer.solve`. A point
        may be a mixture of vertices in several ways; which one is given depends on the scores alone, but may change
        from one to another as they change, where the point itself moves continuously.
        """
        return (self.mixture or self._mixture)[1]

    @cached_property
    def _mixture(self) -> tuple[Tensor, Tensor]:
        decomposition = None if self.evidence is None else self.evidence.decomposition
        if decomposition is None:
            raise ValueError(
                "this solution is not given as a mixture of vertices; project with projector=optlayers.ActiveSet(), "
                "for which the polytope needs an oracle"
            )
        batch, shape = self.status.shape, self.value.shape[self.status.ndim :]
        vertices, weights = decomposition.dense()
        size = math.prod(shape)
        most = weights.shape[1]
        whole = torch.from_numpy(vertices[:, :, :size]).reshape(*batch, most, *shape)
        given = torch.from_numpy(weights).reshape(*batch, most)
        return whole.to(self.value.device, self.value.dtype), given.to(self.value.device, self.value.dtype)

    @cached_property
    def duals(self) -> ByConstraint:
        r"""The multipliers of the constraints of the declaration, ``(*batch, *shape of the constraint)`` each.

        A multiplier is the price of a constraint: what the optimal value
        :math:`\max_{z \in P} \langle s, z \rangle - \Omega(z)` gains for each unit by which the right side of a
        ``<=`` or ``==`` is raised, or that of a ``>=`` is lowered; that of an inequality is not negative, and 0 where
        there is room. They are those that cvxpy calls ``dual_value``. Bounds that are attributes of a variable
        (``nonneg=True``) are no constraints here. Where active constraints depend on each other there are several
        multipliers, and these are some of them. NaN for instances without an answer.

        They are looked up by the constraint, by its place, or by its label: ``solution.duals[budget]``. To look at them
        costs one more solve, and once a compilation. Of solutions of :meth:`optlayers.OptLayer.solve` under
        :class:`optlayers.SparseMAP` and :class:`optlayers.Regularized` they have a gradient, for scores and parameters.

        Raises
        ------
        ValueError : where the answer is none of an optimization over constraints (marginals, samples, families).
        DeclarationError : variables that are integers; constraints that are a relaxation; constraints between cones.
        """
        if self.ask_for_duals is None:
            raise ValueError(
                "this solution has no multipliers: those of maximize(), project() and regularized() have, and those of "
                "OptLayer.solve() over one polytope under rules whose forward pass is one of these"
            )
        return self.ask_for_duals()

    @property
    def ok(self) -> Bool[Tensor, "*batch"]:
        """Which instances are certified."""
        return self.status == 0

    @cached_property
    def all_ok(self) -> bool:
        """Whether every instance is certified."""
        return not any_of(self.status)

    @property
    def failures(self) -> list[Failure]:
        """Every instance without a certified answer."""
        return [self._failure(position) for position in torch.nonzero(self.status.reshape(-1)).flatten().tolist()]

    def _failure(self, position: int) -> Failure:
        """Why an instance, by its place in the flat batch, has no certified answer."""
        index = tuple(int(i) for i in np.unravel_index(position, self.status.shape))
        status = Status(int(self.status.reshape(-1)[position]))
        return Failure(index, status, self.reasons.get(position, status.meaning))

    def failing(self, which: Bool[Tensor, " batch"], reason: str) -> Solution:
        """This solution with the instances ``which`` failed too, for a flat batch."""
        if not any_of(which):
            return self
        new = which & self.ok
        return self.failing_each(dict.fromkeys(torch.nonzero(new).flatten().tolist(), reason))

    def failing_each(self, reasons: Mapping[int, str]) -> Solution:
        """This solution with further instances failed, each for its reason, for a flat batch."""
        status = self.status.clone()
        status[list(reasons)] = int(Status.FAILED)
        return replace(self, status=status, reasons=dict(self.reasons) | dict(reasons))

    def check(self) -> Solution:
        """Return the solution itself, or raise :class:`SolveError` naming every failed instance."""
        if not self.all_ok:
            raise SolveError(self.failures, self.status.numel())
        return self

    @page
    def _repr_html_(self) -> Iterator[str]:
        batch, status = tuple(self.status.shape), _flat(self.status)
        many = "1 instance" if len(status) == 1 else f"{len(status):,} instances"
        yield heading(f"Solution of {many}{f' in a batch {batch}' if len(batch) > 1 else ''}")
        counts = [(one, int(np.count_nonzero(status == one))) for one in Status]
        if len(status):
            rows = [[one.name, f"{count:,}", one.meaning] for one, count in counts if count]
            yield table(["status", "instances", "meaning"], rows)
        residual, gap, certified = _flat(self.primal_residual), _flat(self.gap), status == Status.OPTIMAL
        scored = [f"{name} {tuple(value.shape[len(batch) :])}" for name, value in self.scored.items()]
        known = [
            ("value", f"of shape {tuple(self.value.shape[len(batch) :])}, {self.value.dtype}, on {self.value.device}"),
            ("scored besides", ", ".join(scored)),
            ("worst residual", _worst(residual[certified])),
            ("worst gap", _worst(gap[certified])),
            ("worst violation", "" if self.violation is None else _worst(_flat(self.violation)[certified])),
            ("taken on trust", self.word or ""),
        ]
        yield facts(known)
        failed = np.flatnonzero(~certified)
        if len(failed):
            told = [self._failure(int(position)) for position in failed[:TOLD]]
            rows = [
                [one.where, one.status.name, f"{residual[k]:.1e}", f"{gap[k]:.1e}", one.reason, one.advice]
                for k, one in zip(failed, told, strict=False)
            ]
            yield table(["instance", "status", "residual", "gap", "reason", "what to try"], rows)
        if len(failed) > TOLD:
            named = ", ".join(self._failure(int(position)).where for position in failed[TOLD : TOLD + NAMED])
            more = "" if len(failed) <= TOLD + NAMED else ", …"
            yield sentence(f"And {len(failed) - TOLD:,} more, {named}{more}: solution.failures lists all of them.")


def _flat(numbers: Tensor) -> np.ndarray:
    """The numbers of a batch, on the CPU."""
    return np.asarray(numbers.detach().cpu().numpy()).reshape(-1)


def _worst(numbers: np.ndarray) -> str:
    """The largest of the numbers that are known; nothing of no instance."""
    known = numbers[~np.isnan(numbers)]
    return f"{known.max():.2g}, of instances with an answer" if len(known) else "not known" if len(numbers) else ""


def all_of(flags: Tensor) -> bool:
    """Whether all flags are set."""
    return bool(np.count_nonzero(flags.numpy()) == flags.numel() if flags.is_cpu else flags.all())


def any_of(flags: Tensor) -> bool:
    """Whether some entry is not 0; to count is what NumPy does quickest, where there are few."""
    return bool(np.count_nonzero(flags.numpy()) if flags.is_cpu else flags.any())

"""What a solver is given, what it gives back, and what it must be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float64, Int8, Int64

from optlayers.common.caches import cached_property
from optlayers.form.standard import StandardForm
from optlayers.mixture import Decomposition
from optlayers.solvers.addresses import OracleCall
from optlayers.solvers.kernels.batches import per_instance

__all__ = [
    "AbstractJudged",
    "AbstractMaximizer",
    "AbstractProjector",
    "AbstractSolver",
    "Answer",
    "Instances",
    "NOT_ASKED",
    "Pullback",
]

NOT_ASKED = -1
"""The status of an instance that a solver leaves to others: what those before have said of it stands."""
Pullback = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""From a direction ``(batch, scored)`` to gradients of scores and of parameters, and for which instances."""


class AbstractJudged(ABC):
    """Points of a program with cones, with their prices."""

    @abstractmethod
    def judged(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Residual, gap and relative error of every instance."""


class Shared(NamedTuple):
    """Right-hand sides, bounds and entries of A (None where these are the form's), as kernels take them: a row for each
    instance, or a single one that all share."""

    rhs: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    matrix: np.ndarray | None


@final
@dataclass(frozen=True)
class Instances:
    r"""A batch of problems over one standard form: ``A z = b``, ``lower <= z <= upper``.

    ``whole`` are the scores as they were asked about, of entries that the constraints fix too; ``kept`` are the entries
    that have a column in the form, None where all have. ``matrix`` holds the entries of A per instance, in the
    order of ``form.matrix.data``, when a parameter enters A, else None. ``forbidden`` marks columns that an instance
    fixes at 0 (scores of -inf); ``lower`` and ``upper`` already say so. ``parameters`` are the numbers behind b,
    bounds and matrix, for solvers that want them. Rows are those of the form times ``row_scale``, powers of two, where
    parameters enter the matrix; None stands for 1.
    """

    whole: Float64[np.ndarray, "batch size"]
    kept: Int64[np.ndarray, " scored"] | None
    rhs: Float64[np.ndarray, "batch rows"]
    lower: Float64[np.ndarray, "batch columns"]
    upper: Float64[np.ndarray, "batch columns"]
    matrix: Float64[np.ndarray, "batch entries"] | None
    forbidden: Bool[np.ndarray, "batch columns"] | None
    parameters: Float64[np.ndarray, "batch parameters"]
    row_scale: Float64[np.ndarray, "batch rows"] | None = None
    starts: Float64[np.ndarray, "batch size"] | None = None
    """Vertices that solvers may begin with."""

    def __len__(self) -> int:
        return len(self.whole)

    @cached_property
    def scores(self) -> Float64[np.ndarray, "batch scored"]:
        """Of the scored columns of the form, gathered when they are first asked for: oracles take the whole."""
        # NumPy takes 5 ns a number, as long as an oracle of small structures; "clip" spares it a copy of the indices.
        return self.whole if self.kept is None else self.whole.take(self.kept, axis=1, mode="clip")

    @cached_property
    def shared(self) -> Shared:
        """The numbers besides scores as kernels take them."""
        matrix = None if self.matrix is None else per_instance(self.matrix)
        return Shared(per_instance(self.rhs), per_instance(self.lower), per_instance(self.upper), matrix)

    def matrix_of(self, form: StandardForm, k: int) -> sp.csc_array:
        """A of instance ``k``, with its slack columns."""
        data = form.matrix.data if self.matrix is None else self.matrix[k]
        return sp.csc_array((data, form.matrix.indices, form.matrix.indptr), shape=form.matrix.shape)

    def numbers_of(self, k: int) -> bytes:
        """What makes instance ``k`` the same polytope as another one of its form."""
        parts = (self.rhs, self.lower, self.upper, self.matrix, self.forbidden, self.parameters)
        return b"".join(np.ascontiguousarray(part[k]).tobytes() for part in parts if part is not None)

    def with_scores(
        self, whole: Float64[np.ndarray, "batch size"], starts: Float64[np.ndarray, "batch size"] | None = None
    ) -> Instances:
        """These problems with other scores."""
        # "shared" is made here, once for all scores. A frozen record takes three times as long as its dictionary.
        numbers = {**self.__dict__, "shared": self.shared, "whole": whole, "starts": starts, "scores": whole}
        if self.kept is not None:
            del numbers["scores"]
        other = object.__new__(Instances)
        object.__setattr__(other, "__dict__", numbers)
        return other

    def take(self, index: np.ndarray | slice) -> Instances:
        """A part of the batch."""

        def part(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[index]

        return Instances(
            self.whole[index],
            self.kept,
            self.rhs[index],
            self.lower[index],
            self.upper[index],
            part(self.matrix),
            part(self.forbidden),
            self.parameters[index],
            part(self.row_scale),
            part(self.starts),
        )


@final
@dataclass
class Answer:
    """What a solver proposes, and its own word on each instance. Whether it is right is for the certificate to say.

    ``point`` and ``dual`` are points of the standard form and of its dual. ``free`` marks the columns that no bound
    holds in the tangent of a projection, where the point was computed exactly on this active set; else a projection is
    polished, from the bounds ``low`` and ``high`` that the solver thinks are active where it says so.

    A solver that reads the declaration answers for the scored vector as a ``whole`` instead. Where that is a mixture of
    structures, ``decomposition`` says of which, and ``oracle`` is the function that brought them. A projector of sets
    that are not polyhedral gives the structure as ``whole``, and the ``values`` of all variables of the declaration; or
    the points of its ``cones``, which say what is wrong with them. ``of_value`` gives the gradient of best values by
    parameters, where there is no dual point of the standard form.

    ``pullback`` maps a direction ``(batch, scored)`` to gradients of scores and of parameters, and says for which
    instances; without one, the derivative is that of the active set. ``status`` and ``reasons`` say why instances have
    no answer; ``NOT_ASKED`` leaves that to the solvers before.
    """

    point: Float64[np.ndarray, "batch columns"]
    dual: Float64[np.ndarray, "batch rows"]
    status: Int8[np.ndarray, " batch"]
    free: Bool[np.ndarray, "batch columns"] | None = None
    low: Bool[np.ndarray, "batch columns"] | None = None
    high: Bool[np.ndarray, "batch columns"] | None = None
    pullback: Pullback | None = None
    decomposition: Decomposition | None = None
    oracle: OracleCall | None = None
    whole: Float64[np.ndarray, "batch size"] | None = None
    values: Sequence[np.ndarray] | None = None
    cones: AbstractJudged | None = None
    of_value: Callable[[], np.ndarray] | None = None
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def scored_vectors(self) -> Float64[np.ndarray, "batch size"]:
        """The ``whole`` of a solver that gives it."""
        if self.whole is None:
            raise RuntimeError("this answer is a point of the standard form")
        return self.whole

    def take(self, index: np.ndarray) -> Answer:
        """The points of some instances."""

        def part(array: np.ndarray | None) -> np.ndarray | None:
            return None if array is None else array[index]

        point, dual, status = self.point[index], self.dual[index], self.status[index]
        return Answer(point, dual, status, part(self.free), part(self.low), part(self.high))

    def replace(self, index: np.ndarray, other: Answer, which: np.ndarray) -> None:
        """Take over the points ``which`` of ``other`` for the instances ``index``."""
        if self.whole is not None or other.whole is not None:
            raise RuntimeError("answers of solvers that read the declaration are not mixed with others")
        self.point[index], self.dual[index] = other.point[which], other.dual[which]
        if self.free is not None and other.free is not None:
            self.free[index] = other.free[which]
        self.low = self.high = None
        for k, w in zip(index.tolist(), which.tolist(), strict=True):
            self.reasons.pop(k, None)
            if w in other.reasons:
                self.reasons[k] = other.reasons[w]

    @classmethod
    def to_fill(cls, form: StandardForm, batch: int) -> Answer:
        """An answer whose numbers are all going to be written."""
        return cls(np.empty((batch, form.columns)), np.empty((batch, form.rows)), np.zeros(batch, dtype=np.int8))

    @classmethod
    def of_whole(cls, form: StandardForm, batch: int) -> Answer:
        """An answer whose scored vectors are going to be written as a whole."""
        nothing = np.empty((batch, 0))
        return cls(nothing, nothing, np.zeros(batch, dtype=np.int8), whole=np.empty((batch, form.size)))

    @classmethod
    def empty(cls, form: StandardForm, batch: int) -> Answer:
        """An answer to be filled in, instance by instance."""
        return cls(
            np.full((batch, form.columns), np.nan),
            np.full((batch, form.rows), np.nan),
            np.zeros(batch, dtype=np.int8),
        )


class AbstractSolver(ABC):
    """A solver is a value: it can be printed, compared and reused. What it builds lives in the state of ``prepare``.

    The answer depends on the question alone, whatever was asked before and whatever else is in the batch.
    """

    polyhedral_only: bool = True
    """Whether the solver needs a standard form; if not, it is prepared from the declaration alone."""
    reads_declaration: bool = False
    """Whether an oracle answers, so that rows with further auxiliary variables are not needed."""
    accuracy: float = 0.0
    """The relative gap that the solver can be held to at best; 0 when it has no limit but rounding."""
    manner: str = "as requested"
    """How the solver works, in a few words, for ``explain``."""

    def explain_projector(self, form: StandardForm) -> str:
        """Who projects onto this form, how, and why."""
        return f"{self!r} ({self.manner})"

    def explain_maximizer(self, form: StandardForm) -> str:
        """Who finds best vertices of this form, how, and why."""
        return f"{self!r} ({self.manner})"

    @abstractmethod
    def prepare(self, form: StandardForm) -> Any:
        """Build what can be built once per polytope. The state may be used by several threads at once."""

    def maximizers_in_turn(self, state: Any) -> Iterator[tuple[AbstractMaximizer, Any]]:
        """Who is asked for best vertices, one after the other until all instances are certified, with their states."""
        if isinstance(self, AbstractMaximizer):
            yield self, state

    def projectors_in_turn(self, state: Any) -> Iterator[tuple[AbstractProjector, Any]]:
        """Who is asked for projections, one after the other until all instances are certified, with their states."""
        if isinstance(self, AbstractProjector):
            yield self, state


class AbstractMaximizer(AbstractSolver):
    """A solver that finds, for every instance, a vertex with the largest ``<scores, x>``.

    ``maximize(state, instances)`` takes what ``prepare(form)`` returned and a batch over this standard form, and
    proposes an :class:`Answer`, with a status for each instance: it does not raise for single ones. Certificates are
    made elsewhere.
    """

    @abstractmethod
    def maximize(self, state: Any, instances: Instances) -> Answer:
        """A vertex per instance, decided by the instance alone when several are best."""


class AbstractProjector(AbstractSolver):
    r"""A solver that finds the nearest point: :math:`\operatorname{argmin}_x \tfrac12 \|x - s\|^2` of every instance.

    ``project(state, instances)`` takes what ``prepare(form)`` returned and a batch over this standard form, and
    proposes an :class:`Answer`, with a status for each instance: it does not raise for single ones. Certificates are
    made elsewhere.
    """

    @abstractmethod
    def project(self, state: Any, instances: Instances) -> Answer:
        """The nearest point per instance."""

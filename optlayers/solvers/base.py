"""What a solver is given, what it gives back, and what it must be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

import numpy as np
from jaxtyping import Bool, Float64, Int8, Int32, Int64

from optlayers.caches import cached_property

if TYPE_CHECKING:
    from optlayers.solvers.certificate import Certificate
    from optlayers.standard_form import StandardForm

__all__ = ["AbstractMaximizer", "AbstractProjector", "AbstractSolver", "Answer", "Decomposition", "Instances"]


@final
@dataclass(frozen=True)
class Instances:
    r"""A batch of problems over one standard form: ``A z = b``, ``lower <= z <= upper``.

    ``whole`` are the scores as they were asked about, of entries that the constraints fix too; ``kept`` are the entries
    that have a column in the form, None where all have. ``matrix`` holds the entries of A per instance, in the
    order of ``form.matrix.data``, when a parameter enters A, else None. ``forbidden`` marks columns that an instance
    fixes at 0 (scores of -inf); ``lower`` and ``upper`` already say so. ``parameters`` are the numbers behind b,
    bounds and matrix, for solvers that want them.
    """

    whole: Float64[np.ndarray, "batch size"]
    kept: Int64[np.ndarray, " scored"] | None
    rhs: Float64[np.ndarray, "batch rows"]
    lower: Float64[np.ndarray, "batch columns"]
    upper: Float64[np.ndarray, "batch columns"]
    matrix: Float64[np.ndarray, "batch entries"] | None
    forbidden: Bool[np.ndarray, "batch columns"] | None
    parameters: Float64[np.ndarray, "batch parameters"]
    starts: Float64[np.ndarray, "batch size"] | None = None
    """Vertices that solvers may begin with."""

    def __len__(self) -> int:
        return len(self.whole)

    @cached_property
    def scores(self) -> Float64[np.ndarray, "batch scored"]:
        """Of the scored columns of the form, gathered when they are first asked for: oracles take the whole."""
        # NumPy takes 5 ns a number, as long as an oracle of small structures; "clip" spares it a copy of the indices.
        return self.whole if self.kept is None else self.whole.take(self.kept, axis=1, mode="clip")

    def with_scores(
        self, whole: Float64[np.ndarray, "batch size"], starts: Float64[np.ndarray, "batch size"] | None = None
    ) -> Instances:
        """The same problems with other scores."""
        return Instances(
            whole, self.kept, self.rhs, self.lower, self.upper, self.matrix, self.forbidden, self.parameters, starts
        )

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
            part(self.starts),
        )


@final
@dataclass(frozen=True)
class Decomposition:
    """Points as mixtures of vertices: instance k has the vertices ``first[k]:first[k + 1]``, with these weights.

    Vertex v is 0 but for the entries ``index[start[v]:start[v + 1]]`` of the flat structure, which are ``value``.
    """

    size: int
    first: Int64[np.ndarray, " instances_and_one"]
    weight: Float64[np.ndarray, " vertices"]
    start: Int64[np.ndarray, " vertices_and_one"]
    index: Int32[np.ndarray, " stored"]
    value: Float64[np.ndarray, " stored"]

    @classmethod
    def joined(cls, pieces: Sequence[tuple[np.ndarray, ...]], size: int) -> Decomposition:
        """From consecutive pieces of a batch: counts per instance, weights, starts, indices and values."""
        if not pieces:
            pieces = [(np.zeros(0, np.int64), np.zeros(0), np.zeros(1, np.int64), np.zeros(0, np.int32), np.zeros(0))]
        counts, weights, starts, indices, values = zip(*pieces, strict=True)
        ends = np.cumsum([0] + [len(i) for i in indices])
        whole = [np.zeros(1, np.int64)] + [s[1:] + end for s, end in zip(starts, ends[:-1], strict=True)]
        return cls(
            size,
            np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate(counts))]),
            np.concatenate(weights),
            np.concatenate(whole),
            np.concatenate(indices),
            np.concatenate(values),
        )

    @classmethod
    def of_one(cls, vertex: Float64[np.ndarray, " size"], count: int) -> Decomposition:
        """Every one of ``count`` instances is this vertex."""
        index = np.flatnonzero(vertex).astype(np.int32)
        one = (np.ones(1, np.int64), np.ones(1), np.array([0, len(index)]), index, vertex[index])
        return cls.joined([one] * count, len(vertex))

    def scattered(self, rest: np.ndarray, count: int) -> Decomposition:
        """The mixtures of the instances ``rest`` of a batch; the others have no vertices."""
        counts = np.zeros(count, np.int64)
        counts[rest] = np.diff(self.first)
        return replace(self, first=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]))

    def dense(self) -> tuple[Float64[np.ndarray, "batch most size"], Float64[np.ndarray, "batch most"]]:
        """Vertices and weights with as many places for each instance as the richest has; the others are 0."""
        counts = np.diff(self.first)
        instance = np.repeat(np.arange(len(counts)), counts)
        place = np.arange(len(instance)) - np.repeat(self.first[:-1], counts)
        most = int(counts.max(initial=0))
        vertices, weights = np.zeros((len(counts), most, self.size)), np.zeros((len(counts), most))
        weights[instance, place] = self.weight
        vertex = np.repeat(np.arange(len(instance)), np.diff(self.start))
        vertices[instance[vertex], place[vertex], self.index] = self.value
        return vertices, weights


@final
@dataclass
class Answer:
    """What a solver found: primal and dual points, and its own word on each instance.

    ``status`` is the solver's claim; the verdict that users see is given by the certificate of ``point`` and
    ``dual``, which is at hand already where ``certificate`` is set. ``free`` marks the columns that may move in the
    tangent of a projection; without it, a projection is polished to its active set. A solver of sets that are
    not polyhedral gives no dual point; it gives its own ``gap`` and ``residual``, and a ``pullback`` that maps a
    direction ``(batch, scored)`` to gradients of scores and of parameters, and says for which instances. So does one
    that works on vertices; its ``decomposition`` comes along. Solvers that answer for the scored vector as a ``whole``
    give points without columns. ``reasons`` say why instances failed.
    """

    point: Float64[np.ndarray, "batch columns"]
    dual: Float64[np.ndarray, "batch rows"]
    status: Int8[np.ndarray, " batch"]
    free: Bool[np.ndarray, "batch columns"] | None = None
    certificate: Certificate | None = None
    residual: Float64[np.ndarray, " batch"] | None = None
    gap: Float64[np.ndarray, " batch"] | None = None
    pullback: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None
    decomposition: Decomposition | None = None
    whole: Float64[np.ndarray, "batch size"] | None = None
    reasons: dict[int, str] = field(default_factory=dict)

    @property
    def scored_vectors(self) -> Float64[np.ndarray, "batch size"]:
        """The ``whole`` of a solver that gives it."""
        if self.whole is None:
            raise RuntimeError("this answer is a point of the standard form")
        return self.whole

    def replace(self, index: np.ndarray, other: Answer, which: np.ndarray) -> None:
        """Take over the answers ``which`` of ``other`` for the instances ``index``."""
        self.point[index], self.dual[index], self.status[index] = (
            other.point[which],
            other.dual[which],
            other.status[which],
        )
        if self.free is not None and other.free is not None:
            self.free[index] = other.free[which]
        if self.certificate is not None and other.certificate is not None:
            self.certificate.replace(index, other.certificate, which)
        self.reasons |= {
            int(i): other.reasons[int(w)] for i, w in zip(index, which, strict=True) if int(w) in other.reasons
        }

    @classmethod
    def room(cls, form: StandardForm, batch: int) -> Answer:
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


class AbstractMaximizer(AbstractSolver):
    """A solver of ``argmax <scores, x>`` that ends in a vertex."""

    @abstractmethod
    def maximize(self, state: Any, instances: Instances) -> Answer:
        """A vertex per instance, decided by the instance alone when several are best."""


class AbstractProjector(AbstractSolver):
    r"""A solver of :math:`\operatorname{argmin}_x \tfrac12 \|x - s\|^2`."""

    @abstractmethod
    def project(self, state: Any, instances: Instances) -> Answer:
        """The nearest point per instance."""

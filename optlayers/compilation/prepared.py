"""A polytope with its standard forms, its solvers and what they prepared: what bound polytopes are made over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from optlayers.batch.entries import CPU, DOUBLE, Entries
from optlayers.bound.base import AbstractBoundPolytope
from optlayers.common.caches import Cache, cached_property
from optlayers.compiled_oracle import name_of
from optlayers.form.compile import Forms
from optlayers.form.standard import DeclarationError, NotPolyhedral, StandardForm
from optlayers.integer.diagram import TooWide
from optlayers.integer.program import NoIntegers
from optlayers.polytope import Polytope
from optlayers.proofs.agreement import beyond_oracle
from optlayers.proofs.implied import sum_is_fixed
from optlayers.proofs.integrality import has_long_fractions, rows_are
from optlayers.proofs.sections import KEPT, Signs, without_a_face
from optlayers.proofs.unimodular import Block, blocks_of
from optlayers.solution import Solution
from optlayers.solvers import AbstractMaximizer, AbstractProjector, AbstractSolver, ActiveSet, Auto, Oracle
from optlayers.solvers.ask import Lineup
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import make_instances
from optlayers.solvers.diagram import Diagrams, diagrams_of
from optlayers.sums.structure_sums import AbstractSums, PathSums, VertexSums
from optlayers.variables import is_integer
from optlayers.vertices.enumeration import VERTEX_LIMIT, TooMany, enumerate_vertices

__all__ = ["AbstractPrepared"]

KEPT_BATCHES = 4
"""Of so many sizes are batches without parameters and forbidden parts kept: a rule that draws samples has two."""
FEW = 300
"""So many structures are summed over one by one."""
KEPT_ENUMERATIONS = 16
"""For so many values of the parameters are vertices kept."""
KEPT_MASKS = 64
"""For so many sets of forbidden parts is kept which others they fix: many instances lack the same ones, as padding."""
COMPARED = 4
"""For so many values of the parameters are rows compared with an oracle."""
WHOLE = 1e-6
"""So far beyond 0 and 1 may be what counts as such."""
AT_ONCE = 1024
"""So many parts are tried at a time,"""
NUMBERS = 2**22
"""or fewer, so that their scores are at most so many numbers."""
SAME_LENGTH = 1e-9
"""Sums of parts that differ by less, next to their size, are the same."""
KEPT_RELAXATIONS = 16
"""So many relaxations are kept compiled."""


class AbstractPrepared(ABC):
    """Forms, solvers and their states. It never changes; threads may share it."""

    def __init__(
        self, forms: Forms, maximizer: AbstractMaximizer, projector: AbstractProjector, tolerance: float
    ) -> None:
        self.forms = forms
        self.polytope = forms.polytope
        self.maximizer = maximizer
        self.projector = projector
        self.tolerance = tolerance
        self._prepare()

    def _prepare(self) -> None:
        # A solver that reads the declaration answers for the scored variables alone, without auxiliary columns.
        self._beyond: Cache[bytes, str | None] = Cache()
        self._vertices: Cache[bytes, np.ndarray] = Cache(KEPT_ENUMERATIONS)
        self._sums: Cache[bytes, AbstractSums] = Cache(KEPT_ENUMERATIONS)
        self._paths: Cache[bytes, PathSums | str] = Cache(KEPT_ENUMERATIONS)
        self._binary: Cache[tuple[bytes, bool], bool] = Cache(KEPT)
        self.moving: Cache[bytes, np.ndarray] = Cache(KEPT_MASKS)
        """The parts that can move, for what is forbidden and θ."""
        self.on_devices: Cache[torch.device, Any] = Cache()
        self._relaxations: Cache[Polytope, AbstractPrepared] = Cache(KEPT_RELAXATIONS)
        self._beside: Cache[Polytope, Polytope] = Cache()
        self._signs: dict[bool, Signs] = {True: Cache(KEPT), False: Cache(KEPT)}
        self.plain: Cache[int, Any] = Cache(KEPT_BATCHES)
        self.last_plain: Any = None
        """The batch without parameters and forbidden parts that was asked for last."""
        self.maximizer_form = self._rows_for(self.maximizer)
        rows = self._rows_for(self.projector) if self.projector.polyhedral_only else None
        self.projection_form = self.forms.bare if rows is None else rows
        self.entries = Entries(self.projection_form)
        self.projector_state = self.projector.prepare(self.projection_form)
        self.maximizer_state = None if self.maximizer_form is None else self.maximizer.prepare(self.maximizer_form)
        self.projecting = Lineup(
            self.projection_form, self.projector, self.projector_state, projection=True, tolerance=self.tolerance
        )
        self.maximizing: Lineup | None = None
        """Who is asked for best vertices; None where the declared set is not polyhedral."""
        if self.maximizer_form is not None:
            form, state = self.maximizer_form, self.maximizer_state
            self.maximizing = Lineup(form, self.maximizer, state, projection=False, tolerance=self.tolerance)

    def _rows_for(self, solver: AbstractSolver) -> StandardForm | None:
        """The form that a solver works on; None where the declared set is not polyhedral."""
        if solver.reads_declaration:
            return self.forms.full if self.over_integer_points else self.forms.scored
        try:
            return self.forms.full
        except NotPolyhedral:
            if self.projector.polyhedral_only:
                raise
            return None

    @cached_property
    def rows_are(self) -> Literal["exact", "relaxation"] | None:
        """What the rows of the declaration are, next to the polytope; None where that is not known."""
        return rows_are(self.forms)

    @cached_property
    def over_integer_points(self) -> bool:
        """Whether the polytope is the hull of integer points that its rows are a relaxation of."""
        return self.polytope.has_integers and self.rows_are == "relaxation"

    @property
    def rows_are_not_all(self) -> bool:
        """Whether points that satisfy the rows may be none of the polytope, as the declaration itself says."""
        return self.over_integer_points or self.polytope.separate is not None

    @property
    def nothing_satisfies(self) -> str:
        """Why there is no point although rows leave some, in words."""
        separate = self.polytope.separate
        brought = "" if separate is None else f" and the inequalities of separate={name_of(separate)}"
        said = f"no {'integer ' * self.over_integer_points}point satisfies the constraints{brought}"
        if self.over_integer_points and has_long_fractions(self.forms.full):
            said += (
                "; between integers an equality holds exactly or not at all, and one has coefficients that are no "
                "short fractions: give it room, by two inequalities, or round its numbers"
            )
        return said

    @property
    def form(self) -> StandardForm | None:
        """All rows of the declaration, built when first asked for; None where the declared set is not polyhedral."""
        try:
            return self.forms.full
        except NotPolyhedral:
            return None

    @cached_property
    def rows(self) -> StandardForm | None:
        """The most complete of the forms that the solvers work on; None where the declared set is not polyhedral."""
        return self.projection_form if self.projects_on_rows else self.maximizer_form

    @property
    def projects_on_rows(self) -> bool:
        return self.projector.polyhedral_only and not self.projector.reads_declaration

    @property
    def leaves_rows_to_oracle(self) -> bool:
        """Whether there are rows, with auxiliary variables, that no solver has been given: oracles answer for them."""
        return self.forms.hides_variables and self.maximizer.reads_declaration and not self.projects_on_rows

    @property
    def _oracle(self) -> Oracle | None:
        """The oracle that only one of both goes over, vertices or projections, while the other goes over rows."""
        maximizer, projector = self.maximizer, self.projector
        function: Callable[..., Any] | None = None
        if isinstance(maximizer, Oracle) and not isinstance(projector, ActiveSet):
            function = maximizer
        if isinstance(projector, ActiveSet) and not isinstance(maximizer, Oracle):
            function = projector.function or self.polytope.oracle
        return None if function is None or self.form is None else Oracle(function)

    def without_a_face(
        self, form: StandardForm, solver: AbstractSolver, instances: Instances
    ) -> Bool[np.ndarray, " batch"] | None:
        """Instances of which an oracle knows nothing, for a part of both signs is forbidden; None for none."""
        if self.over_integer_points and self.polytope.rows is None:
            return None  # what is left are the integer points of which the part is 0, as solvers of these know
        function: Callable[..., Any] | None = solver if isinstance(solver, Oracle) else None
        if isinstance(solver, ActiveSet):
            function = solver.function or self.polytope.oracle
        signs = self._signs[isinstance(solver, Oracle)]
        return None if function is None else without_a_face(form, Oracle(function), instances, signs)

    @property
    def by_rows(self) -> AbstractPrepared | None:
        """This polytope by its constraints alone, compiled when asked for; None where these do not describe it."""
        if self.form is None or self.rows_are == "relaxation":
            return None
        alone = Polytope.relaxed if self.polytope.has_integers else Polytope.without_oracle
        return self.relaxation(self._beside.get(self.polytope, alone))

    def beyond_oracle(self, theta: Float64[np.ndarray, " parameters"]) -> str | None:
        """Where rows reach more than an oracle that goes beside them, in words.

        None where that is not found, where it was looked for enough, or where the declaration says that it is not so.
        """
        if self.rows_are == "exact" or (self.rows_are is None and not self.polytope.integral):
            return None
        oracle = self._oracle
        if oracle is None:
            return None
        if self.rows_are == "relaxation":
            if self.polytope.separate is not None:
                return "separate= brings further ones"
            return 'rows="relaxation" says so' if self.polytope.rows else "variables are integers"
        if len(self._beyond) >= COMPARED:
            return None

        def compare(key: bytes) -> str | None:
            return beyond_oracle(self.forms, oracle, np.frombuffer(key))

        return self._beyond.get(theta.tobytes(), compare)

    def refuse_two_polytopes(self, theta: Float64[np.ndarray, " parameters"]) -> None:
        """Raise DeclarationError where vertices and projections are those of two polytopes."""
        beyond = self.beyond_oracle(theta)
        if beyond is not None:
            raise DeclarationError(
                f"the constraints are a relaxation of what the oracle knows: {beyond}. Vertices would come from "
                f"{self.maximizer!r} and projections from {self.projector!r}, which are two polytopes: with "
                'rows="relaxation" in the declaration, both come from the oracle by default, and without_oracle() both '
                "are those of the constraints; or declare the constraints that are missing"
            )

    @cached_property
    def rows_say_all(self) -> bool:
        """Whether the rows that are built are all that is known of the polytope: what satisfies them is in it."""
        polytope = self.polytope
        rows = self.rows_are
        by_rows = rows == "exact" or (rows is None and (polytope.oracle is None or polytope.integral))
        asked = isinstance(self.maximizer, Oracle) and isinstance(self.projector, ActiveSet)
        return by_rows and not asked and self.rows is not None and not self.leaves_rows_to_oracle

    @cached_property
    def membership_says_all(self) -> bool:
        """Whether rows of scored variables and the membership function say together what a structure is."""
        polytope = self.polytope
        said = polytope.membership is not None and polytope.integral and isinstance(self.maximizer, Oracle)
        return said and self.leaves_rows_to_oracle

    @property
    def has_vertices(self) -> bool:
        """Whether the declared set is polyhedral."""
        return self.maximizer_form is not None

    @property
    def polyhedral(self) -> bool:
        """Whether the declared set is polyhedral, whoever answers for it."""
        return self.projector.polyhedral_only or self.form is not None

    def is_binary(self, theta: Float64[np.ndarray, " parameters"], *, auxiliaries: bool = False) -> bool:
        """Whether all structures for one vector of parameters are known to be of 0 and 1, also with the values of the
        ``auxiliaries`` that have scores.

        That they are integral is declared, or proved by the rows; that they lie between 0 and 1 the rows say, or the
        best vertices for every part and against it.
        """
        auxiliaries = auxiliaries and self.entries.size > self.entries.structure_size
        return self._binary.get((theta.tobytes(), auxiliaries), self._shown_binary)

    def _shown_binary(self, key: tuple[bytes, bool]) -> bool:
        theta = np.frombuffer(key[0]).copy()[None]
        fixed = (self.rows or self.projection_form).fixed
        if not ((fixed >= 0.0) & (fixed <= 1.0)).all():
            return False
        scored = (self.polytope.variable, *self.polytope.scored) if key[1] else (self.polytope.variable,)
        if all(variable.attributes["boolean"] is True for variable in scored):
            return True
        blocks = self._blocks(theta)
        if not (self.polytope.integral or (blocks is not None and all(block.is_integral() for block in blocks))):
            return False
        if blocks is not None and all(block.within_unit() for block in blocks):
            return True
        if self.over_integer_points and self._bounded_by_0_and_1(theta):
            return True
        size = self.entries.size
        count, step = size if key[1] else self.entries.structure_size, max(1, min(AT_ONCE, NUMBERS // size))
        one = torch.from_numpy(theta)
        for start in range(0, count, step):
            parts = torch.arange(start, min(start + step, count), device="cpu")
            some = torch.zeros(len(parts), size, dtype=torch.float64, device="cpu")
            some[parts - start, parts] = 1.0
            bound = self.bind_on_host(one.expand(2 * len(some), -1), None, np.full(theta.shape[1], DOUBLE))
            ends = bound.maximize(torch.cat([some, -some]))
            reach = (ends.value * torch.cat([some, some])).sum(dim=1)
            if not ends.all_ok or bool(((reach < -WHOLE) | (reach > 1.0 + WHOLE)).any()):
                return False
        return True

    def _bounded_by_0_and_1(self, theta: Float64[np.ndarray, "1 parameters"]) -> bool:
        """Whether bounds of the declaration alone keep all that is scored between 0 and 1."""
        form = self.rows or self.projection_form
        instances, scored = make_instances(form, theta, None), slice(0, form.scored)
        low, high = instances.lower[0, scored], instances.upper[0, scored]
        return bool((low >= 0.0).all() and (high <= 1.0).all())

    @cached_property
    def equally_long(self) -> bool:
        """Whether all structures are known to have the same sum of parts: a constant added to all of their scores then
        changes no decision. By the equalities of the declaration, else by the structures of most and of fewest parts.
        """
        if self.maximizing is None:
            return False
        if sum_is_fixed(self.rows or self.projection_form):
            return True
        if self.projection_form.parameter_count:
            return False
        ones = torch.zeros(1, self.entries.size, dtype=torch.float64, device="cpu")
        ones[:, : self.entries.structure_size] = 1.0
        bound = self.bind_on_host(torch.zeros(2, 0, dtype=torch.float64, device="cpu"), None, np.zeros(0))
        ends = bound.maximize(torch.cat([ones, -ones]))
        most, fewest = (ends.value * ones).sum(dim=1).tolist()
        return ends.all_ok and most - fewest <= SAME_LENGTH * max(1.0, abs(most))

    @property
    def parameters_shift(self) -> bool:
        """Whether parameters enter right-hand sides and bounds alone, asked of all rows of the declaration."""
        if not self.projection_form.parameters:
            return True
        form = self.projection_form if self.projects_on_rows else self.form
        return form is not None and form.matrix_is_constant

    @abstractmethod
    def compile_relaxation(self, polytope: Polytope) -> AbstractPrepared:
        """Another polytope of the same shape, compiled like this one."""

    @abstractmethod
    def bind_on_host(
        self,
        theta: Float64[Tensor, "batch parameters"],
        forbidden: Bool[Tensor, "batch size"] | None,
        precision: Float64[np.ndarray, " parameters"],
    ) -> AbstractBoundPolytope:
        """The polytopes of a batch for the solvers of the CPU, with all parameters as one vector.

        ``precision`` is the machine epsilon of the dtype in which each entry of the parameters was given.
        """

    def relaxation(self, polytope: Polytope) -> AbstractPrepared:
        """Another polytope of the same shape, compiled once.

        Raises
        ------
        ValueError : when its shape is another one, or it declares parameters or scored variables that this one has not.
        """
        return self._relaxations.get(polytope, self.compile_relaxation)

    def stays_on(self, device: torch.device) -> bool:
        """Whether scores on a device are solved there: on accelerators, where nobody asked for another solver."""
        return device.type != "cpu" and self.stays

    @property
    def stays(self) -> bool:
        """Whether scores on an accelerator are solved there."""
        return isinstance(self.maximizer, Auto) and isinstance(self.projector, Auto) and self.rows is not None

    def home(self, device: torch.device) -> torch.device:
        """Where scores that live on a device are solved."""
        return device if self.stays_on(device) else CPU

    def enumerated(self, theta: Float64[np.ndarray, " parameters"]) -> Float64[np.ndarray, "vertices size"]:
        """All vertices for one vector of parameters, flat; kept for the values that were asked for last.

        Raises
        ------
        ValueError : when there are too many to enumerate; see :mod:`optlayers.vertices.enumeration`.
        """
        return self._vertices.get(theta.tobytes(), self._enumerate)

    def sums(self, theta: Float64[np.ndarray, " parameters"]) -> AbstractSums:
        """Sums over all structures for one vector of parameters: over the paths of a diagram where that is narrow and
        structures are more than a few, else over vertices, which are enumerated.

        Raises
        ------
        ValueError : where there is no diagram, and vertices are too many to enumerate.
        """
        return self._sums.get(theta.tobytes(), self._make_sums)

    def paths(self, theta: Float64[np.ndarray, " parameters"]) -> PathSums | None:
        """The decision diagram of all structures for one vector of parameters; None where these are few vertices, or
        there is no diagram."""
        found = self._paths.get(theta.tobytes(), self._make_paths)
        return found if isinstance(found, PathSums) else None

    def structures(self, theta: Float64[np.ndarray, " parameters"]) -> Float64[np.ndarray, "structures size"]:
        """All structures for one vector of parameters: vertices, or integer points where all that has scores is
        integer.

        Raises
        ------
        ValueError : when there are too many to enumerate, or no diagram of integer points that are not all vertices.
        """
        paths = self.paths(theta) if self.polytope.has_integers else None
        if paths is not None:
            return paths.points(VERTEX_LIMIT)
        if self.structures_are_points and not self.is_binary(theta, auxiliaries=True):
            why = self._paths.get(theta.tobytes(), self._make_paths)
            raise ValueError(
                "structures are all integer points, of which the vertices are only some, and to list these takes a "
                f"decision diagram{why}. maximize(), project() and the vertices() of the hull do without"
            )
        return self.enumerated(theta)

    @property
    def structures_are_points(self) -> bool:
        """Whether structures are integer points, since all that has scores is integer: vertices of the hull where they
        are of 0 and 1, else these and others."""
        return all(is_integer(variable).all() for variable in (self.polytope.variable, *self.polytope.scored))

    def _make_paths(self, key: bytes) -> PathSums | str:
        """A diagram, or why there is none."""
        theta = np.frombuffer(key).copy()
        diagrams = self._diagrams(theta)
        if diagrams is None:
            relaxed = self.polytope.rows == "relaxation"
            return "; there is none, as its constraints are a relaxation" if relaxed else ""
        try:
            passes = diagrams.of(theta)
        except (TooWide, NoIntegers) as error:
            return f"; {error}"
        return PathSums(passes) if self.polytope.has_integers or passes.diagram.count > FEW else ""

    def _make_sums(self, key: bytes) -> AbstractSums:
        theta, paths = np.frombuffer(key).copy(), self._paths.get(key, self._make_paths)
        if isinstance(paths, PathSums):
            return paths
        if self.over_integer_points and self.polytope.oracle is None and self.polytope.separate is None:
            raise ValueError(
                f"sums over all structures of an integer declaration need a decision diagram{paths}. SparseMAP() and "
                "other rules that only project, or ask for best structures, do without"
            )
        try:
            return VertexSums(self.structures(theta))
        except TooMany as error:
            raise TooMany(f"{error}{paths if self.polytope.rows is None else ''}") from None

    def _diagrams(self, theta: Float64[np.ndarray, " parameters"]) -> Diagrams | None:
        """The diagrams of the integer points that structures are; None where rows do not tell."""
        if self.polytope.rows == "relaxation":  # what an oracle knows, or a function brings, leaves points out
            return None
        if self.polytope.has_integers:
            form = self.forms.full
            return diagrams_of(form, False) if self.over_integer_points or form.integer.all() else None
        if self.leaves_rows_to_oracle or not self.polyhedral:  # whose rows are perhaps very many, and not built
            return None
        rows = self.rows or self.projection_form
        blocks = self._blocks(theta[None])
        if blocks is None:
            return None
        declared = self.polytope.integral and not rows.auxiliary
        if not (declared or all(block.is_integral() for block in blocks)):
            return None
        return diagrams_of(rows, True) if self.is_binary(theta) else None

    def _enumerate(self, key: bytes) -> np.ndarray:
        theta = np.frombuffer(key).copy()[None]
        one, precision = torch.from_numpy(theta), np.full(theta.shape[1], DOUBLE)

        def maximize(scores: Tensor) -> Solution:
            return self.bind_on_host(one.expand(len(scores), -1), None, precision).maximize(scores)

        form = self.rows or self.projection_form
        return enumerate_vertices(maximize, form.size, self._blocks(theta), form.kept, integral=self.polytope.integral)

    def _blocks(self, theta: Float64[np.ndarray, "1 parameters"]) -> list[Block] | None:
        """The rows of one instance in independent blocks; None where not all of them are known."""
        if self.leaves_rows_to_oracle or self.rows_are == "relaxation":
            return None
        form = self.rows or self.projection_form
        return blocks_of(form, make_instances(form, theta, None), together=self.maximizer.reads_declaration)

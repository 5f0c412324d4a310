"""How a report is made: its steps in their order, and what is left out where it takes too long."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, final

import numpy as np
import torch

from optlayers.batch.entries import parameter_tensors
from optlayers.batch.sizes import named_size
from optlayers.compilation.compiled import CompiledPolytope
from optlayers.compilation.compiled_once import compiled_of_size
from optlayers.family import Family
from optlayers.form.standard import NotPolyhedral
from optlayers.polytope import Polytope
from optlayers.proofs.unimodular import blocks_of
from optlayers.reporting import affine_hull, costs, integral, numerics, redundancy, supports, symmetry, vertices
from optlayers.reporting.affine_hull import AffineHull, hull_of_points, hull_of_rows
from optlayers.reporting.brought import Brought
from optlayers.reporting.clock import Clock
from optlayers.reporting.cuts import cut_beside_auxiliaries, cut_for
from optlayers.reporting.fractional import Sampled, Witness, objectives_of, sampled_objectives
from optlayers.reporting.integer_points import Missed, integer_points
from optlayers.reporting.integral import Integrality
from optlayers.reporting.linear_program import LinearProgram, exact_point, proved_bound
from optlayers.reporting.missing import Facets, MissingInequality, facets_of, lacking
from optlayers.reporting.polytope_report import PolytopeReport
from optlayers.reporting.redundancy import Redundancy, redundancy_of
from optlayers.reporting.rows import Rows, TooManyRows, rows_of
from optlayers.reporting.statement import DECLARED, ENUMERATED, EXHAUSTIVE, PROOF, ROUNDING, Section, Statement
from optlayers.solvers.batch import make_instances
from optlayers.vertices.facets import TooManyFacets

__all__ = ["Study", "theta_of"]

FEW_PARTS, FEW_POINTS = 9, 500
"""Facets are worked out for so many parts or integer points,"""
MANY_POINTS = 5000
"""and in few parts for so many points."""
LARGEST = 10_000_000
"""Rows times columns of what is looked at row by row."""
FEW_COLUMNS = 500
"""Of so many variables rows are eliminated for a bound on the number of vertices."""
CUTS = 8
"""Cuts are made for so many fractional vertices."""
NODES = 200_000
MANY_VERTICES = 2000
"""Vertices are listed where there are no more, by their dimension and the number of facets."""


def theta_of(compiled: CompiledPolytope, parameters: Mapping[str, Any]) -> np.ndarray:
    """θ of one instance, as the door of layers packs it, which refuses parameters that do not fit."""
    entries, one = compiled.entries, torch.Size([])
    given = parameter_tensors(entries.parameters, parameters, one)
    return entries.packed_parameters(given, one)[0][0].numpy() if given else np.zeros(0)


def _scores_of_auxiliaries(polytope: Polytope, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {v.name(): torch.randn(tuple(v.shape), generator=generator, dtype=torch.float64) for v in polytope.scored}


@final
@dataclass
class Study:
    """What is known so far of one polytope; a step for every section."""

    compiled: CompiledPolytope
    theta: np.ndarray
    parameters: dict[str, Any]
    clock: Clock
    samples: int
    seed: int
    sections: list[Section] = field(default_factory=list)
    missing: list[MissingInequality] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    rows: Rows | None = None
    program: LinearProgram | None = None
    brought: Brought | None = None
    """Constraints that ``separate`` brings; they stand behind the declared rows."""
    hull: AffineHull | None = None
    redundant: Redundancy | None = None
    verdict: Integrality | None = None
    points: np.ndarray | None = None
    facets: Facets | None = None
    bounds: np.ndarray | None = None
    """The least and the largest value of every part."""
    bounds_proved: bool = False
    hull_dimension: int | None = None
    """Of the hull of integer points."""

    @property
    def polytope(self) -> Polytope:
        """The declaration."""
        return self.compiled.polytope

    @property
    def named(self) -> dict[str, Any]:
        """Parameters, and some scores of auxiliary variables that have scores."""
        return {**_scores_of_auxiliaries(self.polytope, self.seed), **self.parameters}

    def refuse_improper(self) -> None:
        """Parameters that leave no point, or an unbounded set, are refused in the words of the solvers."""
        zero = torch.zeros(1, *self.compiled.shape, dtype=torch.float64)
        ask = self.compiled.maximize if self.compiled.has_vertices else self.compiled.project
        answer = ask(zero, **self.named)
        if not answer.all_ok:
            failure = answer.failures[0]
            raise ValueError(f"there is nothing to report on: {failure.status.name}, {failure.reason}")

    def made(self, subject: str, family: Family | None, sizes: Sequence[tuple[int, ...]]) -> PolytopeReport:
        """All steps, or as many as there is time for."""
        steps: list[tuple[str, Callable[[], None]]] = [
            ("rows", self.read_rows),
            ("dimension", self.find_dimension),
            ("redundant rows", self.find_redundant),
            ("integrality", self.find_integrality),
            ("vertices", self.count_vertices),
            ("numbers", self.look_at_numbers),
            ("costs", lambda: self.measure(family, sizes)),
            ("supports", self.try_rules),
        ]
        for name, step in steps:
            try:
                self.clock.step(name)
                step()
            except KeyboardInterrupt:
                self.left_out.append(f"{name} and what follows: stopped by Ctrl-C")
                break
            except Missed as error:
                self.left_out.append(f"{name}: {error}")
        if self.rows is not None and not self.rows.exact:
            self.sections = [section.to_rounding() for section in self.sections]
        seconds = time.perf_counter() - self.clock.start
        return PolytopeReport(
            subject, tuple(self.sections), self.polytope, tuple(self.missing), tuple(self.left_out), seconds
        )

    def read_rows(self) -> None:
        """The rows of the declaration, where there are not too many."""
        try:
            rows = rows_of(self.polytope, self.theta, LARGEST)
        except NotPolyhedral:
            raise Missed(
                "the set is convex but not polyhedral: it has no finite list of vertices, and neither dimension nor "
                "integrality is looked at"
            ) from None
        except TooManyRows as error:
            raise Missed(
                f"{error} are too many to be looked at one by one, so dimension, bounds, redundant rows, blocks, "
                "integrality, missing inequalities, vertices and numbers are not looked at: report on a smaller size"
            ) from None
        self.rows, self.program = rows, LinearProgram(rows)
        if self.polytope.separate is not None:
            self.brought = Brought(self.polytope, rows, self.theta)
            objectives = (c for c, _ in objectives_of(rows.scored, self.samples, self.seed))
            self.brought.bring(objectives, self.clock.late_after(0.15))
            self.rows, self.program = self.brought.rows, self.brought.program

    def find_dimension(self) -> None:
        """The affine hull, and bounds of parts."""
        if self.rows is None or self.program is None:
            return
        try:
            self.hull = hull_of_rows(self.rows, self.program)
        except ValueError as error:
            raise Missed(str(error)) from None
        what = f"the relaxation{self._with_brought()}" if self.is_relaxation else "the polytope"
        self.sections.append(affine_hull.section_of(self.hull, self.rows, self.rows.parts, what))
        self.sections.append(self._bounds(self.rows, self.program))

    def _with_brought(self) -> str:
        """What of a set is looked at that brings constraints on demand, in words."""
        if self.brought is None:
            return " (the rows, without integers)"
        count, function = self.brought.count, self.brought.separation
        if count == 0:
            return f" (the rows without integers; {function} brought nothing for best points)"
        what = f"the {count} constraints" if count > 1 else "the one constraint"
        return f" (the rows without integers, and {what} that {function} brought for best points)"

    @property
    def is_relaxation(self) -> bool:
        """Whether points of the rows may be no points of the polytope."""
        return self.compiled.rows_are == "relaxation"

    def _bounds(self, rows: Rows, program: LinearProgram) -> Section:
        low, high = np.full(rows.scored, np.nan), np.full(rows.scored, np.nan)
        proved, late, asked = True, self.clock.late_after(0.2), rows.scored
        for j in range(rows.scored):
            if late():
                asked = j
                self.left_out.append(f"bounds of {rows.scored - j} of {rows.scored} parts: for want of time")
                break
            unit = np.zeros(rows.scored)
            unit[j] = 1.0
            for ends, sign in ((high, 1.0), (low, -1.0)):
                best = program.maximize(sign * unit)
                if best is None:
                    continue
                ends[j] = sign * best.value
                bound, point = proved_bound(rows, sign * unit, best.multipliers), exact_point(rows, program, best)
                proved &= bound is not None and point is not None
                proved &= point is not None and bound == sign * Fraction(int(point[0][j]), point[1])
        by_range: dict[tuple[float, float], list[str]] = {}
        low, high = np.round(low, 9) + 0.0, np.round(high, 9) + 0.0
        self.bounds, self.bounds_proved = np.stack([low, high]), proved
        for j, name in enumerate(rows.parts[:asked]):
            by_range.setdefault((float(low[j]), float(high[j])), []).append(name)
        told = []
        for (least, most), names in by_range.items():
            who = "all parts" if len(names) == rows.scored else ", ".join(names[:8])
            who += f" and {len(names) - 8} more" if len(names) > 8 and who != "all parts" else ""
            told.append(Statement(f"{who}: from {least:g} to {most:g}", PROOF if proved else ROUNDING))
        facts = {"bounds": {n: [float(low[j]), float(high[j])] for j, n in enumerate(rows.parts[:asked])}}
        return Section("Bounds of parts", tuple(told[:8]), facts)

    def find_redundant(self) -> None:
        """Rows that may be left out; blocks and swaps of what is left."""
        if self.rows is None or self.program is None or self.hull is None:
            return
        self.redundant = redundancy_of(self.rows, self.program, self.clock.late_after(0.2))
        self.sections.append(redundancy.section_of(self.redundant, self.rows, self.hull, self.is_relaxation))
        if self.redundant.open:
            self.left_out.append(f"redundant rows: {self.redundant.open} rows were not looked at, for want of time")
        late = self.clock.late_after(0.1)
        found = symmetry.section_of(self.rows, self.hull, self.redundant, late, self.left_out)
        if found is not None:
            self.sections.append(found)

    def find_integrality(self) -> None:
        """Integral, or not, or not known; and what is missing."""
        if self.rows is None or self.program is None or self.hull is None:
            return
        rows, program = self.rows, self.program
        unimodular = self._is_unimodular()
        why_not = ""
        if not unimodular:
            try:
                self.points = self._integer_points(rows, program)
            except Missed as error:
                why_not = str(error)
        samples = None
        if not unimodular:
            best = integral.ends_of(self.points)
            late = self.clock.late_after(0.2)
            samples = sampled_objectives(rows, program, self.samples, self.seed, best, CUTS, late)
        facets_known, proved, open_ones = False, False, 0
        if self.points is not None and len(self.points):
            try:
                facets_known, proved, open_ones = self._find_missing(self.points)
            except TooManyFacets:
                why_not = "the hull of the integer points has too many facets to work out"
        if not facets_known and samples is not None:
            self._cut_off(samples.witnesses)
            if samples.witnesses and not self.missing and rows.auxiliary:
                why_not += "; no cut was found, as auxiliary variables may be fractions"
        if samples is not None and samples.random < self.samples:
            self.left_out.append(
                f"random objectives: {samples.random} of {self.samples} were asked for, as there was no time for more"
            )
        if open_ones:
            self.left_out.append(f"missing inequalities: {open_ones} facets of the hull of integer points are open")
        if why_not:
            self.left_out.append(f"missing inequalities: {why_not.removeprefix('; ')}")
        self.verdict = self._verdict(unimodular, samples, facets_known and not open_ones, proved)
        rows_are = f"the relaxation{self._with_brought()} is" if self.is_relaxation else "the polytope is"
        self.sections.append(integral.section_of_verdict(self.verdict, rows.parts, rows_are))
        if unimodular:
            section = Section(
                "What is missing",
                (Statement("nothing, as the rows are integral", PROOF),),
                {"missing": [], "facets": None, "hull_dimension": None},
            )
        else:
            count = self.facets.count if self.facets is not None and facets_known else None
            why = f"facets are not known: {why_not}" if why_not else ""
            if self.points is not None and len(self.points) == 0:
                why = "the rows have no integer point at all"
            section = integral.section_of_missing(
                self.missing, count, self.hull_dimension, proved, open_ones, why, rows.parts
            )
        self.sections.append(section)

    def _is_unimodular(self) -> bool:
        form = self.compiled.form
        if form is None or self.polytope.rows == "relaxation" or self.polytope.separate is not None:
            return False
        if self.rows is None or not self.rows.has_unimodular_scale():
            return False
        blocks = blocks_of(form, make_instances(form, self.theta[None], None), together=False)
        return all(block.is_integral() for block in blocks)

    def _integer_points(self, rows: Rows, program: LinearProgram) -> np.ndarray:
        """All points of integers of the polytope.

        Raises
        ------
        Missed : when there are too many.
        """
        limit = MANY_POINTS if rows.scored <= FEW_PARTS else FEW_POINTS
        polytope = self.polytope
        known_elsewhere = polytope.has_integers or polytope.separate is not None or polytope.rows == "relaxation"
        if not known_elsewhere:
            assert self.hull is not None
            return integer_points(program, self.hull.determined, limit, self.clock.late_after(0.25))
        try:
            found = (
                self.compiled.structures(self.theta) if polytope.has_integers else self.compiled.enumerated(self.theta)
            )
        except ValueError as error:
            raise Missed(str(error)) from None
        points = np.round(found).astype(np.int64)
        if len(points) > limit:
            raise Missed(f"there are {len(points)} integer points, more than {limit}")
        if np.abs(found - points).max(initial=0.0) > 1e-7:
            raise Missed("its vertices are no integer points")
        return points

    def _find_missing(self, points: np.ndarray) -> tuple[bool, bool, int]:
        assert self.rows is not None and self.program is not None and self.hull is not None
        hull = hull_of_points(points, self.hull.equations)
        self.hull_dimension = hull.dimension
        self.facets = facets_of(points, hull)
        known = {e.key for e in self.hull.equations}
        new = [e for e in hull.equations if e.key not in known]
        rng = np.random.default_rng(self.seed)
        late = self.clock.late_after(0.25)
        while True:
            found, proved, left = lacking(self.rows, self.program, self.facets, new, self.hull.equations, late, rng)
            # What is brought for these points may imply some of what seems to be missing.
            points_cut_off = [np.array([float(v) for v in one.cuts_off]) for one in found if one.cuts_off]
            if self.brought is None or sum(self.brought.cut_off(p) for p in points_cut_off) == 0:
                break
            self.rows, self.program = self.brought.rows, self.brought.program
        self.missing += [one for one in found if one.cuts_off]
        return True, proved, left + sum(not one.cuts_off for one in found)

    def _cut_off(self, witnesses: Sequence[Witness]) -> None:
        assert self.rows is not None and self.program is not None
        seen = set()
        for witness in witnesses:
            if self.rows.auxiliary:
                cut = cut_beside_auxiliaries(self.rows, self.program, witness)
            else:
                cut = cut_for(self.rows, witness)
            if cut is not None and cut.line not in seen:
                seen.add(cut.line)
                self.missing.append(cut)

    def _verdict(self, unimodular: bool, samples: Sampled | None, all_facets: bool, proved: bool) -> Integrality:
        if unimodular:
            why = "the rows are totally unimodular, with integers on the right (Hoffman and Kruskal, 1956)"
            return Integrality(True, why, PROOF, (), None)
        witnesses = () if samples is None else samples.witnesses
        extra = tuple(m.witness for m in self.missing if m.witness is not None)
        unique = {w.point: w for w in (*witnesses, *extra)}
        if unique:
            shown = tuple(sorted(unique.values(), key=lambda w: (not w.proved, max(v.denominator for v in w.point))))
            known = PROOF if shown[0].proved else ROUNDING
            return Integrality(False, "a vertex has fractions", known, shown, samples)
        if self.points is not None and len(self.points) == 0:
            return Integrality(False, "there is no integer point at all", EXHAUSTIVE, (), samples)
        if all_facets and not self.missing:
            how = EXHAUSTIVE if proved else f"{EXHAUSTIVE}, {ROUNDING}"
            return Integrality(True, "the rows imply all facets of the hull of its integer points", how, (), samples)
        if all_facets:
            return Integrality(False, "the rows lack facets of the hull of its integer points", ROUNDING, (), samples)
        if samples is not None and samples.fractional:
            return Integrality(False, "best points of random objectives have fractions", ROUNDING, (), samples)
        declared = "; the declaration says that it is" if self.polytope.integral else ""
        return Integrality(None, f"no best point had fractions{declared}", "", (), samples)

    def count_vertices(self) -> None:
        """How many vertices, and the diagram of integer points."""
        if self.rows is None or self.hull is None:
            return
        verdict, form = self.verdict, self.compiled.form
        counted, how, diagram = None, EXHAUSTIVE, None
        is_integral = verdict is not None and verdict.integral is True
        unknown = verdict is None or verdict.integral is None
        over_points = is_integral or self.is_relaxation or (unknown and self.polytope.integral)
        all_integers = self.polytope.has_integers and form is not None and bool(form.integer.all())
        binary = self.compiled.is_binary(self.theta) if over_points else False
        if form is not None and (all_integers or (is_integral and not form.auxiliary)):
            diagram = diagram_or_none = vertices.diagram_of(form, self.theta, self.bounds, NODES)
            if isinstance(diagram_or_none, dict) and binary and over_points and self.polytope.rows != "relaxation":
                counted = diagram_or_none["points"]
            if not all_integers and not isinstance(diagram, dict):
                diagram = None
        if counted is None and is_integral and self.points is None and self.rows.scored <= FEW_PARTS:
            self._list_points()
        if counted is None and self.points is not None and over_points:
            if binary:
                counted = len(self.points)
            elif self.facets is not None:
                dimension = self.hull_dimension or 0
                counted = vertices.vertices_among(self.points, self.facets, dimension)
        most = None
        if counted is None and not self.is_relaxation:
            most = self._most_vertices(self.rows, self.hull)
        found, how_found = self._known_vertices() if counted is None else (0, "")
        if counted is None and found and found == most:
            counted, how = found, how_found
        if counted is None and not self.is_relaxation and most is not None and most <= MANY_VERTICES:
            counted, how = self._enumerated(found), ENUMERATED
        if counted is None and self.polytope.log_partition is not None and binary and not self.compiled.polytope.scored:
            counted, how = self._count_by_partition(), f"by the log_partition, {DECLARED}"
        if counted is None:
            self.left_out.append("the number of vertices: it takes too long to count them")
        whose = "the hull of all integer points" if self.is_relaxation else "the polytope"
        self.sections.append(vertices.section_of(counted, how, whose, found, how_found, most, diagram))

    def _most_vertices(self, rows: Rows, hull: AffineHull) -> int | None:
        """A bound on the number of vertices by that of the inequalities; None where it takes long to find one."""
        proved = self.redundant is not None and self.redundant.proved
        dropped = {*hull.implied, *(self.redundant.dropped if self.redundant is not None and proved else ())}
        if not rows.auxiliary:
            left = int((~rows.equality).sum()) - sum(not rows.equality[i] for i in dropped)
            return vertices.most_vertices(hull.dimension, left)
        return vertices.most_least_faces(rows) if rows.columns <= FEW_COLUMNS else None

    def _enumerated(self, known: int) -> int | None:
        """The number of vertices where they can be listed; None too where rounding makes one of several."""
        assert self.hull is not None
        if self.hull.dimension > FEW_PARTS or self.clock.left < 0:
            return None
        try:
            count = len(self.compiled.vertices(**self.parameters))
        except ValueError:
            return None
        return count if count >= known else None

    def _known_vertices(self) -> tuple[int, str]:
        """How many vertices are known, and how: fractional ones, and integer points where no part exceeds 0 and 1."""
        if self.is_relaxation or self.verdict is None or self.rows is None:
            return 0, ""
        witnesses = [w for w in self.verdict.witnesses if w.basis]
        found, known = len(witnesses), PROOF
        within = self.bounds is not None and bool((self.bounds[0] >= 0).all() and (self.bounds[1] <= 1).all())
        if self.points is not None and within:
            found += len(self.points)
            known = PROOF if self.bounds_proved and not self.rows.auxiliary else ROUNDING
        return found, known

    def _list_points(self) -> None:
        """Integer points, and the facets of their hull, where only their number is wanted."""
        assert self.rows is not None and self.program is not None and self.hull is not None
        try:
            points = self._integer_points(self.rows, self.program)
            hull = hull_of_points(points, self.hull.equations)
            self.facets = facets_of(points, hull)
            self.points, self.hull_dimension = points, hull.dimension
        except (Missed, TooManyFacets):
            return

    def _count_by_partition(self) -> int | None:
        function = self.polytope.log_partition
        assert function is not None
        zero = torch.zeros(1, *self.compiled.shape, dtype=torch.float64)
        given = parameter_tensors(self.compiled.entries.parameters, self.parameters, torch.Size([1]))
        total = float(function(zero, *(t.to(torch.float64) for t in given)).exp())
        return round(total) if total < 2**50 else None

    def look_at_numbers(self) -> None:
        """Warnings."""
        if self.rows is None or self.program is None:
            return
        dropped = set() if self.redundant is None else self.redundant.dropped
        self.sections.append(numerics.section_of(self.rows, self.program, dropped))

    def measure(self, family: Family | None, sizes: Sequence[tuple[int, ...]]) -> None:
        """Costs, of all sizes of a family."""
        late = self.clock.late_after(0.3)
        found: list[tuple[str, dict[str, Any]]] = []
        missed: list[str] = []
        predictions: dict[str, dict[str, float]] = {}
        for size in sizes or [()]:
            if found and late():
                assert family is not None
                parts = math.prod(family.factory(*size).shape)
                times = costs.predicted([one for _, one in found], parts)
                as_grown = f"; as times have grown, {costs.in_words(times)} per instance" if times else ""
                missed.append(f"size {named_size(size)}: {parts} parts; not measured, for want of time{as_grown}")
                predictions[named_size(size)] = times
                continue
            compiled = self.compiled
            if family is not None and size != sizes[0]:
                compiled = compiled_of_size(family, None, None, *size)
                theta_of(compiled, self.parameters)  # which refuses what does not fit
            scored = _scores_of_auxiliaries(compiled.polytope, self.seed)
            one = costs.costs_of(compiled, {**scored, **self.parameters}, self.seed, late)
            found.append((named_size(size) if size else "", one))
        for named, one in found:
            absent = [name for name in ("maximize", "project") if name in one and one[name] is None]
            if absent:
                self.left_out.append(
                    f"costs{f' of size {named}' * bool(named)}: not timed, for want of time: {' and '.join(absent)}"
                )
        self.left_out += [f"costs of {text.split(';')[0]}: for want of time" for text in missed]
        self.sections.append(costs.section_of(self.compiled, found, missed, predictions))

    def try_rules(self) -> None:
        """What works, and what the others need."""
        late = self.clock.late_after(1.0)
        section = supports.section_of(
            self.polytope, self.compiled, self.named, self.seed, late, lambda: self.clock.left
        )
        self.sections.append(section)
        if section.facts["not_tried"]:
            self.left_out.append(
                f"what it supports: not tried for want of time: {', '.join(section.facts['not_tried'])}"
            )

"""Reports on declarations whose truth is known from elsewhere: theorems, enumeration, exact fractions of the tests."""

import io
import itertools
import json
import math
import sys
from fractions import Fraction

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import scipy.spatial
from catalogue import CATALOGUE

import optlayers as ol
import polytopes
from optlayers.__main__ import main
from optlayers.reporting import asked, clock, costs, study
from optlayers.reporting.fractional import witness_of
from optlayers.reporting.linear_program import LinearProgram, Optimum, proved_bound
from optlayers.reporting.rows import rows_of
from optlayers.reporting.statement import EXHAUSTIVE, PROOF
from optlayers.reporting.vertices import most_least_faces

WHOLE = (
    "test_costs_of_a_family_and_what_it_supports",
    "test_sizes_that_there_is_no_time_for_have_predicted_times",
    "test_what_refuses_says_what_it_needs",
    "test_structures_are_not_enumerated_where_that_takes_too_long",
    "test_samples_of_many_parts_are_not_tried_where_they_take_too_long",
)


@pytest.fixture(autouse=True)
def _only_the_declaration(request, monkeypatch):
    """Times and rules have tests of their own, and take longer than all that stands before them."""
    if request.node.originalname not in WHOLE:
        monkeypatch.setattr(study.Study, "measure", lambda *_: None)
        monkeypatch.setattr(study.Study, "try_rules", lambda *_: None)


Inequalities = tuple[np.ndarray, np.ndarray]
"""``A x <= b`` in integers, written down by the test."""


def edges_of(nodes):
    return list(itertools.combinations(range(nodes), 2))


def rank(rows):
    """Of integers, without rounding."""
    rows = [[Fraction(int(a)) for a in row] for row in rows]
    found = 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        for i in range(found + 1, len(rows)):
            factor = rows[i][column] / rows[found][column]
            if factor:
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
        found += 1
    return found


def dimension(points):
    return rank(np.asarray(points)[1:] - np.asarray(points)[0])


def dense(inequality, size):
    row = np.zeros(size, dtype=int)
    row[list(inequality.coefficients)] = list(inequality.coefficients.values())
    return row


def as_set(inequalities, size):
    return {(*dense(one, size).tolist(), one.side) for one in inequalities}


def points_of(rows, sides):
    """All points of 0 and 1 of some inequalities."""
    every = np.array(list(itertools.product((0, 1), repeat=rows.shape[1])))
    return every[(every @ rows.T <= sides).all(axis=1)]


def hold_to(report, rows, sides, points):
    """What a report says is missing: facets of the hull of the points, each cutting off a point of the rows."""
    size = rows.shape[1]
    for one in report.missing:
        row = dense(one, size)
        assert (points @ row <= one.side).all(), "an integer point is cut off"
        on = points[points @ row == one.side]
        assert dimension(on) == dimension(points) - 1, "it is no facet"
        assert one.known == PROOF
        point = list(one.cuts_off)
        assert sum(a * p for a, p in zip(row.tolist(), point, strict=True)) > one.side
        for declared, side in zip(rows.tolist(), sides.tolist(), strict=True):
            assert sum(a * p for a, p in zip(declared, point, strict=True)) <= side
    for vertex in report.facts["fractional_vertices"]:
        point, scores = [Fraction(p) for p in vertex["point"]], vertex["scores"]
        assert any(p.denominator != 1 for p in point)
        best = scipy.optimize.linprog(-np.array(scores), A_ub=rows, b_ub=sides, bounds=(None, None))
        reached = sum(s * p for s, p in zip(scores, point, strict=True))
        assert abs(-best.fun - float(reached)) < 1e-7
        assert (points @ np.array(scores)).max() < reached, "an integer point is as good"
        tight = [
            r for r, b in zip(rows.tolist(), sides.tolist(), strict=True) if sum(map(lambda a, p: a * p, r, point)) == b
        ]
        assert rank(tight) == size, "it is no vertex"


def declared(rows, sides, **given):
    x = cp.Variable(rows.shape[1], name="x", **given)
    return ol.Polytope(x, [rows @ x <= sides])


def repaired(report, rows, sides):
    """The declaration with the lines of the report, which are pasted as they are printed."""
    x = cp.Variable(rows.shape[1], name="x")
    lines = eval("[" + ",".join(one.line for one in report.missing) + "]", {"x": x})
    return ol.Polytope(x, [rows @ x <= sides, *lines])


# Theorems


@pytest.mark.parametrize("n", [3, 4, 5])
def test_birkhoff(n):
    x = cp.Variable((n, n))
    found = ol.report(ol.Polytope(x, [x >= 0, cp.sum(x, axis=1) == 1, cp.sum(x, axis=0) == 1]))
    assert found.dimension == (n - 1) ** 2
    assert len(found.facts["equations"]) == 2 * n - 1
    assert found.integral is True and found.facts["known"] == PROOF
    assert found.redundant == () and found.facts["duplicates"] == []
    assert "none of the other rows can be left out [proof]" in str(found)
    assert f"there are {n * n} facets, one for each inequality that is left [proof]" in str(found)
    assert found.facts["dependent"] and "constraint 2" in found.facts["dependent"][0]
    assert found.facts["vertices"] == math.factorial(n)
    assert found.missing == ()


@pytest.mark.parametrize("n", [3, 4, 5])
def test_fractional_matchings_lack_odd_sets(n):
    """Edmonds (1965): of all sets of an odd number of nodes, at least 3."""
    edges = edges_of(n)
    degree = np.array([[int(v in e) for e in edges] for v in range(n)])
    rows = np.concatenate([degree, -np.eye(len(edges), dtype=int)])
    sides = np.array([1] * n + [0] * len(edges))
    found = ol.report(declared(rows, sides))
    expected = set()
    for size in range(3, n + 1, 2):
        for nodes in itertools.combinations(range(n), size):
            expected.add((*(int(set(e) <= set(nodes)) for e in edges), (size - 1) // 2))
    assert as_set(found.missing, len(edges)) == expected
    assert found.integral is False
    hold_to(found, rows, sides, points_of(rows, sides))
    assert found.dimension == len(edges)
    again = ol.report(repaired(found, rows, sides))
    assert again.integral is True and again.missing == () and again.facts["known"] == EXHAUSTIVE
    assert len({one.kind for one in found.missing}) == len(range(3, n + 1, 2))
    assert sum(one.kind == "3 coefficients of 1, <= 1" for one in found.missing) == math.comb(n, 3)


def stable_sets(nodes, edges):
    rows = np.array([[int(v in e) for v in range(nodes)] for e in edges])
    return np.concatenate([rows, -np.eye(nodes, dtype=int)]), np.array([1] * len(edges) + [0] * nodes)


def cycle(n):
    return [(i, (i + 1) % n) for i in range(n)]


def test_stable_sets_of_a_cycle_of_four_need_edges_alone():
    rows, sides = stable_sets(4, cycle(4))
    found = ol.report(declared(rows, sides))
    assert found.integral is True and found.facts["known"] == PROOF
    assert found.missing == () and found.redundant == ()
    assert found.facts["vertices"] == len(points_of(rows, sides)) == 7
    assert found.facts["interchangeable"] == [["x[0]", "x[2]"], ["x[1]", "x[3]"]]


def test_stable_sets_of_a_cycle_of_five_lack_the_odd_cycle():
    rows, sides = stable_sets(5, cycle(5))
    found = ol.report(declared(rows, sides))
    assert as_set(found.missing, 5) == {(1, 1, 1, 1, 1, 2)}
    assert found.missing[0].cuts_off == (Fraction(1, 2),) * 5
    assert found.missing[0].line == "x[0] + x[1] + x[2] + x[3] + x[4] <= 2"
    hold_to(found, rows, sides, points_of(rows, sides))
    assert found.facts["integrality_gap"] == pytest.approx(0.25)  # 5/2 beside 2, at equal scores


def test_stable_sets_of_a_wheel_lack_triangles_and_the_wheel():
    """Padberg (1973): the odd cycle is lifted by twice the hub."""
    rows, sides = stable_sets(6, [*cycle(5), *((i, 5) for i in range(5))])
    found = ol.report(declared(rows, sides))
    triangles = {(*(int(v in (*e, 5)) for v in range(6)), 1) for e in cycle(5)}
    assert as_set(found.missing, 6) == triangles | {(1, 1, 1, 1, 1, 2, 2)}
    hold_to(found, rows, sides, points_of(rows, sides))


def metric(n):
    """Barahona and Mahjoub (1986): triangle inequalities of cuts."""
    edges = edges_of(n)
    place = {e: k for k, e in enumerate(edges)}
    rows, sides = [], []
    for a, b, c in itertools.combinations(range(n), 3):
        triple = [place[a, b], place[a, c], place[b, c]]
        for signs, side in (((1, 1, 1), 2), ((1, -1, -1), 0), ((-1, 1, -1), 0), ((-1, -1, 1), 0)):
            row = np.zeros(len(edges), dtype=int)
            row[triple] = signs
            rows.append(row)
            sides.append(side)
    return np.array(rows), np.array(sides), edges


def test_the_metric_relaxation_of_cuts_is_exact_for_four_nodes():
    rows, sides, _ = metric(4)
    found = ol.report(declared(rows, sides))
    assert found.integral is True and found.facts["known"] == EXHAUSTIVE
    assert found.missing == () and found.redundant == () and found.facts["vertices"] == 8


def test_the_metric_relaxation_of_cuts_lacks_pentagons_for_five_nodes():
    """The sum of all ten is at most 6, and that for every cut, switched (Deza and Laurent, 1997)."""
    rows, sides, edges = metric(5)
    found = ol.report(declared(rows, sides))
    expected = set()
    for signs in itertools.product((1, -1), repeat=4):
        s = (1, *signs)
        row = [s[i] * s[j] for i, j in edges]
        expected.add((*row, 6 - sum(a < 0 for a in row)))
    assert len(expected) == 16 and as_set(found.missing, 10) == expected
    assert found.integral is False and found.facts["facets"] == 56
    points = points_of(rows, sides)
    assert len(points) == 16
    hold_to(found, rows, sides, points)
    assert ol.report(repaired(found, rows, sides)).integral is True


def arborescences(n, multi):
    """Trees from node 0 over all arcs into nodes 1, ..., n: one flow for all nodes, or one for each."""
    arcs = [(i, j) for i in range(n + 1) for j in range(1, n + 1) if i != j]
    x = cp.Variable(len(arcs), name="x", nonneg=True)
    into = {v: [k for k, a in enumerate(arcs) if a[1] == v] for v in range(n + 1)}
    out = {v: [k for k, a in enumerate(arcs) if a[0] == v] for v in range(n + 1)}
    constraints = [cp.sum(x[into[v]]) == 1 for v in range(1, n + 1)]
    for target in range(1, n + 1) if multi else [None]:
        flow = cp.Variable(len(arcs), nonneg=True)
        constraints.append(flow <= (1 if multi else n) * x)
        for v in range(1, n + 1):
            ends = 1 if target is None else int(v == target)
            leaving = cp.sum(flow[out[v]]) if out[v] else 0
            constraints.append(cp.sum(flow[into[v]]) - leaving == ends)
    return ol.Polytope(x, constraints), arcs


def trees_from_root(n, arcs):
    found = []
    for heads in itertools.product(range(n + 1), repeat=n):
        chosen = {(h, v) for v, h in enumerate(heads, start=1)}
        reached = {0}
        for _ in range(n):
            reached |= {b for a, b in chosen if a in reached}
        if len(reached) == n + 1 and all(a != b for a, b in chosen):
            found.append([int(a in chosen) for a in arcs])
    return np.array(found)


def test_trees_by_one_flow_are_fractional_and_by_many_integral():
    """Wong (1984): with a flow for each node the relaxation is the arborescence polytope."""
    single, arcs = arborescences(3, False)
    trees = trees_from_root(3, arcs)
    assert len(trees) == 16  # Cayley
    found = ol.report(single)
    assert found.integral is False and found.missing
    assert found.dimension == dimension(trees) == 6
    for one in found.missing:
        row = dense(one, len(arcs))
        on = trees[trees @ row == one.side]
        assert (trees @ row <= one.side).all() and dimension(on) == dimension(trees) - 1
        assert sum(int(a) * p for a, p in zip(row, one.cuts_off, strict=True)) > one.side
    many, _ = arborescences(3, True)
    assert ol.report(many).integral is True
    assert ol.report(many).facts["vertices"] == 16


@pytest.mark.parametrize(("weights", "capacity"), [([5, 5, 5], 9), ([3, 4, 5, 6], 9), ([2, 3, 4, 5, 6], 11)])
def test_knapsacks_lack_covers(weights, capacity):
    """Against the facets that scipy finds, read as integers and held to the points."""
    n = len(weights)
    rows = np.concatenate([[weights], np.eye(n, dtype=int), -np.eye(n, dtype=int)])
    sides = np.array([capacity] + [1] * n + [0] * n)
    points = points_of(rows, sides)
    found = ol.report(declared(rows, sides))
    expected = set()
    for equation in np.unique(np.round(scipy.spatial.ConvexHull(points).equations, 9), axis=0):
        row = equation / np.abs(equation[:n])[np.abs(equation[:n]) > 1e-9].min()
        scale = next(k for k in range(1, 13) if np.allclose(k * row, np.round(k * row), atol=1e-6))
        whole = np.round(scale * row).astype(int)
        whole //= np.gcd.reduce(whole)
        assert (points @ whole[:n] <= -whole[n]).all()
        expected.add((*whole[:n].tolist(), int(-whole[n])))
    implied = set()
    for facet in expected:
        best = scipy.optimize.linprog(-np.array(facet[:n]), A_ub=rows, b_ub=sides, bounds=(None, None))
        if -best.fun <= facet[n] + 1e-9:
            implied.add(facet)
    assert as_set(found.missing, n) == expected - implied
    assert found.facts["facets"] == len(expected)
    hold_to(found, rows, sides, points)
    boolean = ol.report(declared(rows, sides, boolean=True))
    assert as_set(boolean.missing, n) == expected - implied
    assert boolean.facts["vertices"] == len(points) and boolean.facts["diagram"]["points"] == len(points)


def test_a_redundant_big_m_row_is_found_and_warned_of():
    x = cp.Variable(4, name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [cp.sum(x) == 1, x[0] - 1000 * x[1] <= 1]))
    assert found.integral is True and found.dimension == 3
    assert len(found.redundant) == 1 and found.redundant[0].startswith("constraint 1 (")
    assert len(found.warnings) == 1 and "big-M row" in found.warnings[0] and "leave it out" in found.warnings[0]


def test_a_big_m_that_may_be_smaller_is_named_with_its_value():
    x = cp.Variable(3, name="x", nonneg=True)
    z = x[2]
    found = ol.report(ol.Polytope(x, [x <= 1, x[0] + x[1] <= 1 + 1000 * z]))
    (warning,) = found.warnings
    assert "its coefficient of 1000 may be 1," in warning
    assert warning.endswith(": x[0] + x[1] - x[2] <= 1")
    again = ol.report(ol.Polytope(x, [x <= 1, x[0] + x[1] <= 1 + z]))
    assert again.warnings == () and again.integral is True and found.integral is False


@pytest.mark.parametrize("n", [3, 4, 5])
def test_a_permutahedron(n):
    """Rado (1952): a facet for every proper subset; its integer points are the forests of n nodes."""
    subsets = [s for k in range(1, n) for s in itertools.combinations(range(n), k)]
    x = cp.Variable(n, name="x")
    floors = [sum(x[i] for i in s) >= len(s) * (len(s) + 1) // 2 for s in subsets]
    found = ol.report(ol.Polytope(x, [cp.sum(x) == n * (n + 1) // 2, *floors]))
    assert found.dimension == n - 1 and found.integral is True and found.missing == ()
    assert found.redundant == () and found.facts["facets_of_rows"] == 2**n - 2
    assert found.facts["vertices"] == math.factorial(n)
    assert found.facts["interchangeable"] == [[f"x[{i}]" for i in range(n)]]
    assert all(ends == [1.0, float(n)] for ends in found.facts["bounds"].values())


def test_a_hypersimplex():
    found = ol.report(polytopes.subset(5), budget=2)
    assert found.dimension == 4 and found.integral is True and found.facts["known"] == PROOF
    assert found.facts["vertices"] == math.comb(5, 2) and found.redundant == ()
    assert len(found.facts["interchangeable"][0]) == 5
    half = ol.report(polytopes.subset(5), budget=2.5)
    assert half.integral is False and "no integer point at all" in str(half)


@pytest.mark.many(12)
@pytest.mark.parametrize("entry", CATALOGUE, ids=repr)
def test_the_catalogue_is_what_it_says(entry):
    """The structures of every entry are listed by the tests: they tell the dimension and the number of vertices."""
    found = ol.report(entry.polytope, effort="quick", **entry.parameters)
    structures = np.unique(entry.vertices.reshape(len(entry.vertices), -1).astype(int), axis=0)
    if not entry.polytope.has_integers:
        assert found.dimension == (dimension(structures) if len(structures) > 1 else 0)
        assert found.integral is not False and found.missing == ()
    elif found.missing:
        assert found.integral is False
    if found.facts["hull_dimension"] is not None:
        assert found.facts["hull_dimension"] == (dimension(structures) if len(structures) > 1 else 0)
    if found.facts["vertices"] is not None:
        assert found.facts["vertices"] == entry.count
    for one in found.missing:
        row = dense(one, structures.shape[1])
        total = structures @ row
        assert (total == one.side).all() if one.is_equation else (total <= one.side).all()


def solved(rows, sides):
    """The point at which three rows hold as equalities, by Cramer's rule; None for none, or many."""
    size = round(np.linalg.det(rows))
    if size == 0:
        return None
    tops = [np.where(np.arange(3) == j, sides[:, None], rows) for j in range(3)]
    return tuple(Fraction(round(np.linalg.det(top)), size) for top in tops)


def vertices_of(rows, sides):
    """All vertices in three dimensions, by every three rows, in fractions."""
    found = set()
    for chosen in itertools.combinations(range(len(rows)), 3):
        point = solved(rows[list(chosen)], sides[list(chosen)])
        told = zip(rows.tolist(), sides.tolist(), strict=True)
        if point is not None and all(sum(map(lambda a, p: a * p, row, point)) <= side for row, side in told):
            found.add(point)
    return found


@pytest.mark.many(12)
@pytest.mark.parametrize("seed", range(60))
def test_random_rows_are_what_all_their_vertices_say(seed):
    rng = np.random.default_rng(seed)
    count, box = int(rng.integers(2, 6)), np.concatenate([np.eye(3, dtype=int), -np.eye(3, dtype=int)])
    rows = np.concatenate([rng.integers(-2, 4, (count, 3)), box])
    sides = np.concatenate([rng.integers(1, 6, count), rng.integers(1, 3, 3), [0, 0, 0]])
    corners = vertices_of(rows, sides)
    found = ol.report(declared(rows, sides), seed=seed)
    assert found.integral == all(p.denominator == 1 for corner in corners for p in corner)
    scale = math.lcm(*(p.denominator for corner in corners for p in corner))
    assert found.dimension == dimension(np.array([[int(p * scale) for p in corner] for corner in corners])) == 3
    for part in range(3):
        ends = [float(min(c[part] for c in corners)), float(max(c[part] for c in corners))]
        assert found.facts["bounds"][f"x[{part}]"] == pytest.approx(ends)
    tight = [
        {c for c in corners if sum(map(lambda a, p: a * p, row, c)) == side}
        for row, side in zip(rows, sides, strict=True)
    ]
    flat = {frozenset(t) for t in tight if len(t) > 2 and dimension([[int(p * scale) for p in c] for c in t]) == 2}
    assert found.facts["facets_of_rows"] == len(flat)
    grid = np.array(list(itertools.product(range(3), repeat=3)))
    inside = grid[(grid @ rows.T <= sides).all(axis=1)]
    if not any(one.is_equation for one in found.missing):
        extra = np.array([dense(one, 3) for one in found.missing]).reshape(-1, 3)
        all_rows = np.concatenate([rows, extra])
        all_sides = np.concatenate([sides, np.array([one.side for one in found.missing], dtype=int)])
        after = vertices_of(all_rows, all_sides)
        assert all(p.denominator == 1 for corner in after for p in corner)
        assert {tuple(int(p) for p in corner) for corner in after} <= {tuple(p) for p in inside.tolist()}
    for one in found.missing:
        assert (inside @ dense(one, 3) <= one.side).all()


# Single statements


def test_implied_equalities_fixed_and_equal_parts_have_names():
    x = cp.Variable(5, name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [x[0] + x[1] <= 0, x[2] <= x[3], x[3] <= x[2], x[2] + x[3] <= 2, x[4] == 3]))
    assert found.dimension == 1
    assert found.facts["fixed"] == {"x[0]": "0", "x[1]": "0", "x[4]": "3"}
    assert found.facts["always_equal"] == [["x[2]", "x[3]"]]
    told = " ".join(found.facts["implied_equalities"])
    assert all(f"constraint {k} (" in told for k in (0, 1, 2)) and "constraint 3" not in told
    assert found.facts["bounds"]["x[2]"] == [0.0, 1.0]


def test_rows_are_written_with_the_names_of_auxiliary_variables():
    x, flow = cp.Variable(3, nonneg=True), cp.Variable((2, 2), nonneg=True, name="flow")
    rows = [cp.sum(x) == 1, x[0] <= flow[0, 1] + flow[1, 0], flow <= 1, 2 * flow[1, 0] <= 4]
    (told,) = [line for line in str(ol.report(ol.Polytope(x, rows))).split("\n") if "says no more" in line]
    assert "row 2*flow[1, 0] <= 4, says no more than" in told and "row flow[1, 0] <= 1" in told


def test_rows_that_are_written_twice_or_are_wider_are_duplicates():
    x = cp.Variable(2, name="x")
    found = ol.report(
        ol.Polytope(x, [x >= 0, x[0] + x[1] <= 1, 2 * x[0] + 2 * x[1] <= 6, 0.1 * x[0] + 0.1 * x[1] <= 0.1])
    )
    assert len(found.facts["duplicates"]) == 2 and found.redundant == ()
    assert "says no more than constraint 1 (" in str(found)


def test_a_redundant_row_neither_connects_parts_nor_tells_them_apart():
    """The set is a square: a product of two equal intervals."""
    x = cp.Variable(2, name="x")
    found = ol.report(ol.Polytope(x, [x >= 0, x <= 1, x[0] + 2 * x[1] <= 100]))
    assert found.facts["blocks"] == [["x[0]"], ["x[1]"]]
    assert found.facts["interchangeable"] == [["x[0]", "x[1]"]]
    assert "2 independent blocks, of 1 part each [proof]" in str(found)


def test_equations_that_are_written_together_connect_no_parts():
    """Two simplices, whose sums are also added up."""
    x = cp.Variable(4, name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [cp.sum(x) == 2, x[2] + x[3] == 1]))
    assert found.facts["blocks"] == [["x[0]", "x[1]"], ["x[2]", "x[3]"]] == found.facts["interchangeable"]


def test_fixed_parts_are_blocks_of_their_own():
    """No head of the root, none of itself."""
    found = ol.report(polytopes.arborescence(3), effort="quick")
    fixed = [[f"x[{i}, {j}]"] for i in range(4) for j in range(4) if i == j or j == 0]
    assert [block for block in found.facts["blocks"] if len(block) == 1] == fixed
    assert len(found.facts["blocks"]) == len(fixed) + 1
    assert f"{len(fixed)} parts are fixed, and depend on nothing [proof]" in str(found)


def test_parts_of_one_block_are_told_apart_by_what_is_needed():
    x = cp.Variable(2, name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [x[0] + 2 * x[1] <= 2]))
    assert "all parts depend on each other: they form one block [proof]" in str(found)
    assert "no two parts may change places; other symmetries are not looked for [proof]" in str(found)


@pytest.mark.parametrize("side", [1.9999999, 1.999999999])
def test_a_side_that_is_nearly_an_integer_is_none(side):
    """A corner of the square is cut off, so there are two vertices with fractions in its place."""
    x = cp.Variable(2, name="x")
    found = ol.report(ol.Polytope(x, [x >= 0, x <= 1, x[0] + x[1] <= side]))
    assert found.integral is False and found.facts["known"] == PROOF and found.redundant == ()
    near = Fraction(repr(side)) - 1
    points = {tuple(Fraction(p) for p in vertex["point"]) for vertex in found.facts["fractional_vertices"]}
    assert points == {(near, 1), (1, near)}
    assert as_set(found.missing, 2) == {(1, 1, 1)} and found.facts["facets_of_rows"] == found.facts["vertices"] == 5


@pytest.mark.parametrize("row", [lambda x: np.pi * x[0] + x[1] <= 1, lambda x: x[0] + x[1] <= 2 - 1e-12])
def test_numbers_that_are_no_short_fractions_prove_nothing(row):
    x = cp.Variable(2, name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [x <= 1, row(x)]))
    for section in found.sections:
        assert all(told.known not in (PROOF, EXHAUSTIVE) for told in section.statements)
    assert found.facts["known"] not in (PROOF, EXHAUSTIVE)


def test_an_equation_of_numbers_that_are_no_fractions_is_as_it_was_declared():
    x = cp.Variable(2, name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [np.pi * x[0] + x[1] == 1]))
    assert found.dimension == 1
    assert found.facts["equations"] == ["x[0] + 0.31831*x[1] == 0.31831"]


def test_a_vertex_of_long_fractions_is_worked_out():
    """7001 + 9001 b = 15999 at b = 8998/9001, which is read as 2999/3000 where it is only read."""
    x = cp.Variable(2, name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [x <= 1, 7001 * x[0] + 9001 * x[1] <= 15999]))
    assert found.integral is False and found.facts["known"] == PROOF
    points = {tuple(Fraction(p) for p in vertex["point"]) for vertex in found.facts["fractional_vertices"]}
    assert points == {(1, Fraction(8998, 9001)), (Fraction(6998, 7001), 1)}
    assert as_set(found.missing, 2) == {(1, 1, 1)} and found.missing[0].known == PROOF
    assert found.missing[0].cuts_off in points


def test_what_a_function_separates_is_not_missing():
    """Of the 100 facets of round trips through 6 cities (Norman, 1955) are 30 bounds and 10 subtours."""
    found = ol.report(polytopes.tour(6))
    assert found.facts["facets"] == 100 and found.facts["facets_of_rows"] == 40
    assert len(found.missing) == 60 and all(one.cuts_off for one in found.missing)
    assert "the 10 constraints that separate=subtours brought" in str(found)
    assert "the hull of all integer points has 60 vertices" in str(found)
    for one in found.missing:
        point = np.array([float(v) for v in one.cuts_off]).reshape(6, 6)
        assert polytopes.tour(6).separate(point) == []


def test_five_cities_need_no_subtours():
    """Two edges at every city, none twice: that is all for five."""
    found = ol.report(polytopes.tour(5))
    assert found.integral is True and found.missing == () and found.facts["facets_of_rows"] == 20


@pytest.mark.parametrize(
    ("make", "values", "width"),
    [
        (lambda: polytopes.subset(6), {"budget": 3}, 4),  # 0, 1, 2 or 3 taken of the first three
        (lambda: polytopes.simplex(5), {}, 2),  # taken, or not yet
        (lambda: polytopes.cube(4), {}, 1),
    ],
    ids=["subset", "simplex", "cube"],
)
def test_the_width_of_a_diagram_is_the_number_of_states(make, values, width):
    found = ol.report(make(), effort="quick", **values)
    assert found.facts["diagram"]["width"] == width


def test_a_diagram_of_a_sequence_is_as_wide_as_its_tags_are_many():
    assert ol.report(polytopes.sequence(3, 4), effort="quick").facts["diagram"]["width"] >= 4


def test_vertices_of_a_relaxation_with_fractions_are_listed():
    """Stable sets of a cycle of five, and one half everywhere."""
    rows, sides = stable_sets(5, cycle(5))
    found = ol.report(declared(rows, sides))
    assert found.facts["vertices"] == len(points_of(rows, sides)) + 1 == 12
    assert "the polytope has 12 vertices [enumerated, to rounding]" in str(found)


def test_vertices_that_are_known_are_at_least_there():
    """In too many dimensions to list them: the matchings of five people, and half triangles and cycles of them."""
    edges = edges_of(5)
    degree = np.array([[int(v in e) for e in edges] for v in range(5)])
    rows = np.concatenate([degree, -np.eye(10, dtype=int)])
    sides = np.array([1] * 5 + [0] * 10)
    found = ol.report(declared(rows, sides))
    halves = len(found.facts["fractional_vertices"])
    assert found.facts["vertices"] is None
    assert found.facts["at_least"] == len(points_of(rows, sides)) + halves == 26 + halves
    assert halves <= 10 + 10 * 1 + 12  # triangles alone or with an edge, and cycles of five


def test_words_of_what_is_missing():
    """A facet of negative coefficients is written the other way round, and each kind shows what it cuts off."""
    x = cp.Variable(3, name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [x <= 1, *(2 * x[i] + 2 * x[j] >= 1 for i, j in edges_of(3))]))
    assert [one.line for one in found.missing] == ["x[0] + x[1] + x[2] >= 2"]
    assert {one.kind for one in found.missing} == {"3 coefficients of 1, >= 2"}
    lines = eval("[" + ",".join(one.line for one in found.missing) + "]", {"x": x})
    assert ol.report(ol.Polytope(x, [x >= 0, x <= 1, *lines])).integral is True
    assert "# the first one cuts off " in str(found) and "with the lines below the polytope is integral" in str(found)
    many = ol.report(declared(*stable_sets(5, edges_of(5))), effort="quick")
    assert len(many.missing) == 1  # the clique of five implies those of three and four
    wide = ol.report(polytopes.tour(6))
    assert "with all of report.missing, of which some are below, the polytope is integral" in str(wide)


def test_the_gap_is_told_next_to_the_spread_of_integer_points():
    """Of a triangle that is cut off at one and a half, by its corners and its integer points."""
    x = cp.Variable(2, name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [x <= 2, 2 * x[0] + 2 * x[1] <= 3]))
    grid = np.array([[0, 0], [1, 0], [0, 1]])
    corners = np.array([[0, 0], [1.5, 0], [0, 1.5]])
    scores = np.array(found.facts["gap_scores"])
    values = grid @ scores
    gap = ((corners @ scores).max() - values.max()) / (values.max() - values.min())
    assert found.facts["integrality_gap"] == pytest.approx(gap) and 0.0 < gap <= 0.5 + 1e-9


def test_long_objectives_are_not_printed():
    n = 9
    edges = edges_of(n)
    degree = np.array([[int(v in e) for e in edges] for v in range(n)])
    rows, sides = np.concatenate([degree, -np.eye(len(edges), dtype=int)]), np.array([1] * n + [0] * len(edges))
    found = ol.report(declared(rows, sides), effort="quick")
    assert any("(facts['fractional_vertices'] has them)" in line for line in str(found).splitlines())
    assert max(len(line) for line in str(found).splitlines() if "best for" in line) < 500


def test_numbers_are_named_that_prove_nothing():
    x = cp.Variable(2, name="x", nonneg=True)
    (warning,) = ol.report(ol.Polytope(x, [x <= 1, np.pi * x[0] + x[1] <= 2])).warnings
    assert "constraint 1 (" in warning and "constraint 0" not in warning and "small denominators" in warning


def test_one_is_singular():
    x = cp.Variable(2, name="x", nonneg=True)
    told = str(ol.report(ol.Polytope(x, [cp.sum(x) == 1, x[0] == 1])))
    assert "1 vertices" not in told and "1 nodes" not in told and "has 1 vertex" in told
    far = str(ol.report(ol.Polytope(x, [x <= 1, x[0] <= 1e6])))
    assert "which is never reached: leave it out" in far


def test_bounds_that_there_is_no_time_for_are_left_out(monkeypatch):
    after = clock.Clock.late_after
    monkeypatch.setattr(clock.Clock, "late_after", lambda self, share: after(self, 0.0 if share == 0.2 else share))
    found = ol.report(polytopes.cube(4))
    assert "bounds of 4 of 4 parts: for want of time" in found.left_out and found.facts["bounds"] == {}
    assert "redundant rows: 8 rows were not looked at, for want of time" in found.left_out


def test_samples_of_many_parts_are_not_tried_where_they_take_too_long():
    """A sample asks for the marginals of 5000 parts as often."""
    found = ol.report(polytopes.cube(5000), effort="quick")
    assert any("SampledMarginals" in text for text in found.left_out)
    assert "5000 variables are too many" in found.left_out[0]
    assert found.seconds < 20.0


def test_structures_are_not_enumerated_where_that_takes_too_long():
    """There are 60! matchings, and nothing says so before some thousands were listed."""
    found = ol.report(polytopes.matching(60), effort="quick")
    not_tried = next(text for text in found.left_out if "not tried" in text)
    assert "CRFLoss" in not_tried and "Gibbs.log_count" in not_tried
    assert found.seconds < 30.0


def test_blocks_are_independent():
    x = cp.Variable((2, 3), name="x", nonneg=True)
    found = ol.report(ol.Polytope(x, [cp.sum(x, axis=1) == 1]))
    assert found.facts["blocks"] == [[f"x[{i}, {j}]" for j in range(3)] for i in range(2)]
    assert found.facts["interchangeable"] == found.facts["blocks"]


def test_a_cut_for_a_larger_polytope_holds_for_all_matchings():
    n = 9
    edges = edges_of(n)
    degree = np.array([[int(v in e) for e in edges] for v in range(n)])
    rows = np.concatenate([degree, -np.eye(len(edges), dtype=int)])
    sides = np.array([1] * n + [0] * len(edges))
    found = ol.report(declared(rows, sides))
    assert found.integral is False and found.missing and found.facts["facets"] is None
    for one in found.missing:
        row, point = dense(one, len(edges)), one.cuts_off
        best = scipy.optimize.milp(-row, constraints=scipy.optimize.LinearConstraint(rows, ub=sides), integrality=1)
        assert round(-best.fun) <= one.side < sum(a * p for a, p in zip(row.tolist(), point, strict=True))
        assert one.line in str(found) or "more of this kind" in str(found)


def test_cuts_are_made_beside_auxiliary_variables_too():
    """Room at each node, written as a variable; the cuts are odd sets, which no integer point violates."""
    n = 9
    edges = edges_of(n)
    degree = np.array([[int(v in e) for e in edges] for v in range(n)])
    x, room = cp.Variable(len(edges), nonneg=True), cp.Variable(n, nonneg=True)
    found = ol.report(ol.Polytope(x, [degree @ x + room == 1, room <= 1]))
    assert found.integral is False and found.missing and found.facts["facets"] is None
    for one in found.missing:
        row, point = dense(one, len(edges)), one.cuts_off
        best = scipy.optimize.milp(-row, constraints=scipy.optimize.LinearConstraint(degree, ub=1), integrality=1)
        assert round(-best.fun) <= one.side < sum(a * p for a, p in zip(row.tolist(), point, strict=True))


def test_dependent_equalities_and_scales_are_warned_of():
    x = cp.Variable(3, name="x", nonneg=True)
    near = ol.report(ol.Polytope(x, [cp.sum(x) == 1, x[0] + x[1] + (1 + 1e-8) * x[2] == 1]))
    assert any("nearly a combination" in w for w in near.warnings)
    odd = ol.report(ol.Polytope(x, [x <= 1, math.pi * x[0] + x[1] <= 2]))
    assert any("small denominators" in w for w in odd.warnings)
    assert "[proof]" not in str(odd).split("Integrality")[1].split("Vertices")[0]
    assert as_set(odd.missing, 3) == {(1, 0, 0, 0)}  # pi is more than 2: the part is 0, as an equation


def test_an_oracle_knows_what_rows_do_not():
    """The points of a relaxation are those of its oracle."""
    x = cp.Variable(3, name="x", nonneg=True)

    def best(scores):
        values = [0.0, *scores]
        where = int(np.argmax(values))
        return np.eye(4)[where][1:]

    found = ol.report(ol.Polytope(x, [x[0] + x[1] <= 1, x[1] + x[2] <= 1], oracle=best, rows="relaxation"))
    assert as_set(found.missing, 3) == {(1, 1, 1, 1)}
    assert found.facts["vertices"] == 4


@pytest.mark.parametrize("integer", [False, True])
def test_an_equation_may_be_missing(integer):
    x = cp.Variable(2, name="x", integer=integer)
    total = x[0] + x[1]
    found = ol.report(ol.Polytope(x, [x >= 0, x <= 2, total <= 1.5, total >= 0.6]))
    assert found.dimension == 2 and found.facts["hull_dimension"] == 1
    (equation,) = [one for one in found.missing if one.is_equation]
    assert equation.line == "x[0] + x[1] == 1" and equation.known == PROOF
    assert sum(equation.cuts_off) != 1 and found.integral is False
    assert found.facts["vertices"] == (2 if integer else 4)
    again = ol.report(ol.Polytope(x, [x >= 0, x <= 2, total <= 1.5, total >= 0.6, equation.constraint(x)]))
    assert again.dimension == 1 and again.integral is True and again.facts["vertices"] == 2


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_a_bound_on_the_vertices_of_a_shadow_holds(n):
    """The cross-polytope has 2 n, and here auxiliary variables that nothing bounds from above."""
    x = cp.Variable(n, name="x")
    found = ol.report(ol.Polytope(x, [cp.norm1(x) <= 1.5]))
    assert found.facts["vertices"] == 2 * n
    assert most_least_faces(rows_of(ol.Polytope(x, [cp.norm1(x) <= 1.5]), np.zeros(0))) >= 2 * n


def test_wrong_multipliers_prove_nothing():
    """Sums of rows that are the objective, but with a row the wrong way round; or that are not the objective."""
    x = cp.Variable(2, name="x", nonneg=True)
    rows = rows_of(ol.Polytope(x, [x[0] <= 1, x[0] + x[1] <= 1]), np.zeros(0))
    texts = [rows.text(i) for i in range(rows.count)]
    weights = np.zeros(rows.count)
    weights[texts.index("x[0] + x[1] <= 1")] = 1.0
    assert proved_bound(rows, np.array([1.0, 1.0]), weights) == 1
    assert proved_bound(rows, np.array([1.0, 0.0]), weights) is None
    weights[texts.index("x[0] <= 1")] = -1.0
    assert proved_bound(rows, np.array([0.0, 1.0]), weights) is None  # x[1] is no more than 0, says this sum
    assert rows.holds(np.array([1, 1]), 2) and not rows.holds(np.array([2, 1]), 2)


def test_a_point_within_a_face_is_no_fractional_vertex():
    x = cp.Variable(2, name="x", nonneg=True)
    rows = rows_of(ol.Polytope(x, [x <= 1]), np.zeros(0))
    program, generator = LinearProgram(rows), np.random.default_rng(0)
    for point in ([0.5, 0.0], [0.5, 0.5]):
        best = Optimum(0.0, np.array(point), np.zeros(rows.count))
        assert witness_of(rows, program, best, np.zeros(2), generator) is None


# The value


def triangle():
    x = cp.Variable(3, name="x", nonneg=True)
    return ol.Polytope(x, [x[0] + x[1] <= 1, x[0] + x[2] <= 1, x[1] + x[2] <= 1])


def test_a_report_is_text_a_page_and_plain_data():
    found = ol.report(triangle())
    assert "x[0] + x[1] + x[2] <= 1,\n" in str(found) and "[proof]" in str(found)
    page = found._repr_html_()
    assert (
        "<pre>x[0] + x[1] + x[2] &lt;= 1,\n# the first one cuts off x[0] = 1/2" in page
        and "<h4>Integrality</h4>" in page
    )
    data = json.loads(json.dumps(found.to_dict()))
    assert data["facts"]["dimension"] == 3 and data["facts"]["missing"][0]["cuts_off"] == ["1/2"] * 3
    for statements in data["statements"].values():
        assert all(s["known"] for s in statements)
    assert ol.report(triangle()) == found  # the same seed


def test_a_fractional_vertex_is_drawn_as_structures_are():
    found = ol.report(triangle())
    bars = found.plot()
    assert [round(bar.get_height(), 9) for bar in bars.patches] == [0.5] * 3
    assert bars.get_title() == "the fractional vertex that was found"
    assert [label.get_text() for label in bars.get_xticklabels()] == ["x[0]", "x[1]", "x[2]"]
    assert [label.get_text() for label in found.plot(words=["a", "c", "b"]).get_xticklabels()] == ["a", "c", "b"]
    assert 'src="data:image/png;base64,iVBOR' in found._repr_html_()
    pairs = cp.Variable((3, 3), symmetric=True)
    odd = ol.Polytope(pairs, [pairs >= 0, cp.diag(pairs) == 0, cp.sum(pairs, axis=1) <= 1])
    seen = ol.report(odd)
    assert "x[0, 0] >= 0; x[1, 1] >= 0; x[2, 2] >= 0" in str(seen)  # entries of the variable that cvxpy solves for
    drawn = seen.plot(words=(list("abc"), list("abc")))
    x = cp.Variable(6, nonneg=True)
    apart = ol.Polytope(x, [x[i] + x[j] <= 1 for k in (0, 3) for i, j in ((k, k + 1), (k, k + 2), (k + 1, k + 2))])
    many = ol.report(apart, effort="quick")  # two triangles: of 25 vertices, 9 are fractional
    count = len(many.facts["fractional_vertices"])
    assert 1 < count <= 9
    assert many.plot(vertex=1).get_title() == f"one of {count} fractional vertices that were found"
    assert np.allclose(drawn.images[0].get_array(), 0.5 - 0.5 * np.eye(3))
    x = cp.Variable(3, nonneg=True)
    whole = ol.report(ol.Polytope(x, [cp.sum(x) == 1]))
    assert "<img" not in whole._repr_html_()
    with pytest.raises(ValueError, match="0 fractional vertices are known"):
        whole.plot()


def test_a_missing_inequality_is_a_constraint():
    (one,) = ol.report(triangle()).missing
    x = cp.Variable(3)
    x.value = np.array([0.5, 0.5, 0.5])
    assert one.constraint(x).violation() == pytest.approx(0.5)


def test_ctrl_c_gives_what_is_known(monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(study.Study, "find_integrality", interrupted)
    found = ol.report(triangle())
    assert found.dimension == 3 and found.integral is None
    assert found.left_out == ("integrality and what follows: stopped by Ctrl-C",)


def test_a_bar_is_shown_after_a_while(monkeypatch):
    steps = []
    monkeypatch.setattr(clock, "PATIENCE", 0.0)
    monkeypatch.setattr("sys.stderr", Terminal())
    monkeypatch.delenv("OPTLAYERS_QUIET", raising=False)
    step = clock.Clock.step
    monkeypatch.setattr(clock.Clock, "step", lambda self, name: (step(self, name), steps.append(self._bar._bar)))
    ol.report(triangle())
    assert len(steps) == 8 and all(bar.finished is False for bar in steps)
    assert steps[0].live.is_started is False  # it is gone in the end


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_what_there_is_no_time_for_is_said(monkeypatch):
    monkeypatch.setitem(asked.EFFORTS, "quick", (1e-9, 4))
    found = ol.report(triangle(), effort="quick")
    assert found.integral is None and "for want of time" in str(found)


def test_what_is_not_polyhedral_or_too_large_is_left_out(monkeypatch):
    x = cp.Variable(3)
    found = ol.report(ol.Polytope(x, [cp.norm(x) <= 1]))
    assert found.dimension is None and "not polyhedral" in found.left_out[0]
    monkeypatch.setattr(study, "LARGEST", 5)
    assert "report on a smaller size" in ol.report(triangle()).left_out[0]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ol.report("triangle"), TypeError, "report takes a Polytope or a Family, but got str"),
        (lambda: ol.report(polytopes.subset(3)), TypeError, r"missing \['budget'\]"),
        (lambda: ol.report(polytopes.subset(3), budget=5), ValueError, "nothing to report on: INFEASIBLE"),
        (lambda: ol.report(triangle(), effort="much"), ValueError, "'quick', 'normal', 'thorough'"),
        (lambda: ol.report(triangle(), sizes=[3]), ValueError, "leave sizes out"),
        (lambda: ol.report(ol.Family(polytopes.simplex)), ValueError, "needs sizes="),
        (lambda: ol.report(ol.Family(polytopes.simplex), sizes=[2.5]), ValueError, "sizes are integers"),
        (lambda: ol.report(_of(lambda x: [x >= 1, x <= 0])), ol.DeclarationError, "empty"),
        (lambda: ol.report(_of(lambda x: [x >= 1])), ol.DeclarationError, "unbounded"),
    ],
)
def test_bad_input_is_refused_in_words(make, error, message):
    with pytest.raises(error, match=message):
        make()


def _of(constrain):
    x = cp.Variable(2)
    return ol.Polytope(x, constrain(x))


# Costs, rules, the shell


def test_costs_of_a_family_and_what_it_supports():
    found = ol.report(ol.Family(polytopes.simplex), sizes=[3, 6])
    sizes = found.facts["costs"]
    assert [one["parts"] for one in sizes] == [3, 6]
    assert all(one["maximize"] > 0 and one["project"] > 0 and one["bytes_per_instance"] > 0 for one in sizes)
    assert "size 3" in found.subject and "at the peak of a call" in str(found)
    # A point of float64 is in memory, and what a solver works with is not a thousand times that.
    assert all(8 * one["parts"] <= one["measured_bytes_per_instance"] <= 1e4 for one in sizes)


def test_sizes_that_there_is_no_time_for_have_predicted_times(monkeypatch):
    """As times have grown: by their square here."""
    seconds = iter([1e-5, 4e-5])

    def timed(compiled, *_):
        return {
            "parts": compiled.form.size,
            "maximize": next(seconds),
            "rows": 1,
            "bytes_per_instance": 8,
            "bytes_once": 8,
        }

    monkeypatch.setattr(costs, "costs_of", timed)
    late = iter([False, True])
    monkeypatch.setattr(clock.Clock, "late_after", lambda _, share: lambda: share == 0.3 and next(late))
    monkeypatch.setattr(study.Study, "try_rules", lambda *_: None)
    found = ol.report(ol.Family(polytopes.simplex), sizes=[3, 6, 12], effort="quick")
    assert found.facts["predicted"]["12"] == {"maximize": pytest.approx(1.6e-4)}
    assert "size 12: 12 parts; not measured, for want of time; as times have grown, maximize 160 µs" in str(found)


def test_what_refuses_says_what_it_needs():
    x = cp.Variable(3, name="x")
    cross = ol.report(ol.Polytope(x, [cp.norm1(x) <= 1.5]), effort="thorough")
    assert "SparseMAP" in cross.facts["works"]["rules"]
    works = ol.report(polytopes.simplex(3), effort="thorough").facts
    assert not works["needs"] and not works["not_tried"]
    assert "CRFLoss" in works["works"]["losses"] and "Gibbs.sample" in works["works"]["distributions"]
    assert not ol.report(polytopes.linear_chain(3, 2), effort="thorough").facts["needs"]
    ball = cp.Variable(2)
    needs = ol.report(ol.Polytope(ball, [cp.norm(ball) <= 1]), effort="thorough").facts["needs"]
    assert "Spigot" in needs and "SparseMAP" not in needs


def test_the_shell(capsys, monkeypatch):
    monkeypatch.setattr("optlayers.__main__.compile_ahead", lambda: 7)
    assert main(["warm"]) == 7
    assert main(["report", "polytopes:matching", "--size", "3", "--effort", "quick"]) == 0
    assert "dimension 4 in 9 parts" in capsys.readouterr().out
    assert main(["report", "polytopes:subset", "--size", "4", "--parameter", "budget=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["vertices"] == 6
    assert main(["explain", "polytopes:simplex", "--size", "4"]) == 0
    assert "maximize: " in capsys.readouterr().out
    assert main(["check", "polytopes:simplex", "--size", "4"]) == 0
    assert "vertices are integral" in capsys.readouterr().out
    assert main(["doctor"]) == 0
    told = capsys.readouterr().out
    assert "not found" not in told and all(
        f"\n{name}: " in told for name in ("torch", "threads", "GPU", "kernel cache")
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "polytopes:nothing"], "polytopes has no nothing"),
        (["report", "polytopes"], "give module:function"),
        (["report", "nowhere:f"], "there is no module nowhere, neither in this folder nor on Python's path"),
        (["report", "polytopes.nowhere:f"], "there is no module polytopes.nowhere"),
        (
            ["report", "polytopes:matching"],
            "polytopes:matching takes size, but the sizes given are: none; give --size N",
        ),
        (
            ["explain", "polytopes:sequence", "--size", "3"],
            "steps, states, but the sizes given are: 3; give --size N --size N",
        ),
        (
            ["explain", "polytopes:matching", "--size", "3,4"],
            "takes size, but the sizes given are: 3 4; give --size N\n",
        ),
        (["report", "polytopes:subset", "--size", "4"], "without a value: add --parameter budget=NUMBER"),
        (["check", "polytopes:matching", "--size", "3", "--parameter", "budget=2"], "no parameter budget; it has none"),
        (["report", "polytopes:subset", "--size", "4"], "budget"),
        (["report", "polytopes:subset", "--size", "4", "--parameter", "budget"], "name=value"),
        (["report", "polytopes:subset", "--size", "4", "--parameter", "budget=two"], "as JSON"),
        (["check", "polytopes:edge_scores", "--size", "1"], "edge_scores"),
    ],
)
def test_the_shell_says_what_is_wrong(arguments, message, capsys):
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and "argument: " not in said


@pytest.mark.parametrize(
    "sizes", [["--size", "3", "4"], ["--size", "3,4"], ["--size", "3", "--size", "4"], ["--size=3,4"]]
)
def test_several_sizes_are_given_to_the_shell_in_any_way(sizes, capsys):
    for arguments in (["explain", "polytopes:sequence", *sizes], ["explain", *sizes, "polytopes:sequence"]):
        assert main(arguments) == 0
        assert "(3, 4, 4)" in capsys.readouterr().out


def test_sizes_that_are_no_integers_are_wrong_arguments(capsys):
    with pytest.raises(SystemExit) as left:
        main(["report", "polytopes:sequence", "--size", "three"])
    assert left.value.code == 2
    assert (
        "a size is an integer, and several are given as --size 3 --size 4, but got 'three'" in capsys.readouterr().err
    )


THEIRS = """
import cvxpy as cp
import optlayers as ol

def half(n):
    return 1 / (n - n)

def broken(n):
    return half(n)

def refused(n):
    x = cp.Variable(n)
    return ol.Polytope(x, [cp.Variable(n) * x[0] <= 1])

def best(scores):
    raise KeyError("what the oracle looked for")

def oracle(n):
    x = cp.Variable(n, nonneg=True)
    return ol.Polytope(x, [cp.sum(x) == 1], oracle=best)
"""


@pytest.mark.parametrize(
    ("name", "first", "frames"),
    [
        ("mine:broken", "mine:broken raised ZeroDivisionError: division by zero", ["in broken", "in half"]),
        ("mine:oracle", "SolveError: 12 of 12 instances could not be solved", []),
        ("mine:refused", "DeclarationError: constraint 0", []),
        ("spelled:made", "spelled:made raised SyntaxError: ", ["spelled.py"]),
        ("needs:made", "needs:made raised ModuleNotFoundError: No module named 'nowhere'", ["in <module>"]),
    ],
)
def test_the_shell_shows_where_the_code_of_the_user_raised(name, first, frames, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(THEIRS)
    (tmp_path / "spelled.py").write_text("def made(n:\n    return n\n")
    (tmp_path / "needs.py").write_text("import nowhere\n")
    monkeypatch.chdir(tmp_path)
    size = ["--size", "3"]
    assert main(["check", name, *size]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(first)
    places = [line for line in said if line.startswith("  File")]
    assert len(places) == len(frames) and all(frame in place for frame, place in zip(frames, places, strict=True))
    assert all(str(tmp_path) in place for place in places)
    for module in ("mine", "needs", "spelled"):
        sys.modules.pop(module, None)

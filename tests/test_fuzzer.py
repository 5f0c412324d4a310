"""The fuzzer: its exact arithmetic, its declarations next to cvxpy's own word, and a judge that is hard to please."""

import itertools
import json
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import fuzz
import numpy as np
import pytest
import scipy.optimize
import torch
from fuzzing import session
from fuzzing.asking import Answer
from fuzzing.backward import judge_parameters, judge_projection_gradient
from fuzzing.cases import Case, draw_case
from fuzzing.crew import Done, work_on
from fuzzing.declarations import Line, Term
from fuzzing.exact import Empty, Polyhedron, Row, Unbounded, rank, solve
from fuzzing.formulas import FORMULAS
from fuzzing.grammar import Builder
from fuzzing.judge import judge, judge_ties
from fuzzing.layers import noise_of
from fuzzing.nearest import dot, nearest
from fuzzing.program import as_json, as_program
from fuzzing.report import Folder
from fuzzing.session import Question, findings, run_seed
from fuzzing.setting import Setting
from fuzzing.smaller import smallest
from fuzzing.truth import fractions_of
from rich.console import Console
from seeds_gone_wrong import work

import optlayers as ol
from optlayers.calls.layer_call import LayerCall

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def random_rows(seed):
    """Rows around a point that is inside, as arrays and as rows of fractions."""
    generator = np.random.default_rng(seed)
    n, most, equal = int(generator.integers(2, 7)), int(generator.integers(1, 5)), int(generator.integers(0, 2))
    inside = generator.integers(0, 17, n) / 16
    matrix = np.vstack([generator.standard_normal((most, n)), np.eye(n), -np.eye(n)])
    room = np.where(generator.random(most) < 0.3, 0.0, generator.random(most))
    bounds = np.concatenate([[np.nextafter(v, 9.0) for v in matrix[:most] @ inside + room], np.ones(n), np.zeros(n)])
    fixed = generator.integers(-2, 3, (equal, n)).astype(float)
    rows = [Row(fractions_of(a), Fraction(b)) for a, b in zip(matrix, bounds, strict=True)]
    rows += [Row(fractions_of(a), Fraction(float(a @ inside)), equality=True) for a in fixed]
    return matrix, bounds, fixed, fixed @ inside, rows


@pytest.mark.parametrize("seed", range(20))
def test_best_vertices_are_worth_what_scipy_says(seed):
    matrix, bounds, fixed, values, rows = random_rows(seed)
    polyhedron = Polyhedron(rows, matrix.shape[1])
    for scores in np.random.default_rng(seed).standard_normal((5, matrix.shape[1])):
        best = polyhedron.maximize(fractions_of(scores))
        equalities = {"A_eq": fixed, "b_eq": values} if len(fixed) else {}
        known = scipy.optimize.linprog(-scores, matrix, bounds, **equalities, bounds=(None, None))
        assert float(best.value) == pytest.approx(-known.fun, abs=1e-8)
        assert all(row.slack(best.point) >= 0 for row in rows)
        assert best.value == dot(fractions_of(scores), best.point)
        tight = [row.coefficients for row in rows if row.slack(best.point) == 0]
        assert rank(tight) == matrix.shape[1]


def all_vertices(rows, n):
    """By every choice of rows that could be tight."""
    equal = [row for row in rows if row.equality]
    others = [row for row in rows if not row.equality]
    found = set()
    for chosen in itertools.combinations(others, n - rank([row.coefficients for row in equal])):
        tight = [*equal, *chosen]
        if rank([row.coefficients for row in tight]) == n:
            basis = []
            for row in tight:
                if rank([r.coefficients for r in (*basis, row)]) > len(basis):
                    basis.append(row)
            point = tuple(solve([row.coefficients for row in basis], [row.bound for row in basis]))
            if all(abs(row.slack(point)) == 0 if row.equality else row.slack(point) >= 0 for row in rows):
                found.add(point)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_nearest_points_are_certified_by_all_vertices(seed):
    matrix, _, _, _, rows = random_rows(seed + 100)
    n = min(matrix.shape[1], 4)
    rows = [Row(row.coefficients[:n], row.bound + 1, row.equality) for row in rows if not row.equality]
    vertices = all_vertices(rows, n)
    polyhedron = Polyhedron(rows, n)
    assert polyhedron.vertices(10_000, bases=10_000) == vertices
    for target in 3 * np.random.default_rng(seed).standard_normal((5, n)):
        point = nearest(lambda scores: polyhedron.maximize(scores).point, fractions_of(target))
        ahead = tuple(t - x for t, x in zip(fractions_of(target), point, strict=True))
        assert all(row.slack(point) >= 0 for row in rows)
        assert max(dot(ahead, v) for v in vertices) == dot(ahead, point)


def test_vertices_of_cubes_and_cross_polytopes_are_counted():
    for n in (1, 2, 3, 4):
        unit = [tuple(Fraction(int(i == j)) for j in range(n)) for i in range(n)]
        cube = [Row(tuple(s * u for u in row), Fraction(1)) for row in unit for s in (1, -1)]
        assert len(Polyhedron(cube, n).vertices(100)) == 2**n
        signs = itertools.product((Fraction(1), Fraction(-1)), repeat=n)
        cross = [Row(tuple(sign), Fraction(1)) for sign in signs]
        assert len(Polyhedron(cross, n).vertices(100, bases=10_000)) == 2 * n


def test_nothing_and_no_limit_are_told():
    x = (Fraction(1),)
    with pytest.raises(Empty):
        Polyhedron([Row(x, Fraction(0)), Row((Fraction(-1),), -Fraction(1, 10**40))], 1)
    assert Polyhedron([Row(x, Fraction(0)), Row((Fraction(-1),), Fraction(0))], 1).maximize(x).value == 0
    with pytest.raises(Empty):
        Polyhedron([Row(x, Fraction(1), True), Row((Fraction(2),), Fraction(3), True)], 1)
    with pytest.raises(Unbounded):
        Polyhedron([Row((Fraction(-1),), Fraction(0))], 1).maximize(x)
    with pytest.raises(Unbounded):
        Polyhedron([Row((Fraction(1), Fraction(0)), Fraction(0))], 2).maximize((Fraction(0), Fraction(1)))


@pytest.mark.parametrize("seed", range(4))
def test_emptiness_is_what_scipy_says(seed):
    generator, empty = np.random.default_rng(seed), 0
    for _ in range(25):
        n, most = int(generator.integers(1, 5)), int(generator.integers(2, 9))
        matrix, bounds = generator.integers(-3, 4, (most, n)).astype(float), generator.standard_normal(most)
        # The least that all bounds must give way says on which side of the edge they are.
        wider = np.hstack([matrix, -np.ones((most, 1))])
        known = scipy.optimize.linprog([0] * n + [1], wider, bounds, bounds=[(None, None)] * n + [(-1, None)])
        if abs(known.fun) < 1e-6:
            continue
        rows = [Row(fractions_of(a), Fraction(b)) for a, b in zip(matrix, bounds, strict=True)]
        if known.fun > 0:
            empty += 1
            with pytest.raises(Empty):
                Polyhedron(rows, n)
        else:
            point = Polyhedron(rows, n).point()
            assert all(row.slack(point) >= 0 for row in rows)
    assert 3 < empty < 22


def agrees(declaration, polytope, theta, point):
    """Whether cvxpy and the rows say the same about a point; what they say."""
    for parameter in polytope.parameters:
        known = next((p for p in declaration.parameters if p.name == parameter.name()), None)
        parameter.value = theta[known.start : known.start + known.size].reshape(known.shape)
    holds = True
    by_name = {v.name: v for v in declaration.variables}
    for variable, known in zip(polytope.variables, declaration.variables, strict=True):
        value = point[known.start : known.start + known.size].reshape(known.shape)
        variable.save_value(value)
        for attribute, allowed in variable.attributes.items():
            if attribute == "nonneg" and allowed:
                holds &= bool((value >= -1e-9).all())
            elif attribute == "symmetric" and allowed:
                holds &= bool(np.abs(value - value.T).max() <= 1e-9)
            elif attribute == "diag" and allowed:
                holds &= bool(np.abs(value - np.diag(np.diag(value))).max() <= 1e-9)
            elif attribute == "bounds" and allowed is not None:
                low, high = (b.value if hasattr(b, "value") else b for b in allowed)
                holds &= bool((value >= low - 1e-9).all() and (value <= high + 1e-9).all())
    assert len(by_name) == len(declaration.variables)
    for constraint in polytope.constraints:
        scale = max(1e-30, *(np.abs(a.value).max() for a in constraint.args))
        holds &= bool(np.max(constraint.violation()) <= 1e-9 * scale)
    exact = [Fraction(float(v)) for v in point]
    by_rows = True
    for row in declaration.rows(theta):
        slack = float(row.slack(exact))
        size = max(float(abs(row.bound)), *(float(abs(a * z)) for a, z in zip(row.coefficients, exact, strict=True)))
        by_rows &= abs(slack) <= 1e-9 * size if row.equality else slack >= -1e-9 * size
    return holds, by_rows


@pytest.mark.parametrize("first", range(0, 60, 10))
def test_rows_are_what_cvxpy_makes_of_the_text(first):
    inside, outside = 0, 0
    for seed in range(first, first + 10):
        case = draw_case(seed)
        declaration, generator = case.declaration, np.random.default_rng(seed)
        polytope = declaration.build()
        if declaration.made_by is not None and "subset" not in declaration.made_by:
            assert not polytope.parameters
        points = [generator.integers(-16, 33, declaration.columns) / 16 for _ in range(3)]
        theta = np.where(np.isfinite(case.theta[0]), case.theta[0], np.sign(case.theta[0]) * 1e30)
        if not case.truth(0).empty:
            polyhedron = case.truth(0).polyhedron
            for _ in range(3):
                objective = np.zeros(declaration.columns)
                objective[: declaration.size] = generator.integers(-4, 5, declaration.size)
                best = polyhedron.maximize(fractions_of(objective)).point
                points += [np.array([float(v) for v in best]), np.array([float(v) for v in best]) + 0.25]
        for point in points:
            by_cvxpy, by_rows = agrees(declaration, polytope, theta, point)
            assert by_cvxpy == by_rows, f"seed {seed}, {point}"
            inside, outside = inside + by_rows, outside + (not by_rows)
    assert inside > 20 and outside > 20


def test_a_seed_is_always_the_same_case():
    first, second = draw_case(31), draw_case(31)
    assert first.declaration.source() == second.declaration.source()
    np.testing.assert_array_equal(first.scores, second.scores)
    code = "from fuzzing.cases import draw_case; c = draw_case(31); print(c.scores.tobytes().hex()); print(c.dtype)"
    told = subprocess.run([sys.executable, "-c", code], cwd=BENCHMARKS, capture_output=True, text=True, check=True)
    assert told.stdout.split() == [first.scores.tobytes().hex(), first.dtype]


def one_case(shape, text, scores, theta=(), dtype="float64", masked=None, attributes="", gradients=None):
    """An instance of ``text``, a list of (expression, sense, right-hand side), over x >= 0."""
    builder = Builder(np.random.default_rng(0))
    size = math.prod(shape)
    builder.variable("x", shape, "nonneg=True", [Line({j: Term(-1.0)}, Term(0.0)) for j in range(size)])
    if attributes:
        width = int(attributes)
        lines = [Line({size + j: Term(-1.0)}, Term(0.0)) for j in range(width)]
        builder.variable("w", (width,), "nonneg=True", lines)
    for place, value in enumerate(theta):
        builder.parameter(f"p{place}", np.array([value]))
    for expression, sense, right in text:
        affine = builder.affine(expression)
        terms = [Term(0.0, ((int(right[1:]), 1.0),))] if isinstance(right, str) else [Term(float(right))]
        builder.compare(affine, sense, terms * len(affine), str(right))
    flat = np.asarray(scores, dtype=np.float64).reshape(1, -1)
    flat = torch.from_numpy(flat).to(getattr(torch, dtype)).double().numpy()
    mask = np.zeros(flat.shape, bool) if masked is None else np.asarray(masked, bool).reshape(1, -1)
    back = np.ones(flat.shape) if gradients is None else np.asarray(gradients, float).reshape(1, -1)
    values = np.asarray(theta, dtype=np.float64).reshape(1, -1)
    return Case(builder.finish(), flat, values, dtype, "float64", mask, ("ordinary",), back, 0, (0,))


def verdict_on(case, question, value, status="OPTIMAL", **more):
    flat = None if value is None else np.asarray(value, dtype=np.float64).reshape(-1)
    return judge(case, Answer(question, "default", 0, status, flat, **more))


SIMPLEX = [("cp.sum(x)", "==", 1.0)]
TWO_OF_FOUR = [("x", "<=", 1.0), ("cp.sum(x)", "==", 2.0)]
TWO_OF_THREE = [("x", "<=", 1.0), ("cp.sum(x)", "==", 2.0)]
EMPTY = "DeclarationError: the polytope is empty: …"
ROWS_AND_COLUMNS = [("cp.sum(x, axis=0)", "==", 1.0), ("cp.sum(x, axis=1)", "==", 1.0)]
ZONOTOPE = [("w", "<=", 1.0), ("x - np.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]]) @ w", "==", 0.0)]


def test_right_answers_are_right():
    case = one_case((3,), SIMPLEX, [0.5, 2.0, 1.0])
    assert verdict_on(case, "maximize", [0, 1, 0]).kind == "right"
    assert verdict_on(case, "project", [0, 1, 0]).kind == "right"
    assert verdict_on(one_case((3,), SIMPLEX, [0.5, 1.0, 0.0]), "project", [0.25, 0.75, 0]).kind == "right"
    tied = one_case((4,), TWO_OF_FOUR, [1.0, 0.0, 0.0, 0.0])
    for other in (1, 2, 3):
        assert verdict_on(tied, "maximize", np.eye(4)[0] + np.eye(4)[other]).kind == "right"
    assert verdict_on(tied, "project", [1.0, 1 / 3, 1 / 3, 1 / 3]).kind == "right"
    assert verdict_on(one_case((2,), ZONOTOPE, [1.0, 0.0], attributes="3"), "maximize", [2, 1]).kind == "right"
    third = torch.tensor(1 / 3, dtype=torch.bfloat16).item()
    low = one_case((4,), TWO_OF_FOUR, [1.0, 0.0, 0.0, 0.0], dtype="bfloat16")
    assert verdict_on(low, "project", [1.0, third, third, third]).kind == "right"


def test_an_answer_that_is_moved_is_wrong():
    case = one_case((3,), SIMPLEX, [0.5, 1.0, 0.0])
    moved = np.array([0.25, 0.75, 0]) + 1e-4 * np.array([1, -1, 0])
    assert verdict_on(case, "project", moved).kind == "wrong"
    assert verdict_on(case, "maximize", np.array([0, 1, 0]) + 1e-4 * np.array([1, -1, 0])).kind == "wrong"
    assert verdict_on(case, "maximize", np.array([0, 1 + 1e-4, 0])).kind == "wrong"
    assert verdict_on(case, "project", [0.25, 0.75, 1e-4]).kind == "wrong"
    assert verdict_on(case, "project", [np.nan, 0.75, 0]).kind == "wrong"


def test_a_neighbour_and_a_point_between_are_wrong():
    case = one_case((4,), TWO_OF_FOUR, [1.0, 0.5, 0.4999, 0.0])
    assert verdict_on(case, "maximize", [1, 1, 0, 0]).kind == "right"
    assert verdict_on(case, "maximize", [1, 0, 1, 0]).kind == "wrong"
    forced = one_case((4,), TWO_OF_FOUR, [1e7, 0.5, 0.4999, 0.0])  # one large score excuses nothing about the others
    assert verdict_on(forced, "maximize", [1, 1, 0, 0]).kind == "right"
    assert verdict_on(forced, "maximize", [1, 0, 1, 0]).kind == "wrong"
    tied = one_case((4,), TWO_OF_FOUR, [1.0, 0.5, 0.5, 0.0])
    assert verdict_on(tied, "maximize", [1, 0, 1, 0]).kind == "right"
    between = verdict_on(tied, "maximize", [1, 0.5, 0.5, 0])
    assert (between.kind, between.reason) == ("wrong", "no vertex")
    shadow = one_case((2,), ZONOTOPE, [1.0, 0.0], attributes="3")  # of (2, 1) and (2, 2), which are both best
    assert verdict_on(shadow, "maximize", [2, 2]).kind == "right"
    assert verdict_on(shadow, "maximize", [2, 1.5]).reason == "no vertex"
    inner = one_case((2,), ZONOTOPE, [0.0, 0.0], attributes="3")  # (1, 1) is a vertex above, but none of the shadow
    assert verdict_on(inner, "maximize", [1, 1]).reason == "no vertex"


@pytest.mark.parametrize("scale", [1e-12, 1e-11, 1e-3, 1.0, 1e12])
def test_a_row_counts_whatever_its_size(scale):
    case = one_case((3,), [("x", "<=", 1.0), (f"{scale!r} * cp.sum(x)", "<=", scale)], [1.0, 0.9, 0.8])
    assert verdict_on(case, "maximize", [1, 0, 0]).kind == "right"
    assert verdict_on(case, "maximize", [1, 1, 1]).kind == "wrong"
    assert verdict_on(case, "project", [1, 1, 1]).kind == "wrong"


def test_a_wide_limit_hides_no_other_row():
    rows = [("x", "<=", 1.0), ("cp.sum(x)", "<=", "p0"), ("x[0] + 2 * x[1]", "<=", 1.0)]
    for limit in (12.0, 1e7, 1e15, 1e18, np.inf):
        case = one_case((2,), rows, [3.0, 3.0], theta=[limit])
        assert verdict_on(case, "project", [1, 0]).kind == "right"
        assert verdict_on(case, "project", [1, 1]).kind == "wrong"


def test_what_is_infeasible_is_known():
    rows = [("x", "<=", 1.0), ("cp.sum(x)", "==", "p0")]
    inside, outside = (one_case((2,), rows, [1.0, 0.0], theta=[p]) for p in (2.0, 2.5))
    assert verdict_on(inside, "maximize", None, "INFEASIBLE").kind == "wrong"
    assert verdict_on(outside, "maximize", None, "INFEASIBLE").kind == "right"
    assert verdict_on(outside, "project", [1, 1]).kind == "wrong"
    assert verdict_on(outside, "project", [1, 1], "INACCURATE").kind == "open"
    assert verdict_on(inside, "project", [1, 1], "UNBOUNDED").kind == "wrong"
    forbidden = one_case((2,), SIMPLEX, [-np.inf, -np.inf])
    assert verdict_on(forbidden, "maximize", None, "INFEASIBLE").kind == "right"
    assert verdict_on(one_case((2,), SIMPLEX, [-np.inf, -3.0]), "maximize", None, "INFEASIBLE").kind == "wrong"


def test_sums_that_differ_by_rounding_are_no_contradiction():
    rows = [("cp.sum(x[:2])", "==", "p0"), ("x[0]", "==", "p1"), ("x[1]", "==", "p2")]
    case = one_case((2,), rows, [0.0, 0.0], theta=[0.3, 0.1, 0.2])  # 0.1 + 0.2 is not 0.3
    assert case.truth(0).empty and not case.truth(0).loosened(1e-16).empty
    assert verdict_on(case, "project", [0.1, 0.2]).kind == "right"
    assert verdict_on(case, "project", None, "INFEASIBLE").kind == "wrong"
    bounds = one_case((1,), [("x", "<=", "p0"), ("x", ">=", "p1")], [0.0], theta=[0.3, 0.1 + 0.2])
    assert verdict_on(bounds, "project", [0.3]).kind == "right"
    assert verdict_on(bounds, "project", None, "INFEASIBLE").kind == "right"
    for value, kind in ((0.302, "right"), (0.5, "wrong")):
        rough = replace(one_case((2,), rows, [0.0, 0.0], theta=[value, 0.1, 0.2]), parameter_dtype="bfloat16")
        assert verdict_on(rough, "project", [0.1, 0.2]).kind == kind
    assert verdict_on(rough, "project", None, "INFEASIBLE").kind == "right"
    constant = one_case((2,), [*rows[1:], ("cp.sum(x)", "==", 0.3)], [0.0, 0.0], theta=[0.0, 0.1, 0.2004])
    assert verdict_on(replace(constant, parameter_dtype="bfloat16"), "project", [0.1, 0.2004]).kind == "wrong"


@pytest.mark.parametrize("mask", [-1e9, -1e15, -1e32, torch.finfo(torch.float32).min, torch.finfo(torch.float64).min])
def test_a_mask_excuses_nothing_about_other_parts(mask):
    scores = [[1.0, 0, -1], [-1, 0, 1], [mask, mask, 1]]
    masked = [[False] * 3, [False] * 3, [True, True, False]]
    case = one_case((3, 3), ROWS_AND_COLUMNS, scores, masked=masked)
    blocks = [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]]
    for question in ("maximize", "project"):
        assert verdict_on(case, question, np.eye(3)).kind == "right"
        assert verdict_on(case, question, blocks).kind == "wrong"
        assert verdict_on(case, question, np.eye(3)[[1, 0, 2]]).kind == "wrong"
    everything = one_case((2,), SIMPLEX, [mask, mask], masked=[True, True])
    assert verdict_on(everything, "maximize", None, "INFEASIBLE").kind == "right"  # as for minus infinity
    assert verdict_on(everything, "maximize", [0, 1]).kind == "right"
    assert verdict_on(everything, "maximize", [0.5, 0.5]).kind == "wrong"


def test_a_tied_vertex_may_be_rounded_in_every_part():
    """Of two vertices that are 1/64 apart, some parts look in bfloat16 as if they were the same, others not."""
    moves = [
        ("x[2] - x[1]", "==", 0.9125),
        ("x[0] + 2 * x[1]", "==", 0.6625),
        ("x[1]", ">=", 0.08),
        ("x[1]", "<=", 0.0875),
    ]
    ends = [torch.tensor(end, dtype=torch.bfloat16).double() for end in ([0.5025, 0.08, 0.9925], [0.4875, 0.0875, 1.0])]
    tied = replace(one_case((3,), moves, [2.0, 2.0, 2.0]), dtype="bfloat16")
    assert [verdict_on(tied, "maximize", end).kind for end in ends] == ["right", "right"]
    first = replace(one_case((3,), moves, [4.0, 2.0, 2.0]), dtype="bfloat16")
    assert [verdict_on(first, "maximize", end).kind for end in ends] == ["right", "wrong"]


def test_a_part_that_is_the_rounding_of_an_auxiliary_variable_has_no_size_of_its_own():
    constant = 1.0 + 2.0**-52
    rows = [("x + w", "==", constant), ("w", ">=", 1.0), ("w", "<=", 2.0)]
    beside = one_case((1,), rows, [1.0], attributes="1")
    assert 0.0 < beside.truth(0).best(fractions_of([1.0])).value < 1e-15
    for answer, kind in ((0.0, "right"), (2.0**-52, "right"), (1e-9, "wrong")):
        assert verdict_on(beside, "maximize", [answer]).kind == kind


def test_errors_are_judged_by_whose_words_they_are():
    case = one_case((2,), SIMPLEX, [1.0, 0.0])
    raw = verdict_on(case, "maximize", None, "error", message="IndexError: 3", told=False)
    assert (raw.kind, raw.reason) == ("wrong", "a raw error: IndexError: 3")
    assert verdict_on(case, "maximize", None, "error", message=EMPTY).kind == "wrong"
    loose = "DeclarationError: the declaration is unbounded: …"
    assert verdict_on(case, "maximize", None, "error", message=loose).kind == "wrong"
    assert verdict_on(one_case((2,), [], [1.0, 0.0]), "maximize", None, "error", message=loose).kind == "right"
    empty = one_case((2,), [*SIMPLEX, ("cp.sum(x)", "<=", 0.5)], [1.0, 0.0])
    told = verdict_on(empty, "maximize", None, "error", message=EMPTY)
    assert told.kind == "right"


def test_ties_are_decided_one_way():
    case = one_case((4,), TWO_OF_FOUR, [1.0, 0.5, 0.5, 0.0])
    first, second = (
        Answer("maximize", s, 0, "OPTIMAL", np.array(v, float)) for s, v in (("a", [1, 1, 0, 0]), ("b", [1, 0, 1, 0]))
    )
    assert judge_ties(case, first, first).kind == "right"
    assert judge_ties(case, first, second).kind == "wrong"
    rounding = one_case((4,), TWO_OF_FOUR, [1.0, 0.1 + 0.2, 0.3, 0.0])
    assert judge_ties(rounding, first, second).kind == "right"


SPARSEMAP = next(f for f in FORMULAS if f.rule == "ol.SparseMAP()")
ENVELOPE = next(f for f in FORMULAS if f.rule == "ol.LPGD(1.5)")


def test_gradients_of_nearest_points():
    case = one_case((3,), SIMPLEX, [0.5, 1.0, -1.0], gradients=[1.0, 2.0, 4.0])
    setting = Setting(case, noise_of(case))
    right = np.array([-0.5, 0.5, 0.0])
    assert judge_projection_gradient(setting, 0, right).kind == "right"
    for wrong in (-right, right + 1e-3, np.array([1.0, 2.0, 4.0]), np.zeros(3)):
        assert judge_projection_gradient(setting, 0, wrong).kind == "wrong"
    kink = one_case((2,), [("x", "<=", 1.0)], [1.0, 0.5], gradients=[1.0, 1.0])  # 0 to the right, 1 to the left
    setting = Setting(kink, noise_of(kink))
    for allowed in ([0.0, 1.0], [1.0, 1.0], [0.5, 1.0]):
        assert judge_projection_gradient(setting, 0, np.array(allowed)).kind == "right"
    for wrong in ([-1.0, 1.0], [1.5, 1.0], [1.0, 0.0]):
        assert judge_projection_gradient(setting, 0, np.array(wrong)).kind == "wrong"


@pytest.mark.slow
def test_gradients_of_parameters():
    rows = [("x", "<=", 1.0), ("cp.sum(x)", "<=", "p0")]
    for value, right in ((0.0, 1.0), (0.25, 1.0), (3.0, 0.0), (np.inf, 0.0)):  # 0 is the edge of the domain
        case = one_case((3,), rows, [0.9, 0.5, 0.3], theta=[value], gradients=[1.0, 0, 0])
        setting = Setting(case, noise_of(case))
        assert judge_parameters(setting, SPARSEMAP, 0, np.array([right])).kind == "right"
        for wrong in (1.0 - right, -1.0, 0.99, np.nan):
            assert judge_parameters(setting, SPARSEMAP, 0, np.array([wrong])).kind == "wrong"
    case = one_case((3,), rows, [0.9, 0.5, 0.3], theta=[0.5], gradients=[1.0, 0, 0])
    setting = Setting(case, noise_of(case))  # the value is 0.9 p, and 0.5 p with 1.5 g taken away
    assert judge_parameters(setting, ENVELOPE, 0, np.array([0.4 / 1.5])).kind == "right"
    assert judge_parameters(setting, ENVELOPE, 0, np.array([-0.4 / 1.5])).kind == "wrong"


def lie(monkeypatch, question, change):
    """Let the library answer something else."""
    plain = getattr(ol.CompiledPolytope, question)

    def lying(self, scores, **parameters):
        solution = plain(self, scores, **parameters)
        return replace(solution, value=change(solution.value), status=torch.zeros_like(solution.status))

    monkeypatch.setattr(ol.CompiledPolytope, question, lying)


LIES = {
    "moved": (
        "project",
        lambda value: value + 1e-3 * torch.linspace(-1, 1, value.numel()).reshape(value.shape).to(value),
    ),
    "halved": ("maximize", lambda value: value / 2),
    "of another instance": ("maximize", lambda value: value.roll(1, 0)),
    "negative": ("project", lambda value: -value),
}


@pytest.mark.parametrize("name", LIES)
def test_a_library_that_lies_is_found_out(monkeypatch, name):
    question, change = LIES[name]
    case = one_case((3,), SIMPLEX, [0.5, 1.0, -1.0])
    case = replace(
        case,
        scores=np.array([[0.5, 1.0, -1.0], [3.0, 1.0, 0.0], [0.0, 0.1, 0.2]]),
        theta=np.zeros((3, 0)),
        masked=None,
        gradients=np.ones((3, 3)),
        kinds=("ordinary",) * 3,
        numbers=(0, 1, 2),
    )
    assert {f.verdict.kind for f in findings(case, Question(question))} == {"right"}
    lie(monkeypatch, question, change)
    found = [f for f in findings(case, Question(question)) if f.verdict.kind == "wrong"]
    assert found
    small, finding = smallest(case, found[0])
    assert finding.verdict.kind == "wrong" and len(small) <= len(case)


def test_a_gradient_of_the_wrong_sign_is_found(monkeypatch):
    case = one_case((3,), SIMPLEX, [0.5, 1.0, -1.0], gradients=[1.0, 2.0, 4.0])
    for rule in ("ol.SparseMAP()", "ol.Spigot(0.5)", "ol.Interpolation(1.5)", "ol.StructuredAttention()"):
        question = Question("rule", rule)
        assert {f.verdict.kind for f in findings(case, question)} == {"right"}
    plain = LayerCall.pull_back
    monkeypatch.setattr(LayerCall, "pull_back", lambda *a: tuple(None if g is None else -g for g in plain(*a)))
    for rule in ("ol.SparseMAP()", "ol.Spigot(0.5)", "ol.Interpolation(1.5)", "ol.StructuredAttention()"):
        assert "wrong" in {f.verdict.kind for f in findings(case, Question("rule", rule))}


def test_every_rule_is_asked_and_judged():
    case = one_case((3,), SIMPLEX, [0.5, 1.0, -1.0], gradients=[1.0, 0.5, -0.25])
    for formula in FORMULAS:
        judged = list(findings(case, Question("rule", formula.rule)))
        assert {f.part for f in judged} >= {"forward", "gradient"}, formula.rule
        assert {f.verdict.kind for f in judged} == {"right"}, (formula.rule, [f.verdict for f in judged])


def test_seeds_are_run_and_counted():
    outcome = run_seed(12)
    assert outcome.instances == 16 and sum(outcome.tallies.values()) > 100
    questions = {question for question, _, _ in outcome.tallies}
    assert {"best vertices", "nearest points", "rules", "ties, alone and in a batch"} <= questions


def test_a_process_that_dies_or_hangs_costs_one_seed():
    known = {("old",): 2, ("new",): 1}
    done = {d.seed: d for d in work_on(iter(range(5)), work, 2, 3.0, known, enough=2)}
    assert sorted(done) == list(range(5))
    assert done[1].crash == "the process ended with code 3"
    assert done[2].crash == "no end after 3 s"
    assert [d.instances for d in done.values() if not d.crash] == [16] * 3
    assert done[0].wrong == ["known: [('old',)]"]


@pytest.mark.slow
def test_a_run_goes_on_where_it_was(tmp_path):
    def run(count):
        command = [sys.executable, "fuzz.py", "--count", str(count), "--processes", "1", "--programs", "0"]
        command += ["--first", "12", "--output", str(tmp_path)]
        return subprocess.run(command, cwd=BENCHMARKS, capture_output=True, text=True, check=False)

    first = run(16)
    lines = (tmp_path / "seeds.jsonl").read_text().splitlines()
    assert len(lines) == 1 and first.returncode in (0, 1), first.stderr
    with (tmp_path / "seeds.jsonl").open("a") as stream:
        stream.write('{"seed": 13, "cut o')  # by a machine that was switched off
    assert "2 seeds, 32 instances" in run(32).stdout
    longer = (tmp_path / "seeds.jsonl").read_text().splitlines()
    assert longer[0] == lines[0]
    assert [done.seed for done in Folder(tmp_path).load()] == [json.loads(line)["seed"] for line in longer] == [12, 13]


RULES_OF_ALL_SORTS = [
    Question("rule", "ol.SparseMAP()"),
    Question("rule", "ol.IMLE(samples=3, strength=2.0, scale=0.5, noise=noise)"),
    Question("rule", "ol.ScoreFunction(samples=3)"),
    Question("loss", "ol.StructuredHingeLoss"),
    Question("loss", "ol.SPOPlusLoss"),
]


def test_what_is_wrong_becomes_a_program(monkeypatch, capsys):
    case = one_case((3,), TWO_OF_THREE, [0.5, 1.0, -1.0], gradients=[1.0, 2.0, 4.0])
    lie(monkeypatch, "project", lambda value: value / 2)
    (finding,) = findings(case, Question("project"))
    program = as_program(case, finding)
    told = json.loads(as_json(case, finding))
    assert told["scores"] == [[0.5, 1.0, -1.0]] and told["reason"] == finding.verdict.reason
    assert f"Right: {list(finding.verdict.right)}" in program
    for question in (
        Question("project"),
        Question("maximize", "Highs Dense"),
        Question("ties", "Highs Dense"),
        *RULES_OF_ALL_SORTS,
    ):
        exec(as_program(case, replace(finding, question=question)), {})
        assert "tensor" in capsys.readouterr().out


def test_a_run_is_well_when_nothing_is_wrong_and_hardly_anything_is_open():
    def run(**counts):
        tallies = [("best vertices", "ordinary", verdict, count) for verdict, count in counts.items()]
        done = Done(0, 16, tallies=tallies)
        return fuzz.summarize(Console(quiet=True), [done, Done(1, 16)])

    assert run(right=100_000, open=10)
    assert not run(right=100_000, open=11)
    assert not run(right=100_000, wrong=1)
    assert not fuzz.summarize(Console(quiet=True), [Done(0, crash="the process ended with code -11")])
    elsewhere = [("best vertices", "masks", "open", 50), ("nearest points, solver by name", "ordinary", "open", 50)]
    assert fuzz.summarize(Console(quiet=True), [Done(0, 16, tallies=elsewhere)])


def test_a_question_without_an_end_is_given_up(monkeypatch):
    def endless(case, question):
        try:
            while True:
                sum(range(1000))
        except Exception:  # as a library may do
            yield None

    monkeypatch.setattr(session, "findings", endless)
    monkeypatch.setattr(session, "PATIENCE", 0.05)
    case = one_case((3,), SIMPLEX, [0.5, 1.0, -1.0])
    found = list(session.verdicts(case))
    assert len(found) == len(session.plan(case))
    assert {(f.verdict.kind, f.verdict.reason) for f in found} == {("wrong", "no end: more than 0.05 s")}


def test_gradients_at_an_edge_may_come_from_inside():
    rows = [("cp.cumsum(x)[0]", "<=", "p0"), ("cp.cumsum(x)[1]", "<=", "p1")]
    case = one_case((2,), rows, [0.0, 1.0], theta=[0.0, 0.0], gradients=[1.5, 2.0])
    setting = Setting(case, noise_of(case))
    # The moved scores are (-2.25, -2): nothing is taken. At (0, 1) the second capacity is worth 1, the first nothing.
    assert judge_parameters(setting, ENVELOPE, 0, np.array([0.0, 1 / 1.5])).kind == "right"
    for wrong in ([1 / 1.5, 0.0], [0.1, 1 / 1.5], [0.0, 2.0]):
        assert judge_parameters(setting, ENVELOPE, 0, np.array(wrong)).kind == "wrong"
    twice = one_case((1,), [("x[0]", "<=", "p0"), ("x[0]", "<=", "p1")], [1.0], theta=[0.0, 0.0], gradients=[2.0])
    setting = Setting(twice, noise_of(twice))
    for allowed in ([0.0, 1 / 1.5], [1 / 1.5, 0.0], [0.3 / 1.5, 0.7 / 1.5]):
        assert judge_parameters(setting, ENVELOPE, 0, np.array(allowed)).kind == "right"
    for wrong in ([-1.0, 1.0], [2.0, 2.0]):
        assert judge_parameters(setting, ENVELOPE, 0, np.array(wrong)).kind == "wrong"


def test_domains_narrower_than_rounding_tell_nothing_about_parameters():
    for width, known in ((2.0**-53, False), (1e-9, True)):
        rows = [("x", "<=", 1.0), ("-1.0 * x", "<=", width - 1.0), ("x", "==", "p0")]
        setting = Setting(case := one_case((1,), rows, [0.3], theta=[1.0]), noise_of(case))
        assert judge_parameters(setting, SPARSEMAP, 0, np.array([1.0])).kind == "right"
        assert judge_parameters(setting, SPARSEMAP, 0, np.array([0.0])).kind == ("wrong" if known else "right")


def test_corners_too_small_to_be_seen_tell_nothing_about_sums():
    for width, known in ((1e-9, False), (1e-3, True)):
        case = one_case((2,), [("x", "<=", 1.0), ("cp.sum(x)", "<=", 2.0 - width)], [1.0, 0.5])
        setting = Setting(case, noise_of(case))
        assert (setting.vertices(0) is not None) == known
        assert bool(np.isfinite(setting.means(setting.scores)).all()) == known


def test_a_solver_that_decides_ties_in_another_way_is_found(monkeypatch):
    case = one_case((4,), TWO_OF_FOUR, [1.0, 0.5, 0.5, 0.0])
    question = Question("ties", "Highs Clarabel")
    assert [f.verdict.kind for f in findings(case, question)] == ["right"]
    plain = ol.CompiledPolytope.maximize

    def other_way(self, scores, **parameters):
        solution = plain(self, scores, **parameters)
        mirrored = solution.value[..., [0, 2, 1, 3]] if isinstance(self.maximizer, ol.Highs) else solution.value
        return replace(solution, value=mirrored)

    monkeypatch.setattr(ol.CompiledPolytope, "maximize", other_way)
    assert [f.verdict.kind for f in findings(case, Question("maximize", "Highs Clarabel"))] == ["right"]
    assert [f.verdict.kind for f in findings(case, question)] == ["wrong"]

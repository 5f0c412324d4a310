"""The fuzzer of regularized points: what it knows next to known formulas, and a judge that is hard to please."""

import math
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from fuzzing.asking import Answer
from fuzzing.cases import draw_case
from fuzzing.exact import Empty, Row
from fuzzing.program import as_program
from fuzzing.regularized import _gradient, answers_of, draw_regularizer, judge_regularized
from fuzzing.session import Finding, Question, findings, plan
from fuzzing.smooth import Curve, best_point
from fuzzing.truth import fractions_of
from test_fuzzer import SIMPLEX, TWO_OF_FOUR, one_case

import optlayers as ol


def simplex(n, cube=False):
    """Of exact rows, or the cube."""
    unit = np.eye(n, dtype=int)
    rows = [Row(tuple(Fraction(-int(u)) for u in row), Fraction(0)) for row in unit]
    if cube:
        return rows + [Row(tuple(Fraction(int(u)) for u in row), Fraction(1)) for row in unit]
    return [*rows, Row((Fraction(1),) * n, Fraction(1), equality=True)]


SCORES = [Fraction(1), Fraction(0), Fraction(-3), Fraction(7, 4)]


def floats(numbers):
    return [float(x) for x in numbers]


def test_entropies_are_softmax_and_the_logistic_function():
    found = best_point(simplex(4), 4, SCORES, [Curve("entropy", Decimal("0.5"))] * 4)
    weights = [math.exp(2 * s) for s in SCORES]
    assert floats(found.point) == pytest.approx([w / sum(weights) for w in weights], abs=1e-15)
    found = best_point(simplex(4, cube=True), 4, SCORES, [Curve("bits")] * 4)
    assert floats(found.point) == pytest.approx([1 / (1 + math.exp(-s)) for s in SCORES], abs=1e-15)


def test_squares_and_powers_are_sparsemax_and_entmax():
    square = best_point(simplex(4), 4, SCORES, [Curve("square")] * 4)
    assert floats(square.point) == pytest.approx([1 / 8, 0, 0, 7 / 8], abs=1e-14)
    power = best_point(simplex(4), 4, SCORES, [Curve("power", Decimal(1), Decimal("1.5"))] * 4)
    low, high = 0.0, 2.0  # z = max(s / 2 - t, 0)² for the t with sum 1
    for _ in range(100):
        middle = (low + high) / 2
        total = sum(max(float(s) / 2 - middle, 0) ** 2 for s in SCORES)
        low, high = (middle, high) if total > 1 else (low, middle)
    assert floats(power.point) == pytest.approx([max(float(s) / 2 - low, 0) ** 2 for s in SCORES], abs=1e-12)


def test_a_barrier_is_where_its_slopes_meet():
    found = best_point(simplex(2), 2, [Fraction(1), Fraction(0)], [Curve("none")] * 2, Fraction(1, 2))
    x = float(found.point[0])
    assert 1 + 0.5 / x == pytest.approx(0.5 / (1 - x), rel=1e-12)


def test_rows_without_room_are_equalities_and_nothing_is_empty():
    tight = [*simplex(3), Row((Fraction(1), Fraction(1), Fraction(0)), Fraction(0))]
    assert floats(best_point(tight, 3, SCORES[:3], [Curve("entropy")] * 3).point) == [0, 0, 1]
    with pytest.raises(Empty):
        best_point([*simplex(3), Row((Fraction(1),) * 3, Fraction(1, 2))], 3, SCORES[:3], [Curve("square")] * 3)


def test_derivatives_are_differences():
    direction = fractions_of([1.0, -0.5, 2.0, 0.25])
    for curve in (Curve("entropy"), Curve("power", Decimal(1), Decimal("1.5")), Curve("square", Decimal(2))):
        first = best_point(simplex(4), 4, SCORES, [curve] * 4)
        right = first.pulled_back(direction, Decimal("1e-6"))
        step = Fraction(1, 10**8)
        there, back = (
            best_point(
                simplex(4), 4, [s + sign * step * d for s, d in zip(SCORES, direction, strict=True)], [curve] * 4
            )
            for sign in (1, -1)
        )
        known = [float((a - b) / (2 * Decimal(10) ** -8)) for a, b in zip(there.point, back.point, strict=True)]
        assert floats(right) == pytest.approx(known, abs=1e-8)
    kink = best_point(simplex(2), 2, [Fraction(1), Fraction(0)], [Curve("square")] * 2)
    assert kink.pulled_back(direction[:2], Decimal("1e-6")) is None


def verdict_on(case, text, value, status="OPTIMAL", **more):
    flat = None if value is None else np.asarray(value, dtype=np.float64)
    return judge_regularized(case, Answer("regularized", text, 0, status, flat, **more))[0].kind


def test_right_points_are_right_and_moved_ones_are_wrong():
    case, text = one_case((3,), SIMPLEX, [0.5, 1.0, 0.0]), "ol.Entropy(0.5)"
    right = np.exp([1.0, 2.0, 0.0]) / np.exp([1.0, 2.0, 0.0]).sum()
    assert verdict_on(case, text, right) == "right"
    assert verdict_on(case, text, right + 1e-4 * np.array([1, -1, 0])) == "wrong"
    assert verdict_on(case, text, right + 1e-4) == "wrong"
    assert verdict_on(case, text, [0, np.nan, 1]) == "wrong"
    assert verdict_on(case, text, right, status="INFEASIBLE") == "wrong"
    assert verdict_on(case, text, right, status="INACCURATE") == "open"
    assert verdict_on(case, "ol.Entropy(0.6)", right) == "wrong"
    assert verdict_on(case, "ol.Euclidean(0.5)", [0.0, 1.0, 0.0]) == "right"
    assert verdict_on(case, "ol.Euclidean([0.5, 1.0, 1.0])", [1 / 3, 2 / 3, 0]) == "right"
    assert verdict_on(case, text, None, "error", message="TypeError: x", told=False) == "wrong"
    empty = one_case((3,), [*SIMPLEX, ("x", "<=", 0.25)], [0.5, 1.0, 0.0])
    assert verdict_on(empty, text, None, status="INFEASIBLE") == "right"
    assert verdict_on(empty, text, right) == "wrong"


def test_a_mask_may_count_as_minus_infinity():
    case = one_case((3,), SIMPLEX, [0.0, 0.0, -1e9], masked=[False, False, True])
    assert verdict_on(case, "ol.Entropy(1.0)", [0.5, 0.5, 0.0]) == "right"
    forced = one_case((3,), [*SIMPLEX, ("x", "<=", 0.5)], [0.0, -1e9, -1e9], masked=[False, True, True])
    assert verdict_on(forced, "ol.Entropy(1.0)", [0.5, 0.25, 0.25]) == "right"
    assert verdict_on(forced, "ol.Entropy(1.0)", None, status="INFEASIBLE") == "right"


def test_wrong_gradients_are_seen():
    case = one_case((4,), TWO_OF_FOUR, [1.0, 0.3, -0.2, 0.0], gradients=[1.0, -1.0, 0.5, 2.0])
    text = "ol.Entropy(0.7)"
    (answer,) = answers_of(case, text)
    _, best = judge_regularized(case, answer)
    right = np.array(floats(best.pulled_back(fractions_of(case.gradients[0]), Decimal("1e-6"))))
    assert np.abs(right).max() > 0.1
    assert _gradient(case, 0, text, best, right).kind == "right"
    assert _gradient(case, 0, text, best, right + 1e-3).kind == "wrong"
    assert _gradient(case, 0, text, best, 0 * right).kind == "wrong"
    assert {f.verdict.kind for f in findings(case, Question("regularized", text))} == {"right"}


def test_a_wrong_library_is_found_and_told(monkeypatch):
    case = one_case((3,), SIMPLEX, [0.5, 1.0, 0.0])
    question, before = Question("regularized", "ol.Entropy(0.5)"), ol.CompiledPolytope.regularized

    def off(self, scores, regularizer, **parameters):
        return replace(before(self, scores * 1.001, regularizer, **parameters))

    assert [f.verdict.kind for f in findings(case, question)] == ["right", "right"]
    monkeypatch.setattr(ol.CompiledPolytope, "regularized", off)
    (wrong,) = findings(case, question)
    assert wrong.verdict.kind == "wrong" and "from the best point" in wrong.verdict.reason
    monkeypatch.undo()
    scope = {}
    exec(as_program(case, Finding(question, "forward", 0, wrong.verdict)), scope)
    assert scope["solution"].status.tolist() == [0] and scope["scores"].grad is not None


def test_a_share_of_cases_is_asked():
    cases = [draw_case(seed) for seed in range(12)]
    of = {
        share: [any(q.what == "regularized" for q in plan(case, share)) for case in cases] for share in (0.0, 0.5, 1.0)
    }
    assert not any(of[0.0]) and 0 < sum(of[0.5]) < 12
    assert all(asked or case.all_ties for asked, case in zip(of[1.0], cases, strict=True))
    assert len({draw_regularizer(case).split("(")[0] for case in cases}) >= 3


@pytest.mark.many(3)
@pytest.mark.parametrize("seed", range(12))
def test_seeds_are_judged_right(seed):
    case = draw_case(seed)
    wrong = [f for f in findings(case, Question("regularized", draw_regularizer(case))) if f.verdict.kind == "wrong"]
    assert not wrong

"""Multipliers of constraints, against cvxpy, by what they are prices of, and their gradients."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from catalogue import RULES, RULES_BY_CONSTRAINTS
from torch.autograd import gradcheck

import optlayers as ol
from polytopes import matching, simplex

X = cp.Variable(4)
LIMIT, WEIGHT = cp.Parameter(4, name="limit"), cp.Parameter(4, name="weight")
CAPACITY, TOTAL = cp.Parameter(name="capacity"), cp.Parameter(name="total")
CONSTRAINTS = [X >= 0, X <= LIMIT, WEIGHT @ X <= CAPACITY, cp.sum(X) == TOTAL]
POLYTOPE = ol.Polytope(X, CONSTRAINTS)
BATCH = 6


def numbers(seed: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    inside = 0.1 + 0.5 * uniform(BATCH, 4)
    weight = uniform(BATCH, 4)
    return 2.0 * torch.randn(BATCH, 4, generator=generator, dtype=torch.float64), {
        "limit": inside + 0.3 * uniform(BATCH, 4),
        "weight": weight,
        "capacity": (weight * inside).sum(1) + 0.02,
        "total": inside.sum(1),
    }


OBJECTIVES = {
    "best vertex": (None, lambda x: 0.0),
    "projection": (ol.Euclidean(), lambda x: 0.5 * cp.sum_squares(x)),
    "weighted": (ol.Euclidean(0.3), lambda x: 0.15 * cp.sum_squares(x)),
    "entropy": (ol.Entropy(0.5), lambda x: -0.5 * cp.sum(cp.entr(x))),
}


def solved(name: str, scores: torch.Tensor, parameters: dict[str, torch.Tensor]) -> ol.Solution:
    compiled, regularizer = ol.compile_polytope(POLYTOPE), OBJECTIVES[name][0]
    if regularizer is None:
        return compiled.maximize(scores, **parameters)
    return compiled.regularized(scores, regularizer, **parameters)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("seed", range(3))
def test_they_are_those_of_cvxpy(name, seed):
    scores, parameters = numbers(seed)
    duals = solved(name, scores, parameters).duals
    priced, accuracy = 0, 1e-4 if name == "entropy" else 1e-6  # that of Clarabel, over exponential cones
    for k in range(BATCH):
        for parameter in (LIMIT, WEIGHT, CAPACITY, TOTAL):
            parameter.value = parameters[parameter.name()][k].numpy()
        problem = cp.Problem(cp.Maximize(scores[k].numpy() @ X - OBJECTIVES[name][1](X)), CONSTRAINTS)
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        for constraint in CONSTRAINTS:
            mine = duals[constraint][k].numpy()
            assert np.abs(mine - constraint.dual_value).max() <= accuracy
            priced += int((np.abs(mine) > 1e-3).sum())
    assert priced >= BATCH


@pytest.mark.parametrize("name", OBJECTIVES)
def test_they_are_what_the_value_gains(name):
    """The prices of limits and totals are derivatives of the optimal value, by finite differences."""
    scores, parameters = numbers(7)
    duals, step = solved(name, scores, parameters).duals, 1e-6
    regularizer = OBJECTIVES[name][0]

    def value(**changed: torch.Tensor) -> torch.Tensor:
        return ol.OptimalValue(POLYTOPE, regularizer)(scores, **(parameters | changed))

    for parameter, constraint in (("capacity", CONSTRAINTS[2]), ("total", CONSTRAINTS[3])):
        there = [value(**{parameter: parameters[parameter] + t}) for t in (step, -step)]
        torch.testing.assert_close(duals[constraint], (there[0] - there[1]) / (2 * step), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rule", [ol.SparseMAP(), ol.Regularized(ol.Entropy(0.5))], ids=repr)
def test_they_have_gradients_for_scores_and_parameters(rule):
    scores, parameters = numbers(1)
    layer, names = ol.OptLayer(POLYTOPE, rule), list(parameters)

    def duals(s: torch.Tensor, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(layer.solve(s, **dict(zip(names, given, strict=True))).duals.values())

    leaves = [t[:2].clone().requires_grad_() for t in (scores, *parameters.values())]
    assert gradcheck(duals, leaves, eps=1e-6, atol=1e-5, fast_mode=True)
    assert torch.autograd.grad(sum(d.sum() for d in duals(*leaves)), leaves[1])[0].abs().sum() > 1e-3


def test_multipliers_of_dependent_rows_are_some_that_explain_the_point():
    polytope = matching(3).without_oracle()
    scores = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solution = ol.compile_polytope(polytope).project(scores)
    of_rows, of_columns = solution.duals[0], solution.duals[1]
    rest = scores - solution.value - of_rows[:, :, None] - of_columns[:, None, :]
    held = solution.value <= 1e-12
    assert rest[~held].abs().max() <= 1e-10 and rest[held].max() <= 1e-10
    assert held.any()


def test_forbidden_parts_have_no_say():
    scores = torch.tensor([[3.0, -torch.inf, 1.0]], dtype=torch.float64)
    duals = ol.compile_polytope(simplex(3)).project(scores).duals
    torch.testing.assert_close(duals[0], torch.tensor([2.0], dtype=torch.float64))  # 3 - 1 for the whole of one part


def test_instances_without_an_answer_have_none():
    scores, parameters = numbers(0)
    parameters["total"][2] = 100.0
    duals = ol.compile_polytope(POLYTOPE).project(scores, **parameters).duals
    assert all(d[2].isnan().all() and d[[0, 1, 3]].isfinite().all() for d in duals.values())


def test_they_are_found_by_constraint_place_and_label():
    x = cp.Variable(3, nonneg=True)
    budget = (cp.sum(x) <= 1).set_label("budget")
    duals = ol.compile_polytope(ol.Polytope(x, [budget])).project(torch.tensor([2.0, 0.0, 0.0])).duals
    assert duals[budget] == duals[0] == duals["budget"] == 1.0
    assert duals[budget].dtype == torch.float32
    assert list(duals) == [budget]
    assert "budget: 1.0" in repr(duals)
    with pytest.raises(KeyError, match=r"give one of polytope\.constraints, its place, or its label"):
        duals["rent"]


@pytest.mark.parametrize("rule", [ol.StructuredAttention(), ol.GumbelStraightThrough()], ids=repr)
def test_answers_that_are_not_best_have_no_multipliers(rule):
    """A best vertex under noise is best for other scores."""
    with pytest.raises(ValueError, match="this solution has no multipliers"):
        ol.OptLayer(simplex(3), rule).solve(torch.zeros(2, 3)).duals  # noqa: B018


def test_what_has_no_multipliers_says_so():
    scores = torch.zeros(2, 3)
    family = ol.OptLayer(ol.Family(simplex), ol.SparseMAP())
    with pytest.raises(ValueError, match="over one polytope"):
        family.solve(scores, sizes=torch.tensor([3, 2])).duals  # noqa: B018
    x = cp.Variable(3, boolean=True)
    with pytest.raises(ol.DeclarationError, match=r"polytope.relaxed\(\) has them"):
        ol.compile_polytope(ol.Polytope(x, [cp.sum(x) <= 2])).maximize(scores).duals  # noqa: B018


KNOWN_BESIDE = {
    "oracle": {"oracle": lambda scores: np.eye(3)[np.argmax(scores)], "rows": "relaxation"},
    "separate": {"separate": lambda point: (np.ones(3), 1.0) if point.sum() > 1.0 + 1e-9 else None},
}


@pytest.mark.parametrize("beside", KNOWN_BESIDE)
def test_a_relaxation_has_none_for_the_polytope(beside):
    """Its multipliers would be those of a point that no answer is."""
    x = cp.Variable(3, nonneg=True)
    compiled = ol.compile_polytope(ol.Polytope(x, [x <= 1, cp.sum(x) <= 1.5], **KNOWN_BESIDE[beside]))
    for solution in (compiled.maximize(torch.ones(3)), compiled.project(torch.ones(3))):
        with pytest.raises(ol.DeclarationError, match="the constraints are a relaxation of the polytope"):
            solution.duals  # noqa: B018


VERTEX_RULES = [
    rule
    for rule in (*RULES, *RULES_BY_CONSTRAINTS)
    if rule.optimizes and rule.omega is None and not rule.needs_objective
]


@pytest.mark.many(5)
@pytest.mark.parametrize("rule", VERTEX_RULES, ids=repr)
def test_vertex_rules_have_those_of_the_best_vertex(rule):
    scores, parameters = numbers(2)
    of_layer = ol.OptLayer(POLYTOPE, rule).solve(scores, **parameters).duals
    of_vertex = ol.compile_polytope(POLYTOPE).maximize(scores, **parameters).duals
    for constraint in CONSTRAINTS:
        torch.testing.assert_close(of_layer[constraint], of_vertex[constraint])

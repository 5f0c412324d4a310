"""Values, losses and gradients of expressions as regularizers, by cvxpy and finite differences."""

import cvxpy as cp
import pytest
import torch
from torch.autograd import gradcheck

import optlayers as ol
from polytopes import matching

X = cp.Variable(4, nonneg=True)
BUDGET, WEIGHT = cp.Parameter(name="budget"), cp.Parameter(name="weight", nonneg=True)
MIDDLE, MATRIX = cp.Parameter(4, name="middle"), cp.Parameter((4, 4), PSD=True, name="matrix")
POLYTOPE = ol.Polytope(X, [cp.sum(X) == BUDGET, X <= 1])
OMEGAS = {
    "a covariance": 0.5 * cp.quad_form(X, MATRIX),
    "a covariance, absolute values and a constant": 0.5 * cp.quad_form(X, MATRIX) + WEIGHT * cp.norm1(X - MIDDLE) + 3,
    "distances": cp.sum_squares(X - MIDDLE) + WEIGHT * cp.max(X),
    "a constant that is a parameter": cp.sum_squares(X) + 2 * WEIGHT,
}
TARGETS = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.7, 0.0], [0.5, 0.5, 0.25, 0.25]], dtype=torch.float64)


def numbers(omega: cp.Expression) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(3, 4, 4, generator=generator, dtype=torch.float64)
    every = {
        "budget": TARGETS.sum(1),
        "matrix": root @ root.mT + 0.3 * torch.eye(4, dtype=torch.float64),
        "weight": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
        "middle": torch.rand(3, 4, generator=generator, dtype=torch.float64),
    }
    names = ["budget", *(p.name() for p in omega.parameters())]
    scores = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return scores, {name: every[name] for name in dict.fromkeys(names)}


@pytest.mark.parametrize("name", OMEGAS)
def test_values_and_losses_are_those_of_cvxpy(name):
    omega = OMEGAS[name]
    scores, given = numbers(omega)
    values = ol.OptimalValue(POLYTOPE, omega)(scores, **given)
    losses = ol.FenchelYoungLoss(POLYTOPE, omega, reduction="none")(scores, TARGETS, **given)
    for k in range(3):
        for parameter in (BUDGET, WEIGHT, MIDDLE, MATRIX):
            if parameter.name() in given:
                parameter.value = given[parameter.name()][k].numpy()
        problem = cp.Problem(cp.Maximize(scores[k].numpy() @ X - omega), POLYTOPE.constraints)
        problem.solve(solver="CLARABEL", tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
        assert abs(values[k].item() - problem.value) <= 1e-7
        best, X.value = problem.value, TARGETS[k].numpy()
        assert abs(losses[k].item() - (best + omega.value - float(scores[k] @ TARGETS[k]))) <= 1e-7


@pytest.mark.parametrize("name", OMEGAS)
def test_gradients_are_those_of_finite_differences(name):
    omega = OMEGAS[name]
    scores, given = numbers(omega)
    value, loss = ol.OptimalValue(POLYTOPE, omega), ol.FenchelYoungLoss(POLYTOPE, omega, reduction="none")
    learned = [n for n in given if n != "budget"]  # targets have this budget

    def symmetric(n: str, tensor: torch.Tensor) -> torch.Tensor:
        return 0.5 * (tensor + tensor.mT) if n == "matrix" else tensor

    def both(s: torch.Tensor, *parameters: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mine = {n: symmetric(n, t) for n, t in zip(learned, parameters, strict=True)}
        with_budget = {"budget": given["budget"], **mine}
        return value(s, **with_budget), loss(s, TARGETS, **with_budget)

    leaves = [scores.requires_grad_(), *(given[n].clone().requires_grad_() for n in learned)]
    assert gradcheck(both, leaves, eps=1e-6, atol=1e-5, fast_mode=True)


def test_limits_with_room_have_no_price_under_a_covariance():
    x, limit = cp.Variable(3, nonneg=True), cp.Parameter(3, name="limit")
    matrix = [[2.0, 0.3, 0.0], [0.3, 1.0, 0.1], [0.0, 0.1, 1.5]]
    value = ol.OptimalValue(ol.Polytope(x, [cp.sum(x) == 1, x <= limit]), 0.5 * cp.quad_form(x, matrix))
    far = torch.tensor([0.9, 0.95, 0.99], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(torch.tensor([0.3, 0.1, -0.2], dtype=torch.float64), limit=far), far)
    assert (slope == 0.0).all()


def test_a_squared_norm_is_the_loss_of_projections():
    polytope = matching(3)
    scores = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    target = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    declared = ol.FenchelYoungLoss(polytope, 0.5 * cp.sum_squares(polytope.variable))(scores, target)
    known = ol.SparseMAPLoss(polytope)(scores, target)
    torch.testing.assert_close(declared, known)
    for mine, its in zip(
        torch.autograd.grad(declared, scores, create_graph=True),
        torch.autograd.grad(known, scores, create_graph=True),
        strict=True,
    ):
        torch.testing.assert_close(mine, its)


def test_what_has_no_loss_says_so():
    scores = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="counts all variables together, and vertices that are best less"):
        ol.FenchelYoungLoss(POLYTOPE, cp.sum_squares(X)).decode(scores, budget=torch.ones(2))
    with pytest.raises(ol.DeclarationError, match="expressions that are quadratic programs over a polytope"):
        ol.OptimalValue(POLYTOPE, -cp.sum(cp.entr(X)))(scores, budget=torch.ones(2))
    with pytest.raises(ValueError, match="infinite at structures"):
        ol.OptimalValue(POLYTOPE, ol.Barrier())

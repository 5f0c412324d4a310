"""Quadratic forms of the scored vector, by active sets with the full matrix: as the other way, and by differences."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

import optlayers as ol
from optlayers.bound.dense_program import DenseEvidence, EvidenceOfParts
from optlayers.solvers.dense_program import DenseProgram
from optlayers.solvers.kernels import dense_program


def drawn(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def covariances(*shape, seed=0, rank=None):
    root = drawn(*shape[:-1], rank or shape[-1], seed=seed)
    return root @ root.mT + (0.1 * torch.eye(shape[-1], dtype=torch.float64) if rank is None else 0.0)


def portfolio(size=8, **attributes):
    x = cp.Variable(size, nonneg=True)
    covariance = cp.Parameter((size, size), PSD=True, name="covariance")
    budget = cp.Parameter(name="budget", **attributes)
    limits = [cp.sum(x) == budget, x[: size // 2] @ np.ones(size // 2) <= 0.6, x <= 0.5]
    return ol.Polytope(x, limits), 0.5 * cp.quad_form(x, covariance)


def points(polytope, omega, scores, **given):
    """Of a compiled polytope that knows the parameters of the regularizer."""
    declared = ol.Declared(omega)
    return ol.compile_polytope(polytope.beside(declared.parameters)).regularized(scores, declared, **given)


@pytest.fixture
def without(monkeypatch):
    """Have quadratic forms solved by the other way."""

    def leave():
        monkeypatch.setattr(DenseProgram, "takes", staticmethod(lambda form: False))

    return leave


@pytest.mark.parametrize("factor", [0.5, 2.0, None])
@pytest.mark.parametrize("scale", [0.0, 1e-8, 1.0, 1e3, 1e8])
def test_points_and_gradients_are_those_of_the_other_way(scale, factor, without):
    polytope, omega = portfolio()
    omega = omega if factor == 0.5 else (omega.args[1] if factor is None else factor * omega.args[1])
    scores, matrix = drawn(6, 8, scale=scale), covariances(6, 8, 8, seed=1)
    given = {"covariance": matrix, "budget": torch.linspace(0.8, 1.1, 6, dtype=torch.float64)}

    def asked():
        found = points(polytope, omega, scores, **given).check()
        layer, leaf = ol.OptLayer(polytope, ol.Regularized(omega)), matrix.clone().requires_grad_()
        value = layer(scores, covariance=leaf, budget=given["budget"])
        return found, torch.autograd.grad((value * drawn(6, 8, seed=3)).sum(), leaf)[0]

    mine, gradient = asked()
    assert isinstance(mine.evidence, (DenseEvidence, EvidenceOfParts)) or scale > 1.0
    assert (mine.gap <= 1e-9 * max(scale, 1.0)).all()
    without()
    other, expected = asked()
    assert not isinstance(other.evidence, (DenseEvidence, EvidenceOfParts))
    torch.testing.assert_close(mine.value, other.value, atol=1e-9, rtol=0)
    if 0.0 < scale <= 1e3:
        torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-8)


def test_all_gradients_are_those_of_differences():
    polytope, omega = portfolio()
    layer = ol.OptLayer(polytope, ol.Regularized(omega))
    leaves = drawn(3, 8), covariances(3, 8, 8, seed=1), torch.tensor([0.8, 1.0, 1.1], dtype=torch.float64)

    def by(scores, root, budget):
        return layer(scores, covariance=root @ root.mT, budget=budget)

    leaves = leaves[0], torch.linalg.cholesky(leaves[1]), leaves[2]
    assert gradcheck(by, [leaf.requires_grad_() for leaf in leaves], atol=1e-5, fast_mode=True)


def test_gradients_of_bounds_that_are_parameters():
    x, most = cp.Variable(6, nonneg=True), cp.Parameter(6, name="most")
    matrix = covariances(6, 6).numpy()
    layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x) == 1, x <= most]), ol.Regularized(0.5 * cp.quad_form(x, matrix)))
    leaves = drawn(3, 6, scale=3.0).requires_grad_(), torch.full((3, 6), 0.3, dtype=torch.float64).requires_grad_()
    assert gradcheck(lambda s, m: layer(s, most=m), leaves, atol=1e-5)


def test_one_matrix_for_all_is_one_for_each():
    polytope, omega = portfolio()
    layer, scores = ol.OptLayer(polytope, ol.Regularized(omega)), drawn(5, 8, scale=2.0)
    one = covariances(8, 8).requires_grad_()
    each = one.detach().expand(5, -1, -1).clone().requires_grad_()
    budget, weight = torch.tensor(1.0, dtype=torch.float64), drawn(5, 8, seed=4)
    first, second = (layer(scores, covariance=matrix, budget=budget) for matrix in (one, each))
    torch.testing.assert_close(first, second, atol=1e-14, rtol=0)
    by_one, by_each = (torch.autograd.grad((v * weight).sum(), m)[0] for v, m in ((first, one), (second, each)))
    torch.testing.assert_close(by_one, by_each.sum(0), atol=1e-12, rtol=0)


def test_only_the_symmetric_part_counts():
    polytope, omega = portfolio()
    matrix = covariances(3, 8, 8)
    skew = drawn(3, 8, 8, seed=5)
    given, other = points(polytope, omega, drawn(3, 8), covariance=matrix, budget=1.0), matrix + skew - skew.mT
    layer = ol.OptLayer(polytope, ol.Regularized(omega), on_failure="nan")
    value = layer(drawn(3, 8), covariance=other, budget=torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(value, given.value, atol=1e-12, rtol=0)


def test_infeasible_instances_are_named_and_the_others_solved():
    polytope, omega = portfolio()
    budget, matrix = torch.tensor([1.0, 3.0, 0.9], dtype=torch.float64), covariances(3, 8, 8)
    found = points(polytope, omega, drawn(3, 8), covariance=matrix, budget=budget)
    assert found.status.tolist() == [0, 1, 0] and "budget" in found.reasons[1]
    alone = points(polytope, omega, drawn(3, 8)[[0, 2]], covariance=matrix[[0, 2]], budget=budget[[0, 2]])
    torch.testing.assert_close(found.value[[0, 2]], alone.value, atol=1e-10, rtol=0)


def test_forbidden_parts_and_empty_batches_and_single_precision():
    polytope, omega = portfolio()
    layer = ol.OptLayer(polytope, ol.Regularized(omega))
    scores = drawn(3, 8)
    scores[0, 1] = scores[2, 5] = -torch.inf
    leaf = scores.clone().requires_grad_()
    value = layer(leaf, covariance=covariances(3, 8, 8), budget=torch.tensor(1.0, dtype=torch.float64))
    assert value[0, 1] == 0 and value[2, 5] == 0
    torch.testing.assert_close(value.sum(1), torch.ones(3, dtype=torch.float64), atol=1e-12, rtol=0)
    value[:, 0].sum().backward()
    assert leaf.grad[0, 1] == 0 and leaf.grad[2, 5] == 0
    assert layer(scores[:0], covariance=covariances(8, 8), budget=torch.tensor(1.0)).shape == (0, 8)
    single = layer(drawn(3, 8).float(), covariance=covariances(3, 8, 8).float(), budget=torch.tensor(1.0))
    assert single.dtype == torch.float32 and ((single.sum(1) - 1).abs() <= 1e-6).all()


def test_a_matrix_that_is_not_definite_goes_the_other_way():
    polytope, omega = portfolio()
    flat = points(polytope, omega, drawn(2, 8), covariance=covariances(2, 8, 8, rank=3), budget=1.0).check()
    assert (flat.value >= 0).all()
    with pytest.raises(ValueError, match="covariance must be positive semidefinite"):
        points(polytope, omega, drawn(2, 8), covariance=covariances(2, 8, 8) - 5 * torch.eye(8), budget=1.0)


@pytest.mark.parametrize("shift", [1e-3, -1e-3])
def test_a_wrong_point_is_not_certified(shift):
    """Along the budget, so that all rows hold."""
    rows, matrix = np.ones((1, 4)), np.eye(4)[None].copy()
    scores, side = np.array([[0.3, 0.1, 0.0, -0.4]]), np.ones((1, 1))
    low, high = np.zeros((1, 4)), np.ones((1, 4))
    x, y, sides, active = np.zeros((1, 4)), np.zeros((1, 1)), np.zeros((1, 4), np.int8), np.zeros((1, 1), bool)
    steps, which = np.zeros(1, np.int64), np.arange(1)
    numbers = matrix, rows, 1, scores, side, low, high, which
    dense_program.optimize(*numbers, 40, x, y, sides, active, steps)
    residual, gap, error = np.empty(1), np.empty(1), np.empty(1)
    dense_program.certify(*numbers, 1e3, x, y, residual, gap, error)
    assert steps[0] > 0 and error[0] <= 1e-12
    np.testing.assert_allclose(x.sum(), 1.0, atol=1e-14)
    x[0, 0], x[0, 1] = x[0, 0] + shift, x[0, 1] - shift
    dense_program.certify(*numbers, 1e3, x, y, residual, gap, error)
    assert error[0] >= 1e-8


def test_ties_and_points_at_all_bounds():
    """Equal scores and a unit matrix: all parts alike; a budget that fills every bound leaves one point."""
    x, budget = cp.Variable(4, nonneg=True), cp.Parameter(name="budget")
    layer = ol.OptLayer(ol.Polytope(x, [cp.sum(x) == budget, x <= 1]), ol.Regularized(0.5 * cp.quad_form(x, np.eye(4))))
    for total in (0.0, 1.0, 4.0):
        given = torch.tensor(total, dtype=torch.float64)
        found = layer(torch.zeros(2, 4, dtype=torch.float64), budget=given)
        torch.testing.assert_close(found, torch.full((2, 4), total / 4, dtype=torch.float64), atol=1e-9, rtol=0)


def test_an_instance_is_solved_in_one_way_whatever_is_beside_it():
    """Of large scores, some are left to the other way."""
    polytope, omega = portfolio()
    scores, matrix = drawn(24, 8, scale=3.0), covariances(24, 8, 8, seed=1)
    layer, budget = ol.OptLayer(polytope, ol.Regularized(omega)), torch.tensor(1.0, dtype=torch.float64)
    together = points(polytope, omega, scores, covariance=matrix, budget=1.0).check()
    assert isinstance(together.evidence, EvidenceOfParts)
    leaf, alone = matrix.clone().requires_grad_(), matrix.clone().requires_grad_()
    value = layer(scores, covariance=leaf, budget=budget)
    single = torch.cat([layer(scores[k : k + 1], covariance=alone[k : k + 1], budget=budget) for k in range(24)])
    assert torch.equal(value, single) and torch.equal(value, together.value)
    first, second = (torch.autograd.grad((v * scores).sum(), m)[0] for v, m in ((value, leaf), (single, alone)))
    torch.testing.assert_close(first, second, atol=1e-12, rtol=0)

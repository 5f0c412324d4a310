"""Random declarations: every answer certified, every gradient met by finite differences and by cvxpylayers."""

import cvxpy as cp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_polytopes import Case, random_case

import optlayers as ol
from optlayers.testing import check_polytope, check_rule, check_solver

seeds = st.integers(0, 2**32 - 1)


@given(seeds)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_declaration_keeps_its_contract(seed):
    case = random_case(seed)
    check_polytope(case.polytope, samples=6, seed=seed % 1000, **case.parameters)


@given(seeds)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_solvers_keep_their_contract(seed):
    case = random_case(seed)
    check_solver(ol.Highs(), case.polytope, samples=5, seed=seed % 1000, **case.parameters)
    check_solver(ol.Clarabel(), case.polytope, samples=5, seed=seed % 1000, **case.parameters)


RULES = [ol.Pipeline(), ol.StraightThrough(), ol.Spigot(0.7, clip_norm=2.0), ol.SparseMAP(), ol.Hard(ol.SparseMAP())]


@pytest.mark.many(2)
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("seed", range(4))
def test_rules_keep_their_contract(rule, seed):
    case = random_case(seed)
    check_rule(rule, case.polytope, seed=seed, **case.parameters)


def reference_projection(case: Case, target: torch.Tensor) -> np.ndarray:
    """The projection by a cold solve of the declaration through cvxpy, in its own variables."""
    x = case.polytope.variable
    for parameter in case.polytope.parameters:
        parameter.value = case.parameters[parameter.name()].numpy()
    problem = cp.Problem(cp.Minimize(cp.sum_squares(x - target.numpy())), list(case.polytope.constraints))
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-11)
    return np.asarray(x.value)


@pytest.mark.many(5)
@pytest.mark.parametrize("seed", range(30))
def test_projection_agrees_with_clarabel_through_cvxpy(seed):
    case = random_case(seed)
    target = 2 * torch.randn(case.polytope.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = ol.compile_polytope(case.polytope).project(target, **case.parameters).check()
    np.testing.assert_allclose(found.value.numpy(), reference_projection(case, target), atol=1e-6)
    assert float(found.gap) <= 1e-9


def directional(case: Case, seed: int):
    """A function of all inputs, the inputs, and a direction: for finite differences."""
    generator = torch.Generator().manual_seed(seed)
    shape = case.polytope.shape
    layer = ol.OptLayer(case.polytope, ol.SparseMAP())
    names = list(case.parameters)
    leaves = [torch.randn(2, *shape, generator=generator, dtype=torch.float64)]
    leaves += [case.parameters[n].double().expand(2, *case.parameters[n].shape).clone() for n in names]
    weights = torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    def value(scores, *parameters):
        return (layer(scores, **dict(zip(names, parameters, strict=True))) * weights).flatten(1).sum(1)

    directions = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in leaves]
    return value, leaves, directions


@pytest.mark.many(8)
@pytest.mark.parametrize("seed", range(60))
def test_gradients_agree_with_finite_differences(seed):
    value, leaves, directions = directional(random_case(seed), seed)
    live = [v.clone().requires_grad_() for v in leaves]
    gradients = torch.autograd.grad(value(*live).sum(), live)
    for which, (gradient, direction) in enumerate(zip(gradients, directions, strict=True)):
        step = 1e-6

        def moved(h, which=which, direction=direction):
            return value(*[v + h * direction if k == which else v for k, v in enumerate(leaves)])

        try:
            ahead, here, behind = moved(step), moved(0.0), moved(-step)
        except ol.SolveError:
            continue  # a parameter at the edge of feasibility has no two-sided derivative
        smooth = ((ahead - here) - (here - behind)).abs() / step < 1e-4
        exact = (gradient * direction).flatten(1).sum(1)
        torch.testing.assert_close(exact[smooth], ((ahead - behind) / (2 * step))[smooth], atol=1e-5, rtol=1e-5)


@pytest.mark.many(2)
@pytest.mark.parametrize("seed", range(12))
def test_gradients_agree_with_cvxpylayers(seed):
    case = random_case(seed)
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(3, *case.polytope.shape, generator=generator, dtype=torch.float64)
    weights = torch.randn(3, *case.polytope.shape, generator=generator, dtype=torch.float64)
    found = []
    for projector in (ol.Clarabel(), ol.CvxpyLayers()):
        leaf = scores.clone().requires_grad_()
        layer = ol.OptLayer(case.polytope, ol.SparseMAP(), projector=projector)
        (layer(leaf, **case.parameters) * weights).sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[0], found[1], atol=2e-3, rtol=2e-3)

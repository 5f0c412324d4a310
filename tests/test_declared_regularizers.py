"""Convex expressions as regularizers: values by cvxpy, gradients by finite differences, and what is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch import Tensor

from optlayers import (
    DeclarationError,
    Declared,
    Entropy,
    Euclidean,
    Family,
    Hard,
    OptLayer,
    Polytope,
    Regularized,
    SolveError,
    SparseMAP,
    Status,
    compile_polytope,
)
from polytopes import matching, simplex

EXACT = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
NEAR = 1e-6


@dataclass(frozen=True)
class Case:
    """A polytope with an expression, and what draws its parameters for a batch."""

    polytope: Polytope
    expression: cp.Expression
    draws: Mapping[str, Callable[[torch.Generator, int], Tensor]]

    @property
    def layer(self) -> OptLayer:
        return OptLayer(self.polytope, Regularized(self.expression))

    def draw(self, batch: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores and parameters."""
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(batch, *self.polytope.shape, dtype=torch.float64, generator=generator)
        return scores, {name: draw(generator, batch) for name, draw in self.draws.items()}


def reference(case: Case, scores: np.ndarray, given: Mapping[str, np.ndarray], tolerance: float = 1e-12) -> np.ndarray:
    """The regularized point of one instance by Clarabel."""
    x = case.polytope.variable
    objective = cp.sum(cp.multiply(np.where(np.isinf(scores), 0.0, scores), x)) - case.expression
    constraints = [*case.polytope.constraints]
    if np.isinf(scores).any():
        constraints.append(cp.multiply(1.0 * np.isinf(scores), x) == 0)
    problem = cp.Problem(cp.Maximize(objective), constraints)
    for parameter in problem.parameters():
        parameter.value = given[parameter.name()]
    problem.solve(cp.CLARABEL, **dict.fromkeys(EXACT, tolerance), ignore_dpp=True)
    assert problem.status == cp.OPTIMAL
    return np.array(x.value)


def covariances(size: int, rank: int | None = None) -> Callable[[torch.Generator, int], Tensor]:
    def draw(generator: torch.Generator, batch: int) -> Tensor:
        factors = torch.randn(batch, size, rank or size, dtype=torch.float64, generator=generator)
        return factors @ factors.mT

    return draw


def normal(*shape: int) -> Callable[[torch.Generator, int], Tensor]:
    return lambda generator, batch: torch.randn(batch, *shape, dtype=torch.float64, generator=generator)


def between(low: float, high: float, *shape: int) -> Callable[[torch.Generator, int], Tensor]:
    def draw(generator: torch.Generator, batch: int) -> Tensor:
        return low + (high - low) * torch.rand(batch, *shape, dtype=torch.float64, generator=generator)

    return draw


def _constant(size: int) -> np.ndarray:
    factor = np.random.default_rng(size).standard_normal((size, size))
    return factor @ factor.T / size + 0.1 * np.eye(size)


def _expressions(x: cp.Variable) -> dict[str, tuple[cp.Expression, dict[str, Any]]]:
    """Expressions of a vector, with what draws their parameters."""
    size = x.size
    covariance = cp.Parameter((size, size), PSD=True, name="covariance")
    factor = cp.Parameter((3, size), name="factor")
    risk, center = cp.Parameter(nonneg=True, name="risk"), cp.Parameter(size, name="center")
    return {
        "quad_form": (0.5 * cp.quad_form(x, _constant(size)), {}),
        "covariance": (0.5 * cp.quad_form(x, covariance), {"covariance": covariances(size)}),
        "factor": (
            cp.sum_squares(factor @ x) + 0.5 * cp.sum_squares(x),
            {"factor": normal(3, size)},
        ),
        "tv": (0.3 * cp.tv(x) + 0.5 * cp.sum_squares(x), {}),
        "norm1": (
            risk * cp.norm1(x - center) + cp.sum_squares(x),
            {"risk": between(0.1, 1), "center": between(0, 1, size)},
        ),
        "huber": (
            risk * cp.sum(cp.huber(x - center, 0.3)) + 0.1 * cp.sum_squares(x),
            {"risk": between(0.5, 1), "center": normal(size)},
        ),
        "all": (
            risk * cp.quad_form(x - center, covariance)
            + 0.2 * cp.tv(x)
            + risk * cp.sum_squares(factor @ x)
            + center @ x
            + 0.1 * cp.max(x),
            {
                "risk": between(0.5, 2),
                "covariance": covariances(size),
                "center": normal(size),
                "factor": normal(3, size),
            },
        ),
    }


def _on_simplex(name: str) -> Case:
    x = cp.Variable(5, nonneg=True, name="x")
    expression, draws = _expressions(x)[name]
    return Case(Polytope(x, [cp.sum(x) == 1]), expression, draws)


def _portfolio(name: str) -> Case:
    """A budget, and limits of sectors that are parameters."""
    x = cp.Variable(6, nonneg=True, name="x")
    limits = cp.Parameter(2, name="limits")
    sectors = np.array([[1.0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]])
    expression, draws = _expressions(x)[name]
    return Case(
        Polytope(x, [cp.sum(x) == 1, sectors @ x <= limits]), expression, draws | {"limits": between(0.55, 0.7, 2)}
    )


def _with_auxiliary(name: str) -> Case:
    """Levels that change little: the expression mentions the changes, too."""
    x, change = cp.Variable(5, name="x"), cp.Variable(4, name="change")
    reach = cp.Parameter(pos=True, name="reach")
    expression, draws = _expressions(x)[name]
    polytope = Polytope(x, [cp.diff(x) == change, cp.abs(change) <= reach, x >= -1, x <= 1])
    return Case(polytope, expression + 0.4 * cp.sum_squares(change), draws | {"reach": between(0.2, 0.6)})


def _box_and_budget(name: str) -> Case:
    x = cp.Variable(30, name="x")
    budget = cp.Parameter(name="budget")
    expression, draws = _expressions(x)[name]
    polytope = Polytope(x, [x >= -0.5, x <= 1, cp.sum(x) == budget])
    return Case(polytope, expression, draws | {"budget": between(1, 3)})


NAMES = ("quad_form", "covariance", "factor", "tv", "norm1", "huber", "all")
CASES: dict[str, Callable[[], Case]] = {
    f"{what}-{name}": (lambda make=make, name=name: make(name))  # type: ignore[misc]
    for what, make in (
        ("simplex", _on_simplex),
        ("portfolio", _portfolio),
        ("auxiliary", _with_auxiliary),
        ("box", _box_and_budget),
    )
    for name in NAMES
}


@pytest.mark.parametrize("name", CASES)
def test_points_are_those_of_clarabel(name: str) -> None:
    case = CASES[name]()
    scores, given = case.draw(4)
    found = case.layer(scores, **given)
    for k in range(len(scores)):
        one = {name: value[k].numpy() for name, value in given.items()}
        assert np.abs(found[k].numpy() - reference(case, scores[k].numpy(), one)).max() < NEAR


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("box")])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    case = CASES[name]()
    scores, given = case.draw(2, seed=1)
    layer, names = case.layer, list(given)

    def answers(scores: Tensor, *values: Tensor) -> Tensor:
        return layer(scores, **dict(zip(names, values, strict=True)))

    leaves = [tensor.requires_grad_() for tensor in (scores, *given.values())]
    assert torch.autograd.gradcheck(answers, leaves, atol=1e-5, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("box")])
def test_directional_derivatives_are_those_of_finite_differences(name: str) -> None:
    case = CASES[name]()
    scores, given = case.draw(3, seed=2)
    generator, layer, step = torch.Generator().manual_seed(3), case.layer, 1e-6
    leaves = {"scores": scores, **given}
    wanted = torch.randn(scores.shape, dtype=torch.float64, generator=generator)
    for tensor in leaves.values():
        tensor.requires_grad_()
    gradients = torch.autograd.grad((layer(**leaves) * wanted).sum(), list(leaves.values()))
    with torch.no_grad():
        for (name, tensor), gradient in zip(leaves.items(), gradients, strict=True):
            move = torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
            ahead, behind = ((layer(**leaves | {name: tensor + t * move}) * wanted).sum() for t in (step, -step))
            expected = (ahead - behind) / (2 * step)
            assert abs((gradient * move).sum() - expected) < 1e-5 * max(1.0, abs(expected))


def _small() -> tuple[Polytope, cp.Variable, cp.Parameter]:
    """Subsets of a budget that is a parameter, and a covariance."""
    x = cp.Variable(4, nonneg=True, name="x")
    budget = cp.Parameter(name="budget")
    return Polytope(x, [cp.sum(x) == budget, x <= 1]), x, cp.Parameter((4, 4), PSD=True, name="covariance")


def _scores(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


COVARIANCE = torch.eye(4, dtype=torch.float64) + 1.0


def test_the_squared_norm_is_the_projection() -> None:
    polytope = matching(3)
    scores, weights = _scores(5, 3, 3), _scores(5, 3, 3, seed=1)
    gradients = []
    for rule in (SparseMAP(), Regularized(0.5 * cp.sum_squares(polytope.variable))):
        leaf = scores.clone().requires_grad_()
        point = OptLayer(polytope, rule)(leaf)
        gradients.append((point.detach(), *torch.autograd.grad((point * weights).sum(), leaf)))
    for first, second in zip(*gradients, strict=True):
        assert (first - second).abs().max() < 1e-9


def test_a_matrix_needs_not_be_regular() -> None:
    polytope, x, covariance = _small()
    layer = OptLayer(polytope, Regularized(0.5 * cp.quad_form(x, covariance) + 0.5 * cp.sum_squares(x)))
    factor = _scores(3, 4, 2, seed=3)
    scores = _scores(3, 4, seed=4).requires_grad_()
    case = Case(polytope, layer.rule.regularizer.expression, {})
    found = layer(scores, budget=1.5, covariance=factor @ factor.mT)
    for k in range(3):
        given = {"budget": np.array(1.5), "covariance": (factor @ factor.mT)[k].numpy()}
        assert np.abs(found[k].detach().numpy() - reference(case, scores[k].detach().numpy(), given)).max() < NEAR
    factor.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, f: layer(s, budget=1.5, covariance=f @ f.mT), (scores, factor), atol=1e-5, rtol=1e-5
    )


def test_of_a_matrix_the_symmetric_part_counts() -> None:
    polytope, x, covariance = _small()
    layer = OptLayer(polytope, Regularized(0.5 * cp.quad_form(x, covariance)))
    scores, skew = _scores(4), torch.triu(_scores(4, 4), 1)
    plain = layer(scores, budget=2.0, covariance=COVARIANCE)
    assert torch.allclose(layer(scores, budget=2.0, covariance=COVARIANCE + skew - skew.mT), plain, atol=1e-9)


def test_a_matrix_that_is_not_positive_semidefinite_is_refused() -> None:
    polytope, x, covariance = _small()
    layer = OptLayer(polytope, Regularized(cp.quad_form(x, covariance)), on_failure="nan")
    given = torch.stack([COVARIANCE, COVARIANCE - 2.0 * torch.eye(4, dtype=torch.float64)])
    with pytest.raises(ValueError, match=r"covariance must be positive semidefinite.* eigenvalue -1 in instance 1"):
        layer(_scores(2, 4), budget=1.0, covariance=given)


def test_a_matrix_is_looked_at_where_no_part_moves_too() -> None:
    """At the best vertex the matrix has no say, and it is not convex all the same."""
    polytope, x, covariance = _small()
    layer = OptLayer(polytope, Regularized(0.5 * cp.quad_form(x, covariance)))
    given = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    given[2, 3, 3] = -0.1
    scores = torch.tensor([[90.0, 0.0, 0.0, 0.0]], dtype=torch.float64).expand(3, 4)
    with pytest.raises(ValueError, match=r"positive semidefinite, but has the eigenvalue -0.1 in instance 2"):
        layer(scores, budget=1.0, covariance=given)


@pytest.mark.parametrize("batch", [(), (2, 3), (0,)], ids=str)
def test_batches_of_any_shape(batch: tuple[int, ...]) -> None:
    polytope, x, covariance = _small()
    layer = OptLayer(polytope, Regularized(0.5 * cp.quad_form(x, covariance)))
    scores = _scores(*batch, 4)
    found = layer(scores, budget=1.0, covariance=COVARIANCE)
    assert found.shape == scores.shape
    for one, point in zip(scores.reshape(-1, 4), found.reshape(-1, 4), strict=True):
        assert torch.equal(layer(one, budget=1.0, covariance=COVARIANCE), point)


def test_forbidden_parts_stay_zero() -> None:
    polytope, x, covariance = _small()
    case = Case(polytope, 0.5 * cp.quad_form(x, covariance) + 0.1 * cp.tv(x), {})
    scores = _scores(3, 4)
    scores[0, 1] = scores[1, :2] = -torch.inf
    leaf = scores.clone().requires_grad_()
    found = case.layer(leaf, budget=1.2, covariance=COVARIANCE)
    (gradient,) = torch.autograd.grad((found * _scores(4, seed=1)).sum(), leaf)
    hidden = torch.isinf(scores)
    assert (found[hidden] == 0.0).all()
    assert (gradient[hidden] == 0.0).all()
    for k in range(3):
        given = {"budget": np.array(1.2), "covariance": COVARIANCE.numpy()}
        assert np.abs(found[k].detach().numpy() - reference(case, scores[k].numpy(), given)).max() < NEAR


def test_float32_in_float32_out() -> None:
    polytope, x, covariance = _small()
    layer = OptLayer(polytope, Regularized(0.5 * cp.quad_form(x, covariance)))
    factor = _scores(4, 1, seed=5).float()  # of rank 1: its rounding is no eigenvalue below 0
    scores, given = _scores(3, 4).float().requires_grad_(), (factor @ factor.mT).requires_grad_()
    found = layer(scores, budget=1.0, covariance=given + 0.1 * torch.eye(4))
    gradients = torch.autograd.grad(found.square().sum(), (scores, given))
    assert [found.dtype, *(g.dtype for g in gradients)] == [torch.float32] * 3
    layer(scores, budget=1.0, covariance=given)
    exact = layer(scores.double(), budget=1.0, covariance=given.double() + 0.1 * torch.eye(4, dtype=torch.float64))
    assert (found - exact).abs().max() < 1e-5


def test_an_infeasible_instance_leaves_the_others_alone() -> None:
    polytope, x, covariance = _small()
    layer = OptLayer(polytope, Regularized(0.5 * cp.quad_form(x, covariance)), on_failure="nan")
    scores = _scores(3, 4).requires_grad_()
    budget = torch.tensor([1.0, 9.0, 2.0], dtype=torch.float64)
    found = layer(scores, budget=budget, covariance=COVARIANCE)
    (gradient,) = torch.autograd.grad((found.nan_to_num() * _scores(4, seed=2)).sum(), scores)
    assert found.isnan().all(dim=1).tolist() == [False, True, False]
    assert (gradient[1] == 0.0).all()
    failures = layer.solve(scores, budget=budget, covariance=COVARIANCE).failures
    assert [(failure.index, failure.status) for failure in failures] == [((1,), Status.INFEASIBLE)]
    with pytest.raises(SolveError, match="instance 1 is INFEASIBLE"):
        OptLayer(polytope, layer.rule)(scores, budget=budget, covariance=COVARIANCE)


TIES = {
    "norm1": lambda x: 0.1 * cp.norm1(x),
    "rank 1": lambda x: cp.square(cp.sum(x)),
    "low rank": lambda x: cp.sum_squares(np.random.default_rng(0).standard_normal((2, 4)) @ x),
}


@pytest.mark.parametrize("name", TIES)
def test_where_several_points_are_best_there_is_no_silent_gradient(name: str) -> None:
    """Scores of 0 are where training starts."""
    x = cp.Variable(4, nonneg=True)
    polytope, expression = Polytope(x, [cp.sum(x) == 1]), TIES[name](x)
    scores, weights = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True), _scores(4, seed=1)
    found = OptLayer(polytope, Regularized(expression))(scores)
    x.value = found[0].detach().numpy()
    least = cp.Problem(cp.Minimize(expression), polytope.constraints)
    value = expression.value
    assert abs(value - least.solve(cp.CLARABEL, **EXACT)) < 1e-8  # one of the best points
    with pytest.raises(SolveError, match="several points are best"):
        (found * weights).sum().backward()
    (gradient,) = torch.autograd.grad(
        (OptLayer(polytope, Regularized(expression), on_failure="nan")(scores) * weights).sum(), scores
    )
    assert (gradient == 0.0).all()


def test_ties_of_a_strictly_convex_expression_have_a_gradient() -> None:
    x = cp.Variable(4, nonneg=True)
    layer = OptLayer(Polytope(x, [cp.sum(x) == 1]), Regularized(0.5 * cp.sum_squares(x) + 0.1 * cp.norm1(x)))
    scores = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, scores, atol=1e-5)
    assert (layer(scores) == 0.25).all()


def test_a_weight_may_be_0() -> None:
    """Then it is the best vertex; the next instance has a weight."""
    x, weight = cp.Variable(4, name="x"), cp.Parameter(nonneg=True, name="weight")
    layer = OptLayer(Polytope(x, [x >= -1, x <= 1]), Regularized(weight * cp.sum_squares(x)))
    scores = torch.tensor([[0.3, 1.5, -1.0, 0.2]], dtype=torch.float64).repeat(2, 1).requires_grad_()
    found = layer(scores, weight=torch.tensor([0.0, 1.0]))
    assert torch.allclose(found[0], scores[0].sign(), atol=1e-9)
    assert torch.allclose(found[1], scores[1] / 2, atol=1e-9)
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    assert torch.allclose(gradient, torch.tensor([[0.0] * 4, [0.5] * 4], dtype=torch.float64), atol=1e-9)


def test_auxiliary_variables_in_the_expression_and_scores_for_them() -> None:
    x, y = cp.Variable(3, nonneg=True, name="x"), cp.Variable(2, nonneg=True, name="y")
    polytope = Polytope(x, [cp.sum(x) == 1, x[:2] <= y, y <= 1], scored=[y])
    layer = OptLayer(polytope, Regularized(cp.sum_squares(x) + cp.sum_squares(y) + 0.1 * cp.norm1(y - 0.4)))
    scores, further = _scores(2, 3).requires_grad_(), _scores(2, 2, seed=1).requires_grad_()
    found, values = layer.lifted(scores, y=further)
    for k in range(2):
        objective = scores[k].detach().numpy() @ x + further[k].detach().numpy() @ y
        cp.Problem(cp.Maximize(objective - layer.rule.regularizer.expression), polytope.constraints).solve(
            cp.CLARABEL, **EXACT
        )
        assert np.abs(found[k].detach().numpy() - x.value).max() < NEAR
        assert np.abs(values["y"][k].numpy() - y.value).max() < NEAR
    assert torch.autograd.gradcheck(lambda s, t: layer(s, y=t), (scores, further), atol=1e-5)


def test_booleans_whose_rows_describe_the_hull() -> None:
    v = cp.Variable(4, boolean=True)
    layer = OptLayer(Polytope(v, [cp.sum(v) == 2]), Regularized(0.5 * cp.sum_squares(v) + 0.2 * cp.tv(v)))
    x = cp.Variable(4, nonneg=True)
    plain = Case(Polytope(x, [cp.sum(x) == 2, x <= 1]), 0.5 * cp.sum_squares(x) + 0.2 * cp.tv(x), {})
    scores = _scores(3, 4)
    for one, point in zip(scores, layer(scores), strict=True):
        assert np.abs(point.numpy() - reference(plain, one.numpy(), {})).max() < NEAR


def test_best_vertices_with_the_gradient_of_an_expression() -> None:
    polytope, x, covariance = _small()
    rule = Regularized(0.5 * cp.quad_form(x, covariance))
    leaves = (_scores(2, 4).requires_grad_(), COVARIANCE.clone().requires_grad_())
    soft, hard = (OptLayer(polytope, r)(leaves[0], budget=1.0, covariance=leaves[1]) for r in (rule, Hard(rule)))
    weights = _scores(4, seed=1)
    gradients = [torch.autograd.grad((found * weights).sum(), leaves) for found in (soft, hard)]
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)
    assert ((hard == 0.0) | (hard == 1.0)).all()


def test_compiled_polytopes_answer_too() -> None:
    polytope, x, covariance = _small()
    regularizer = Declared(0.5 * cp.quad_form(x, covariance))
    scores, given = _scores(2, 4), {"budget": 1.0, "covariance": COVARIANCE}
    compiled = compile_polytope(polytope.beside(regularizer.parameters))
    solution = compiled.regularized(scores, regularizer, **given)
    assert torch.equal(solution.check().value, OptLayer(polytope, Regularized(regularizer))(scores, **given))
    assert {"budget", "covariance"} == set(compiled.tangent(solution, scores).parameters)
    with pytest.raises(TypeError, match=r"does not know the parameters \['covariance'\]"):
        compile_polytope(polytope).regularized(scores, regularizer, budget=1.0)


def test_gradients_of_optimal_values() -> None:
    """By the envelope theorem, against finite differences."""
    case = _portfolio("all")
    scores, given = case.draw(1)
    regularizer = Declared(case.expression)
    compiled = compile_polytope(case.polytope.beside(regularizer.parameters))
    solution = compiled.regularized(scores, regularizer, **given)
    gradients = solution.evidence.value_gradient(solution.ok)  # type: ignore[union-attr]
    found = torch.cat([gradients[:, s.span] for s in compiled.form.parameters], dim=1)[0]  # type: ignore[union-attr]
    names = [s.name for s in compiled.form.parameters]  # type: ignore[union-attr]

    def value(numbers: Mapping[str, np.ndarray]) -> float:
        point = reference(case, scores[0].numpy(), numbers)
        case.polytope.variable.value = point
        constant = float((given["center"][0].numpy() @ point) * 0.0)
        return float(scores[0].numpy() @ point - case.expression.value) + constant

    at = 0
    for name in names:
        numbers = {n: v[0].numpy() for n, v in given.items()}
        move = np.random.default_rng(1).standard_normal(numbers[name].shape)
        move = 0.5 * (move + move.T) if move.ndim == 2 and move.shape[0] == move.shape[1] else move
        ahead, behind = (value(numbers | {name: numbers[name] + t * move}) for t in (1e-4, -1e-4))
        mine = float((found[at : at + move.size].numpy() * np.ravel(move)).sum())
        at += move.size
        assert abs(mine - (ahead - behind) / 2e-4) < 1e-5 * max(1.0, abs(mine)), name


def test_layers_can_be_copied_and_pickled() -> None:
    polytope, x, covariance = _small()
    layer = OptLayer(polytope, Regularized(0.5 * cp.quad_form(x, covariance)))
    scores = _scores(2, 4)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(
            other(scores, budget=1.0, covariance=COVARIANCE), layer(scores, budget=1.0, covariance=COVARIANCE)
        )


def test_second_derivatives_are_refused_in_words() -> None:
    polytope, x, covariance = _small()
    layer = OptLayer(polytope, Regularized(0.5 * cp.quad_form(x, covariance)))
    scores = _scores(2, 4).requires_grad_()
    found = layer(scores, budget=1.0, covariance=COVARIANCE)
    (gradient,) = torch.autograd.grad(found.square().sum(), scores, create_graph=True)
    with pytest.raises(NotImplementedError, match="take one derivative only"):
        gradient.sum().backward()


def test_it_is_printed_in_short() -> None:
    _, x, covariance = _small()
    assert repr(Regularized(0.5 * cp.quad_form(x, covariance))) == (
        "Regularized(regularizer=Declared(0.5 * QuadForm(x, covariance)))"
    )
    assert len(repr(Declared(cp.sum([cp.square(x[i]) for i in range(4)] * 9)))) < 80


def _refused() -> dict[str, tuple[Callable[[cp.Variable, cp.Parameter], Any], str]]:
    weight = cp.Parameter(nonneg=True, name="weight")
    other = cp.Parameter(nonneg=True, name="other")
    foreign = cp.Variable(name="foreign")
    return {
        "concave": (lambda x, q: cp.sum(cp.sqrt(x)), r"not convex by cvxpy's rules \(DCP\). cvxpy says: .*concave"),
        "shape": (lambda x, q: cp.square(x), r"has shape \(4,\): sum it"),
        "constant": (lambda x, q: cp.Constant(1.0), "mentions no variable"),
        "foreign": (lambda x, q: cp.sum_squares(x) + foreign**2, r"mentions foreign, .* variables are x \("),
        "nameless": (lambda x, q: cp.Parameter(nonneg=True) * cp.sum_squares(x), "has no name"),
        "products": (lambda x, q: weight * other * cp.sum_squares(x), "product of parameters"),
        "matrix": (lambda x, q: cp.quad_form(x, q + np.eye(4)), "an expression of parameters: give it as one"),
        "matrix elsewhere": (lambda x, q: cp.quad_form(x, q) + cp.sum_squares(q @ x), "used elsewhere"),
        "semidefinite": (lambda x, q: cp.sum_squares(q @ x), "covariance is declared PSD"),
        "symmetric": (lambda x, q: cp.quad_form(x, cp.Parameter((4, 4), symmetric=True, name="s")), "not convex"),
    }


@pytest.mark.parametrize("name", _refused())
def test_what_is_no_regularizer_is_refused(name: str) -> None:
    polytope, x, covariance = _small()
    make, words = _refused()[name]
    with pytest.raises(DeclarationError, match=words):
        OptLayer(polytope, Regularized(make(x, covariance)))


def test_other_refusals() -> None:
    _, x, _ = _small()
    with pytest.raises(TypeError, match="or an expression of cvxpy, but got 3"):
        Regularized(3)
    with pytest.raises(TypeError, match=r"make it a value: Euclidean\(\)"):
        Regularized(Euclidean)
    layer = OptLayer(Family(simplex), Regularized(cp.sum_squares(x)))
    with pytest.raises(DeclarationError, match="polytopes of a family have variables of their own"):
        layer(_scores(2, 4), sizes=torch.tensor([3, 4]))


def _by_cones() -> tuple[Case, Case]:
    """Two expressions that are no quadratic programs."""
    polytope, x, _ = _small()
    factor = cp.Parameter((3, 4), name="factor")
    draws = {"budget": between(0.5, 2), "factor": normal(3, 4)}
    return (
        Case(polytope, cp.norm2(factor @ x) + 0.5 * cp.sum_squares(x), draws),
        Case(polytope, 0.5 * cp.sum(-cp.entr(x)) + cp.norm1(factor @ x), draws),
    )


@pytest.mark.parametrize("which", [0, 1], ids=["norm2", "entr"])
def test_what_needs_other_cones_goes_to_a_cone_solver(which: int) -> None:
    case = _by_cones()[which]
    scores, given = case.draw(3)
    scores[0, 1] = -torch.inf
    solution = case.layer.solve(scores, **given)
    assert solution.word == "that the regularized point is best is the word of Clarabel"
    for k in range(3):
        one = {name: value[k].numpy() for name, value in given.items()}
        expected = reference(case, scores[k].numpy(), one, tolerance=1e-9)
        assert np.abs(solution.value[k].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("which", [0, 1], ids=["norm2", "entr"])
def test_the_derivative_of_a_cone_solver(which: int) -> None:
    """Its points are right to some 1e-7, so that differences are over 1e-3."""
    case = _by_cones()[which]
    scores, given = case.draw(2, seed=3)
    leaves, layer, step = {"scores": scores, **given}, case.layer, 1e-3
    wanted = _scores(2, 4, seed=1)
    for tensor in leaves.values():
        tensor.requires_grad_()
    gradients = torch.autograd.grad((layer(**leaves) * wanted).sum(), list(leaves.values()))
    with torch.no_grad():
        for (name, tensor), gradient in zip(leaves.items(), gradients, strict=True):
            move = _scores(*tensor.shape, seed=2)
            ahead, behind = ((layer(**leaves | {name: tensor + t * move}) * wanted).sum() for t in (step, -step))
            expected = (ahead - behind) / (2 * step)
            assert abs((gradient * move).sum() - expected) < 5e-4 * max(1.0, abs(expected)), name


def test_the_entropy_of_cvxpy_is_the_entropy() -> None:
    polytope, x, _ = _small()
    scores, budget = _scores(3, 4).requires_grad_(), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64).requires_grad_()
    found = []
    for regularizer in (cp.sum(-cp.entr(x)), Entropy()):
        point = OptLayer(polytope, Regularized(regularizer))(scores, budget=budget)
        gradients = torch.autograd.grad((point * _scores(4, seed=1)).sum(), (scores, budget))
        found.append((point.detach(), *gradients))
    for first, second in zip(*found, strict=True):
        assert (first - second).abs().max() < 1e-5


def test_a_cone_solver_leaves_infeasible_instances_alone() -> None:
    polytope, x, _ = _small()
    layer = OptLayer(polytope, Regularized(cp.norm2(x)), on_failure="nan")
    scores = _scores(2, 4).requires_grad_()
    found = layer(scores, budget=torch.tensor([9.0, 1.0]))
    assert found.isnan().all(dim=1).tolist() == [True, False]
    (gradient,) = torch.autograd.grad(found.nan_to_num().square().sum(), scores)
    assert (gradient[0] == 0.0).all()


def test_what_a_cone_solver_does_not_take() -> None:
    polytope, x, covariance = _small()
    with pytest.raises(DeclarationError, match=r"Pnorm\(x, 2\) in the regularizer .* give a covariance by its root"):
        OptLayer(polytope, Regularized(cp.norm2(x) + cp.quad_form(x, covariance)))
    v = cp.Variable(3, boolean=True)
    with pytest.raises(DeclarationError, match="does not take a polytope where variables are integers"):
        OptLayer(Polytope(v, [cp.sum(v) == 2]), Regularized(cp.norm2(v)))


Y, Z, LEAST = cp.Variable(2, name="y"), cp.Variable(name="z"), cp.Parameter(name="least")
BALL = Polytope(Y, [cp.norm(Y, 2) <= 1])


@pytest.mark.parametrize(
    ("polytope", "expression", "status", "said"),
    [
        (
            Polytope(Y, [Y >= 0, Y <= 1]),
            -cp.log(Y[0] - 2),
            Status.INFEASIBLE,
            "finite nowhere on the polytope: its dom",
        ),
        (Polytope(Y, [Y >= 0, Y <= 1]), -cp.sqrt(Y[0] - 2), Status.INFEASIBLE, r"its domain is 0.0 <= y\[0\]"),
        (BALL, -cp.log(Y[0] - 2), Status.INFEASIBLE, "finite nowhere on the polytope"),
        (
            Polytope(Y, [Y >= 0, Y <= 1, Y[0] == 0]),
            cp.inv_pos(Y[0]),
            Status.FAILED,
            r"no more than the edge of its dom",
        ),
        (Polytope(Y, [Y >= 0, Y <= 1, Y[0] >= Z]), cp.sum_squares(Y) + Z, Status.UNBOUNDED, "unbounded below on the"),
        (Polytope(Y, [Y >= 0, Y <= 1, Y[0] >= Z]), cp.exp(Y[0]) + Z, Status.UNBOUNDED, "unbounded below on the poly"),
    ],
    ids=["log", "sqrt", "ball", "edge", "linear", "exp"],
)
def test_an_expression_without_a_point_is_named(polytope, expression, status, said) -> None:
    layer = OptLayer(polytope, Regularized(expression), on_failure="nan")
    solution = layer.solve(torch.zeros(2, 2, dtype=torch.float64))
    assert solution.status.tolist() == [int(status)] * 2
    with pytest.raises(SolveError, match=said):
        solution.check()


def test_whether_an_expression_is_finite_is_told_by_instance() -> None:
    """By its parameters and forbidden parts; a neighbour that has points keeps its answer."""
    polytope = Polytope(Y, [Y >= 0, Y <= 1]).beside([LEAST])
    layer = OptLayer(polytope, Regularized(cp.square(Y[1]) - cp.log(Y[0] - LEAST)), on_failure="nan")
    scores, forbidden = torch.zeros(4, 2, dtype=torch.float64), torch.tensor([False, True, False, False])
    scores[forbidden, 0] = -torch.inf
    solution = layer.solve(scores, least=torch.tensor([0.5, -1.0, 2.0, -1.0], dtype=torch.float64))
    assert solution.status.tolist() == [0, 0, int(Status.INFEASIBLE), 0]
    assert "finite nowhere" in solution.failures[0].reason and solution.failures[0].index == (2,)
    torch.testing.assert_close(
        solution.value[:2, 0], torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-6, rtol=0.0
    )


@pytest.mark.parametrize("name", ["box-huber", "box-all", "auxiliary-tv"])
@pytest.mark.parametrize("scale", [1e-3, 1e2])
def test_scores_of_any_size_have_certified_answers(name: str, scale: float) -> None:
    case = CASES[name]()
    scores, given = case.draw(24, seed=11)
    regularizer = Declared(case.expression)
    compiled = compile_polytope(case.polytope.beside(regularizer.parameters))
    solution = compiled.regularized(scale * scores, regularizer, **given)
    assert solution.all_ok
    assert compiled.tangent(solution, scores).all_ok

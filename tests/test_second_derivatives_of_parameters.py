"""Second derivatives by every parameter: of rows, limits, entries of the matrix, and numbers of regularizers."""

import cvxpy as cp
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import optlayers as ol

X = cp.Variable(4)
PARAMETERS = (
    cp.Parameter(4, name="limit"),
    cp.Parameter(4, name="weight"),
    cp.Parameter(name="capacity"),
    cp.Parameter(name="total"),
)
LIMIT, WEIGHT, CAPACITY, TOTAL = PARAMETERS
POLYTOPE = ol.Polytope(X, [X >= 0, X <= LIMIT, WEIGHT @ X <= CAPACITY, cp.sum(X) == TOTAL])
NUMBER = cp.Parameter(pos=True, name="number")
RULES = {
    "SparseMAP": ol.SparseMAP(),
    "Entropy": ol.Regularized(ol.Entropy(0.5)),
    "Tsallis": ol.Regularized(ol.Tsallis(1.5)),
    "Barrier": ol.Regularized(ol.Barrier(0.1)),
    "central path": ol.CentralPath(0.1, hard=False),
    "weight": ol.Regularized(ol.Euclidean(NUMBER)),
    "temperature": ol.Regularized(ol.Entropy(NUMBER)),
    "power": ol.Regularized(ol.Tsallis(NUMBER)),
    "mu": ol.Regularized(ol.Barrier(NUMBER)),
}


def leaves(seed: int, *, number: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    scores, limit, weight = torch.randn(3, 4, generator=generator, dtype=torch.float64), uniform(3, 4), uniform(3, 4)
    capacity, total = torch.full((3,), 0.5, dtype=torch.float64), torch.full((3,), 1.1, dtype=torch.float64)
    given = [scores, limit + 0.6, weight, capacity + 0.1 * uniform(3), total + 0.1 * uniform(3)]
    if number:
        given.append(1.5 + 0.2 * uniform(3))
    return tuple(t.requires_grad_() for t in given)


def by_name(given: tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    return dict(zip([p.name() for p in (*PARAMETERS, NUMBER)], given, strict=False))


@pytest.mark.parametrize("name", RULES)
def test_rules_have_them(name):
    layer, given = ol.OptLayer(POLYTOPE, RULES[name]), leaves(0, number=bool(RULES[name].parameters))

    def points(s: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return layer(s, **by_name(parameters))

    assert gradcheck(points, given, eps=1e-6, atol=1e-6, fast_mode=True)
    assert gradgradcheck(points, given, eps=1e-6, atol=1e-5, fast_mode=True)
    slope = torch.autograd.grad((points(*given) ** 2).sum(), given, create_graph=True)
    bent = torch.autograd.grad(sum((g**2).sum() for g in slope), given)
    assert sum(bool(b.abs().sum() > 1e-6) for b in bent) >= len(given) - 2  # some limits have room


@pytest.mark.parametrize("omega", [ol.Euclidean(), ol.Entropy(0.4), ol.Tsallis(1.5)], ids=repr)
def test_optimal_values_have_them(omega):
    value, given = ol.OptimalValue(POLYTOPE, omega), leaves(1, number=False)

    def values(s: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return value(s, **by_name(parameters))

    assert gradcheck(values, given, eps=1e-6, atol=1e-6, fast_mode=True)
    assert gradgradcheck(values, given, eps=1e-6, atol=1e-5, fast_mode=True)


def test_rows_of_very_different_size_have_them_too():
    """Rows that parameters make large are solved in other units; derivatives are those of the declaration."""
    layer, given = ol.OptLayer(POLYTOPE, ol.Regularized(ol.Barrier(0.1))), leaves(0, number=False)

    def cubes(w: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        point = layer(given[0], **by_name((given[1], w * scale[:, None], given[3] * scale, given[4])))
        return (point**3).sum()

    large = torch.tensor([1e6, 1.0, 1e-6], dtype=torch.float64)
    plain, found = (torch.autograd.functional.hessian(lambda w, k=k: cubes(w, k), given[2]) for k in (large**0, large))
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-6)


def test_a_limit_that_does_not_bind_changes_nothing():
    layer = ol.OptLayer(POLYTOPE, ol.SparseMAP())
    scores, limit, weight, capacity, total = (t.detach() for t in leaves(0, number=False))
    capacity = capacity.masked_fill(torch.tensor([True, False, True]), torch.inf).requires_grad_()
    point = layer(scores, limit=limit, weight=weight, capacity=capacity, total=total)
    (slope,) = torch.autograd.grad((point**3).sum(), capacity, create_graph=True)
    assert slope.isfinite().all() and slope[0] == slope[2] == 0.0 and slope[1] != 0.0
    (second,) = torch.autograd.grad(slope.sum(), capacity)
    assert second.isfinite().all() and second[0] == second[2] == 0.0 and second[1] != 0.0


def test_bounds_with_room_have_no_price():
    """The optimal value under an entropy does not change with a limit that no part is at."""
    x, limit = cp.Variable(3, nonneg=True), cp.Parameter(3, name="limit")
    value = ol.OptimalValue(ol.Polytope(x, [cp.sum(x) == 1, x <= limit]), ol.Entropy(0.5))
    far = torch.tensor([0.9, 0.95, 0.99], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(value(torch.tensor([0.3, 0.1, -0.2], dtype=torch.float64), limit=far), far)
    assert (slope == 0.0).all()


@pytest.mark.parametrize("name", ["Barrier", "central path", "Entropy"])
def test_scores_have_them_beside_parameters_that_want_none(name):
    scores, *rest = leaves(0, number=False)
    layer, numbers = ol.OptLayer(POLYTOPE, RULES[name]), by_name(tuple(t.detach() for t in rest))
    assert gradgradcheck(lambda s: layer(s, **numbers), (scores,), eps=1e-6, atol=1e-5)


def test_a_vertex_before_a_barrier_has_the_second_derivative_of_its_point():
    """Backward is the derivative of the barrier's point at the scores, times what comes in."""
    scores, *rest = leaves(0, number=False)
    numbers, weights = by_name(tuple(t.detach() for t in rest)), torch.arange(12.0, dtype=torch.float64).reshape(3, 4)

    def slope(rule: ol.AbstractRule, s: torch.Tensor) -> torch.Tensor:
        z = ol.OptLayer(POLYTOPE, rule)(s, **numbers)
        return torch.autograd.grad((weights * z).sum(), s, create_graph=True)[0]

    found, expected = (
        torch.autograd.grad(slope(ol.CentralPath(0.1, hard=hard), scores).square().sum(), scores)[0]
        for hard in (True, False)
    )
    assert expected.abs().sum() > 1e-3
    torch.testing.assert_close(found, expected)

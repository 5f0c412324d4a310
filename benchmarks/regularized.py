"""Regularized points and quadratic programs: next to POT, entmax, torch, cvxpylayers, qpth and Moreau.

Everything in float64, forward and backward unless said otherwise. A line is two ways to the same answer, measured one
after the other in every round; the ratio is that of the medians, other over ours. ``apart`` is how far the gradients
(or the answers) of both are apart at most. Sinkhorn's iteration is run until its potentials change by less than 1e-8;
its gradient is that of its iterations, or of the fixed point by one linear system per instance, whichever is faster.
Quadratic programs and sets with curved sides are asked for at 1e-8, interior points of qpth and Moreau at 1e-12, where
their points come as near.

    python benchmarks/regularized.py --rounds 5
    python benchmarks/regularized.py --only simplex
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial

import cvxpy as cp
import numpy as np
import torch
from pairs import Group, Pair, run
from quadratic import Limits, by_moreau, by_qpth
from torch import Tensor

import optlayers as ol
import polytopes

SINKHORN = 1e-8
LONGEST = 300_000
AT_1E8 = {"solve_method": "Clarabel", "tol_gap_abs": 1e-8, "tol_gap_rel": 1e-8, "tol_feas": 1e-8}
"""The accuracy that is asked of cvxpylayers."""


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def through(layer: Callable[..., Tensor], weight: Tensor, *inputs: Tensor) -> Tensor:
    """The gradients of a weighted sum of what a layer gives, side by side."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    gradients = torch.autograd.grad((layer(*leaves) * weight).sum(), leaves)
    return torch.cat([gradient.reshape(len(gradient), -1) for gradient in gradients], dim=1)


class FixedPoint(torch.autograd.Function):
    """Sinkhorn's plan, by POT, and its derivative by the linear system of the scaling's fixed point."""

    @staticmethod
    def forward(ctx, scores: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        from ot.batch import bregman_log_projection_batch

        ones = torch.ones(scores.shape[:2], dtype=scores.dtype)
        plan = bregman_log_projection_batch(scores, ones, ones, max_iter=LONGEST, tol=SINKHORN, grad="detach")["T"]
        ctx.save_for_backward(plan)
        return plan

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        (plan,) = ctx.saved_tensors
        size = plan.shape[1]
        weighted = plan * grad
        system = torch.cat(
            [
                torch.cat([torch.diag_embed(plan.sum(2)), plan], dim=2),
                torch.cat([plan.transpose(1, 2), torch.diag_embed(plan.sum(1))], dim=2),
            ],
            dim=1,
        )
        system = system + 1e-12 * torch.eye(2 * size, dtype=plan.dtype)  # a constant may go from rows to columns
        side = torch.cat([weighted.sum(2), weighted.sum(1)], dim=1)
        prices = torch.linalg.solve(system, side)
        return plan * (grad - prices[:, :size, None] - prices[:, None, size:])


def unrolled(scores: Tensor) -> Tensor:
    """Sinkhorn's plan, by POT, differentiated through its iterations."""
    from ot.batch import bregman_log_projection_batch

    ones = torch.ones(scores.shape[:2], dtype=scores.dtype)
    plan: Tensor = bregman_log_projection_batch(scores, ones, ones, max_iter=LONGEST, tol=SINKHORN, grad="autodiff")[
        "T"
    ]
    return plan


def assignments() -> Iterator[Pair]:
    size, batch = 20, 32
    scores, weight = draw(batch, size, size), draw(batch, size, size, seed=1)
    for temperature, wanted in ((0.2, 10.0), (0.05, 100.0)):
        layer = ol.OptLayer(polytopes.matching(size), ol.Regularized(ol.Entropy(temperature)))
        ours = partial(through, layer, weight, scores)

        def implicit(temperature: float = temperature) -> Tensor:
            return through(lambda s: FixedPoint.apply(s / temperature), weight, scores)

        name = f"entropic assignment {size}, batch {batch}, temperature {temperature:g}"
        yield Pair(name, "POT, log-domain Sinkhorn, fixed point", ours, implicit, wanted, needs="ot")
        if temperature >= 0.2:  # thousands of iterations are too much for a graph

            def by_iterations(temperature: float = temperature) -> Tensor:
                return through(lambda s: unrolled(s / temperature), weight, scores)

            yield Pair(name, "the same, unrolled", ours, by_iterations, wanted, needs="ot")


def simplices() -> Iterator[Pair]:
    size, batch = 50, 128
    scores, weight = draw(batch, size), draw(batch, size, seed=1)
    simplex = polytopes.simplex(size)
    fifteen = ol.OptLayer(simplex, ol.Regularized(ol.Tsallis(1.5)))
    soft = ol.OptLayer(simplex, ol.Regularized(ol.Entropy()))

    def entmax(which: str) -> Callable[[Tensor], Tensor]:
        import entmax as peer

        if which == "bisect":
            return lambda s: peer.entmax_bisect(s, alpha=1.5, dim=1, n_iter=50)
        return lambda s: peer.entmax15(s, dim=1)

    name = f"entmax-1.5, simplex {size}, batch {batch}"
    ours = partial(through, fifteen, weight, scores)
    yield Pair(name, "entmax15", ours, lambda: through(entmax("exact"), weight, scores), 1.0, needs="entmax")
    yield Pair(name, "entmax_bisect", ours, lambda: through(entmax("bisect"), weight, scores), 1.0, needs="entmax")
    yield Pair(
        f"entropy, simplex {size}, batch {batch}",
        "torch.softmax",
        partial(through, soft, weight, scores),
        lambda: through(lambda s: torch.softmax(s, dim=1), weight, scores),
        1 / 3,
    )


def transports() -> Iterator[Pair]:
    rows, columns, batch, temperature = 8, 10, 16, 0.1
    scores, weight = draw(batch, rows, columns), draw(batch, rows, columns, seed=1)
    supply, demand = torch.softmax(draw(batch, rows, seed=2), dim=1), torch.softmax(draw(batch, columns, seed=3), dim=1)
    x = cp.Variable((rows, columns), nonneg=True)
    left, right = cp.Parameter(rows, name="supply"), cp.Parameter(columns, name="demand")
    constraints = [cp.sum(x, axis=1) == left, cp.sum(x, axis=0) == right]
    layer = ol.OptLayer(ol.Polytope(x, constraints), ol.Regularized(ol.Entropy(temperature)))

    def ours() -> Tensor:
        return through(lambda s, a, b: layer(s, supply=a, demand=b), weight, scores, supply, demand)[
            :, : rows * columns
        ]

    @cache
    def peer() -> Callable[..., Tensor]:
        from cvxpylayers.torch import CvxpyLayer

        costs = cp.Parameter((rows, columns))
        objective = cp.Maximize(cp.sum(cp.multiply(costs, x)) + temperature * cp.sum(cp.entr(x)))
        made = CvxpyLayer(cp.Problem(objective, constraints), [costs, left, right], [x])
        return lambda *given: made(*given)[0]

    def theirs() -> Tensor:
        return through(peer(), weight, scores, supply, demand)[:, : rows * columns]

    name = f"transport {rows} × {columns} with predicted marginals, entropy {temperature:g}, batch {batch}"
    yield Pair(name, "cvxpylayers, exponential cones", ours, theirs, 100.0)


def covariances(size: int, factors: int, count: tuple[int, ...], seed: int) -> Tensor:
    """Symmetric positive definite matrices, as those of returns with common factors."""
    loadings = draw(*count, size, factors, seed=seed)
    noise = 0.1 + torch.rand(*count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return loadings @ loadings.mT / factors + torch.diag_embed(noise)


def both(solve: Callable[[Tensor, Tensor], Tensor], weight: Tensor, scores: Tensor, matrix: Tensor) -> Tensor:
    """The gradients of scores and of the symmetric part of matrices, in one row."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (scores, matrix)]
    of_scores, of_matrix = torch.autograd.grad((solve(*leaves) * weight).sum(), leaves)
    return torch.cat([of_scores.reshape(-1), (0.5 * (of_matrix + of_matrix.mT)).reshape(-1)])


def by_cvxpylayers(polytope: ol.Polytope) -> Callable[[Tensor, Tensor], Tensor]:
    """A matrix is given by its root, as cvxpy's rules for parameters ask for."""
    from cvxpylayers.torch import CvxpyLayer

    x = polytope.variable
    score, root = cp.Parameter(x.shape), cp.Parameter((x.size, x.size))
    problem = cp.Problem(cp.Minimize(0.5 * cp.sum_squares(root @ x) - score @ x), list(polytope.constraints))
    layer = CvxpyLayer(problem, [score, root], [x], solver_args=AT_1E8)
    return lambda s, q: layer(s, torch.linalg.cholesky(q).mT)[0]


def programs(
    name: str, polytope: ol.Polytope, limits: Limits, numbers: tuple[Tensor, Tensor], wanted: dict[str, float]
) -> Iterator[Pair]:
    """A quadratic program next to those of its peers that something is ``wanted`` of."""
    scores, matrix = numbers
    weight, size = draw(*scores.shape, seed=1), scores.shape[1]
    covariance = cp.Parameter((size, size), PSD=True, name="covariance")
    layer = ol.OptLayer(polytope, ol.Regularized(0.5 * cp.quad_form(polytope.variable, covariance)))

    def ours() -> Tensor:
        return both(lambda s, q: layer(s, covariance=q), weight, scores, matrix)

    def pair(peer: str, solve: Callable[[], Callable[[Tensor, Tensor], Tensor]], needs: str) -> Pair:
        made: list[Callable[[Tensor, Tensor], Tensor]] = []

        def theirs() -> Tensor:
            if not made:
                made.append(solve())
            return both(made[0], weight, scores, matrix)

        return Pair(name, peer, ours, theirs, wanted[needs], needs=needs)

    if "cvxpylayers" in wanted:
        yield pair("cvxpylayers, Clarabel", partial(by_cvxpylayers, polytope), "cvxpylayers")
    yield pair("qpth", partial(by_qpth, limits), "qpth")
    batch = len(scores)
    yield pair("Moreau, active set", partial(by_moreau, limits, batch, "active_set"), "moreau")
    yield pair("Moreau, interior point", partial(by_moreau, limits, batch, "ipm"), "moreau")


def portfolios() -> Iterator[Pair]:
    assets, sectors, batch, most = 50, 5, 64, 0.3
    x = cp.Variable(assets, nonneg=True)
    member = np.kron(np.eye(sectors), np.ones(assets // sectors))
    polytope = ol.Polytope(x, [cp.sum(x) == 1, member @ x <= most])
    rows = np.concatenate([member, -np.eye(assets)])
    limits = Limits(rows, np.r_[np.full(sectors, most), np.zeros(assets)], np.ones((1, assets)), np.ones(1))
    numbers = 0.3 * draw(batch, assets), covariances(assets, 10, (batch,), seed=2)
    name = f"portfolio of {assets} assets in {sectors} sectors, covariance predicted, batch {batch}"
    yield from programs(name, polytope, limits, numbers, {"cvxpylayers": 10.0, "qpth": 5.0, "moreau": 5.0})


def boxes() -> Iterator[Pair]:
    size, batch, budget = 100, 128, 20.0
    x = cp.Variable(size, nonneg=True)
    polytope = ol.Polytope(x, [x <= 1, cp.sum(x) == budget])
    rows, most = np.concatenate([np.eye(size), -np.eye(size)]), np.r_[np.ones(size), np.zeros(size)]
    limits = Limits(rows, most, np.ones((1, size)), np.full(1, budget))
    numbers = 3.0 * draw(batch, size), covariances(size, size, (), seed=2)
    name = f"box and budget, n = {size}, one matrix that is learned, batch {batch}"
    yield from programs(name, polytope, limits, numbers, {"qpth": 5.0, "moreau": 3.0})


def curved() -> Iterator[Pair]:
    size, batch = 5, 64
    x, radius = cp.Variable(size), cp.Parameter(name="radius")
    square = cp.Variable((size, size), symmetric=True)
    radii = 0.5 + torch.rand(batch, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sets = {
        f"norm ball {size}, radius predicted, batch {batch}": (ol.Polytope(x, [cp.norm(x) <= radius]), [radii]),
        f"spectraplex {size}, batch {batch}": (ol.Polytope(square, [square >> 0, cp.trace(square) == 1]), []),
    }
    for name, (polytope, given) in sets.items():
        scores, weight = draw(batch, *polytope.shape), draw(batch, *polytope.shape, seed=1)
        yield Pair(
            name,
            "cvxpylayers, Clarabel",
            partial(through, _named(ol.OptLayer(polytope, ol.SparseMAP()), polytope), weight, scores, *given),
            partial(through, _projection(polytope), weight, scores, *given),
            1.0,
        )


def _named(layer: ol.OptLayer, polytope: ol.Polytope) -> Callable[..., Tensor]:
    names = [parameter.name() for parameter in polytope.parameters]
    return lambda scores, *given: layer(scores, **dict(zip(names, given, strict=True)))


def _projection(polytope: ol.Polytope) -> Callable[..., Tensor]:
    from cvxpylayers.torch import CvxpyLayer

    x, score = polytope.variable, cp.Parameter(polytope.shape)
    objective = cp.Minimize(0.5 * cp.sum_squares(x) - cp.sum(cp.multiply(score, x)))
    problem = cp.Problem(objective, list(polytope.constraints))
    layer = CvxpyLayer(problem, [score, *polytope.parameters], [x], solver_args=AT_1E8)
    return lambda *given: layer(*given)[0]


GROUPS: dict[str, Group] = {
    "portfolio": (portfolios, None),
    "box": (boxes, None),
    "curved": (curved, None),
    "assignment": (assignments, None),
    "simplex": (simplices, None),
    "transport": (transports, None),
}


def main() -> None:
    """Measure, print a table and write it as CSV."""
    run(__doc__, "regularized", "regularized, ms per batch", GROUPS)


if __name__ == "__main__":
    main()

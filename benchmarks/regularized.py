"""Regularized points and quadratic programs: next to POT, entmax, torch, cvxpylayers, qpth and Moreau.

Everything in float64, forward and backward unless said otherwise. A line is two ways to the same answer, measured one
after the other in every round; the ratio is that of the medians, other over ours. ``apart`` is how far the gradients
(or the answers) of both are apart at most. Sinkhorn's iteration is run until its potentials change by less than 1e-8;
its gradient is that of its iterations, or of the fixed point by one linear system per instance, whichever is faster.

    python benchmarks/regularized.py --rounds 5
    python benchmarks/regularized.py --only simplex
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import cvxpy as cp
import torch
from pairs import Group, Pair, run
from torch import Tensor

import optlayers as ol
import polytopes

SINKHORN = 1e-8
LONGEST = 300_000


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

    def theirs() -> Tensor:
        from cvxpylayers.torch import CvxpyLayer

        costs = cp.Parameter((rows, columns))
        objective = cp.Maximize(cp.sum(cp.multiply(costs, x)) + temperature * cp.sum(cp.entr(x)))
        peer = CvxpyLayer(cp.Problem(objective, constraints), [costs, left, right], [x])
        return through(lambda s, a, b: peer(s, a, b)[0], weight, scores, supply, demand)[:, : rows * columns]

    name = f"transport {rows} × {columns} with predicted marginals, entropy {temperature:g}, batch {batch}"
    yield Pair(name, "cvxpylayers, exponential cones", ours, theirs, 100.0)


GROUPS: dict[str, Group] = {
    "assignment": (assignments, None),
    "simplex": (simplices, None),
    "transport": (transports, None),
}


def main() -> None:
    """Measure, print a table and write it as CSV."""
    run(__doc__, "regularized", "regularized, ms per batch", GROUPS)


if __name__ == "__main__":
    main()

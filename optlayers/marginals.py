"""Log-partition functions of a batch, and the verdict on the marginals that they give."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.enumeration import log_sum_over
from optlayers.inputs import of_structure
from optlayers.solution import Solution, Status
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import distance_from_rows
from optlayers.standard_form import StandardForm

__all__ = ["by_value", "judge_marginals", "log_partition", "marginals_and_total"]

INSIDE = 1e-7
"""Marginals may violate rows by so much, relative to right-hand sides."""


def log_partition(
    form: StandardForm,
    theta: Float64[Tensor, "batch parameters"],
    forbidden: Bool[Tensor, "batch size"] | None,
    scores: Float64[Tensor, "batch size"],
    vertices: Callable[[np.ndarray], np.ndarray],
) -> Float64[Tensor, " batch"]:
    """By the function of the declaration, or over ``vertices(parameters)`` where it has none."""
    if forbidden is not None:
        scores = scores.masked_fill(forbidden, -torch.inf)
    function, batch = form.polytope.log_partition, len(scores)
    if function is None:
        return _sum_over_vertices(theta, scores, vertices)
    arrays = [of_structure(scores, form.structure_size).reshape(batch, *form.shape)]
    arrays += [scores[:, spec.span].reshape(batch, *spec.shape) for spec in form.auxiliaries]
    arrays += [theta[:, spec.span].reshape(batch, *spec.shape) for spec in form.parameters]
    total = function(*arrays)
    if tuple(total.shape) != (batch,):
        raise ValueError(
            f"log_partition returned shape {tuple(total.shape)} for scores of shape {tuple(arrays[0].shape)}; it must "
            f"return {(batch,)}, a number per instance"
        )
    return total


def _sum_over_vertices(
    theta: Float64[Tensor, "batch parameters"],
    scores: Float64[Tensor, "batch size"],
    vertices: Callable[[np.ndarray], np.ndarray],
) -> Float64[Tensor, " batch"]:
    if len(scores) == 0:
        return scores.sum(dim=1)  # empty, and part of the graph
    total = scores.new_zeros(len(scores))
    for rows, mine in by_value(theta, vertices):
        total = total.index_put((rows,), log_sum_over(mine, scores[rows]))
    return total


def by_value(
    theta: Float64[Tensor, "batch parameters"], vertices: Callable[[np.ndarray], np.ndarray]
) -> Iterator[tuple[Int64[Tensor, " rows"], Float64[Tensor, "vertices size"]]]:
    """The instances of each value of the parameters, with the vertices, which are enumerated once for them."""
    distinct, which = np.unique(theta.cpu().numpy(), axis=0, return_inverse=True)
    for position, values in enumerate(distinct):
        rows = torch.from_numpy(np.flatnonzero(which.reshape(-1) == position)).to(theta.device)
        yield rows, torch.from_numpy(vertices(values)).to(theta.device)


def marginals_and_total(
    log_partition_of: Callable[[Tensor], Tensor], scores: Float64[Tensor, "batch size"], *, differentiable: bool = False
) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, " batch"]]:
    """The gradient of a log-partition function, and its value; with a graph on ``scores`` where ``differentiable``."""
    with torch.enable_grad():
        leaf = scores if differentiable else scores.detach().requires_grad_()
        total = log_partition_of(leaf)
        (means,) = torch.autograd.grad(total, leaf, torch.ones_like(total), create_graph=differentiable)
    return means, total.detach()


def judge_marginals(
    form: StandardForm,
    instances: Instances,
    marginals: Float64[Tensor, "batch size"],
    total: Float64[Tensor, " batch"],
) -> Solution:
    """Certified where there are structures, and where the marginals satisfy those rows that can be checked."""
    residual, relative = distance_from_rows(form, instances, marginals.cpu().numpy())
    sums = total.cpu().numpy()
    status, reasons = np.zeros(len(sums), dtype=np.int8), {}
    if np.count_nonzero(relative <= INSIDE) < len(sums) or not np.isfinite(sums).all():
        for k in np.flatnonzero(~(relative <= INSIDE)):
            status[k] = Status.INACCURATE
            reasons[int(k)] = f"the marginals of log_partition leave the polytope by {residual[k]:.3g}"
        for k in np.flatnonzero(~np.isfinite(sums)):
            status[k] = Status.INFEASIBLE
            reasons[int(k)] = "no structure does without the forbidden parts"
    home = marginals.device
    return Solution(
        marginals,
        torch.from_numpy(status).to(home),
        torch.from_numpy(residual).to(home),
        torch.from_numpy(np.full(len(sums), np.nan)).to(home),
        reasons,
    )

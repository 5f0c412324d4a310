"""Log-partition functions of a batch, and the verdict on the marginals that they give."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, final

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from optlayers.bound.base import Marginals
from optlayers.common.tensors import all_finite, of_structure
from optlayers.compiled_oracle import name_of
from optlayers.form.standard import StandardForm
from optlayers.solution import Solution, Status
from optlayers.solvers.base import Instances
from optlayers.solvers.batch import distance_from_rows
from optlayers.sums.structure_sums import AbstractSums
from optlayers.vertices.enumeration import TooMany, Unsolved

__all__ = ["LogPartition", "Reasons", "by_value", "derivative_failures", "judge_marginals"]

T = TypeVar("T")
INSIDE = 1e-7
"""Marginals may violate rows by so much, relative to right-hand sides."""
NO_GRADIENT = (
    "has no gradient for the scores: it is written in torch operations, without detach(), item() or NumPy, so that "
    "marginals can be its derivative"
)
SAFE = (
    "torch.logsumexp and torch.logaddexp have NaN for a derivative where all terms are -inf: use optlayers.log_sum and "
    "optlayers.log_add; see optlayers.testing.check_log_partition"
)
NO_FACE = (
    "marginals need the vertices without the forbidden parts, but one of these parts (of score -inf) is below 0 in one "
    "vertex and above 0 in another: where it is 0 are no vertices, in general. Leave the part out by a constraint"
)
WITHOUT_VERTICES = (
    "; declare the polytope with log_partition= to have marginals, or use a rule that only projects, such as "
    "SparseMAP()"
)
NOT_OF_AN_INSTANCE = (MemoryError, torch.cuda.OutOfMemoryError)
"""What the whole batch is to blame for."""
Reasons = dict[int, str]
"""Why instances have no log-partition function."""


@final
@dataclass(frozen=True)
class LogPartition:
    """The log-partition function of a batch of polytopes: that of the declaration, or that of ``sums(parameters)``.

    Instances that it cannot be worked out for have NaN, and ``reasons`` are noted for them.
    """

    form: StandardForm
    theta: Float64[Tensor, "batch parameters"]
    forbidden: Bool[Tensor, "batch size"] | None
    sums: Callable[[np.ndarray], AbstractSums]

    def take(self, rows: Int64[Tensor, " rows"] | slice) -> LogPartition:
        """That of some instances."""
        forbidden = None if self.forbidden is None else self.forbidden[rows]
        return LogPartition(self.form, self.theta[rows], forbidden, self.sums)

    def value(self, scores: Float64[Tensor, "batch size"], reasons: Reasons) -> Float64[Tensor, " batch"]:
        """For scores that may have a graph."""
        if len(scores) == 0:
            return scores.sum(dim=1)  # empty, and part of the graph
        if self.forbidden is not None:
            scores = scores.masked_fill(self.forbidden, -torch.inf)
        form, batch, function = self.form, len(scores), self.form.polytope.log_partition
        if function is None:
            return _sum_over_structures(self.theta, scores, self.sums, reasons)
        arrays = [of_structure(scores, form.structure_size).reshape(batch, *form.shape)]
        arrays += [scores[:, spec.span].reshape(batch, *spec.shape) for spec in form.scored_auxiliaries]
        arrays += [self.theta[:, spec.span].reshape(batch, *spec.shape) for spec in form.parameters]
        return _by_function(function, arrays, 0, reasons)

    def gradient(
        self, scores: Float64[Tensor, "batch size"], reasons: Reasons, *, differentiable: bool = False
    ) -> tuple[Float64[Tensor, "batch size"], Float64[Tensor, " batch"]]:
        """The gradient, which are the marginals, and the value; the former with a graph where ``differentiable``.

        Where the derivative of the function raises, each half of the batch is tried by itself.
        """
        with torch.enable_grad():
            leaf = scores if differentiable else scores.detach().requires_grad_()
            return self._gradient(leaf, 0, reasons, differentiable)

    def _gradient(self, leaf: Tensor, first: int, reasons: Reasons, differentiable: bool) -> tuple[Tensor, Tensor]:
        batch = len(leaf)
        told: Reasons = {}
        total = self.value(leaf, told)
        if not total.requires_grad and bool(torch.isnan(total).all()):  # it fails for all instances
            reasons.update({first + k: reason for k, reason in told.items()})
            return torch.zeros_like(leaf), total.detach()
        try:
            (means,) = torch.autograd.grad(
                total, leaf, torch.ones_like(total), create_graph=differentiable, allow_unused=True
            )
        except NOT_OF_AN_INSTANCE:
            raise
        except Exception as error:  # as for the function itself
            if self.form.polytope.log_partition is None:
                raise
            if batch == 1:
                reasons[first] = f"the derivative of {_raised(self.form.polytope.log_partition, error)}"
                return torch.zeros_like(leaf), torch.full_like(total, torch.nan)
            half = batch // 2
            left = self.take(slice(0, half))._gradient(leaf[:half], first, reasons, differentiable)
            right = self.take(slice(half, batch))._gradient(leaf[half:], first + half, reasons, differentiable)
            return torch.cat([left[0], right[0]]), torch.cat([left[1], right[1]])
        if means is None:
            raise TypeError(f"log_partition {NO_GRADIENT}")
        reasons.update({first + k: reason for k, reason in told.items()})
        return means, total.detach()

    def marginals(
        self,
        scores: Float64[Tensor, "batch size"],
        verdict: Callable[[Tensor, Tensor, Reasons], Solution],
        *,
        differentiable: bool = False,
    ) -> Marginals:
        """Marginals with their verdict."""
        reasons: Reasons = {}
        means, total = self.gradient(scores, reasons, differentiable=differentiable)
        # What the caller gets, and may write to, is not what the graph holds.
        value = means.detach().clone() if differentiable else means
        return Marginals(means, total, verdict(value, total, reasons))


def _by_function(
    function: Callable[..., Tensor], arrays: Sequence[Tensor], first: int, reasons: Reasons
) -> Float64[Tensor, " batch"]:
    """Where it raises, each half of the batch by itself: what raises in the end are the instances that it fails for."""
    batch = len(arrays[0])
    try:
        total = function(*arrays)
    except NOT_OF_AN_INSTANCE:
        raise
    except Exception as error:  # whatever a user's function raises belongs to its instances
        if batch == 1:
            reasons[first] = _raised(function, error)
            return torch.full((1,), torch.nan, dtype=torch.float64, device=arrays[0].device)
        half = batch // 2
        return torch.cat(
            [
                _by_function(function, [array[:half] for array in arrays], first, reasons),
                _by_function(function, [array[half:] for array in arrays], first + half, reasons),
            ]
        )
    return _checked_total(total, arrays[0])


def _raised(function: Callable[..., Tensor], error: Exception) -> str:
    """What a function raised, and where, by the last line of Python."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"log_partition {name_of(function)} raised {type(error).__name__}: {error}{place}"


def _checked_total(total: object, scores: Tensor) -> Float64[Tensor, " batch"]:
    batch = len(scores)
    if not isinstance(total, Tensor):
        raise TypeError(f"log_partition returned {type(total).__name__}; it must return a tensor {(batch,)}")
    if tuple(total.shape) != (batch,):
        raise ValueError(
            f"log_partition returned shape {tuple(total.shape)} for scores of shape {tuple(scores.shape)}; it must "
            f"return {(batch,)}, a number per instance"
        )
    if not total.dtype.is_floating_point:
        raise TypeError(f"log_partition returned {total.dtype}; it must return real numbers")
    if scores.requires_grad and not total.requires_grad:
        raise TypeError(f"log_partition {NO_GRADIENT}")
    return total.to(torch.float64)


def _sum_over_structures(
    theta: Float64[Tensor, "batch parameters"],
    scores: Float64[Tensor, "batch size"],
    sums_of: Callable[[np.ndarray], AbstractSums],
    reasons: Reasons,
) -> Float64[Tensor, " batch"]:
    total = torch.full_like(scores[:, 0], torch.nan)
    for rows, mine in by_value(theta, sums_of, reasons):
        sums = mine.log_sum(scores[rows])
        unclear = mine.without_a_face(scores[rows])
        if bool(unclear.any()):
            reasons.update(dict.fromkeys(rows[unclear].tolist(), NO_FACE))
            sums = sums.masked_fill(unclear, torch.nan)
        total = total.index_put((rows,), sums)
    return total


def by_value(
    theta: Float64[Tensor, "batch parameters"],
    make: Callable[[np.ndarray], T],
    reasons: Reasons,
    advice: str = WITHOUT_VERTICES,
) -> Iterator[tuple[Int64[Tensor, " rows"], T]]:
    """The instances of each value of the parameters, with what is made of it, once for them.

    Instances whose structures are not known are left out, and have ``reasons``. Where there are too many to enumerate,
    ``advice`` says what else to do.
    """
    distinct, which = np.unique(theta.cpu().numpy(), axis=0, return_inverse=True)
    for position, values in enumerate(distinct):
        rows = np.flatnonzero(which.reshape(-1) == position)
        try:
            mine = make(values)
        except TooMany as error:
            raise ValueError(f"{error}{advice}") from None
        except Unsolved as error:
            reasons.update(dict.fromkeys(rows.tolist(), str(error)))
            continue
        yield torch.from_numpy(rows).to(theta.device), mine


def judge_marginals(
    form: StandardForm,
    instances: Instances,
    marginals: Float64[Tensor, "batch size"],
    total: Float64[Tensor, " batch"],
    reasons: Mapping[int, str],
) -> Solution:
    """Certified where there are structures, and where the marginals satisfy those rows that can be checked."""
    residual, relative = distance_from_rows(form, instances, marginals.cpu().numpy())
    sums = total.cpu().numpy()
    status, why = np.zeros(len(sums), dtype=np.int8), {}
    if np.count_nonzero(relative <= INSIDE) < len(sums) or not np.isfinite(sums).all():
        for k in np.flatnonzero(~(relative <= INSIDE)):
            status[k] = Status.INACCURATE
            what = f"leave the polytope by {residual[k]:.3g}" if np.isfinite(residual[k]) else f"are not finite; {SAFE}"
            why[int(k)] = f"the marginals of log_partition {what}"
        for k in np.flatnonzero(~np.isfinite(sums)):
            nothing = bool(sums[k] == -np.inf)
            status[k] = Status.INFEASIBLE if nothing else Status.FAILED
            told = _nothing(instances, int(k)) if nothing else f"log_partition is {sums[k]}; {SAFE}"
            why[int(k)] = reasons.get(int(k), told)
    home = marginals.device
    return Solution(
        marginals,
        torch.from_numpy(status).to(home),
        torch.from_numpy(residual).to(home),
        torch.from_numpy(np.full(len(sums), np.nan)).to(home),
        why,
    )


def derivative_failures(product: Float64[Tensor, "batch size"]) -> tuple[Solution, ...]:
    """The verdict on derivatives of marginals: none where all are finite, else one in which some instances fail."""
    if all_finite(product):
        return ()
    bad = ~torch.isfinite(product).all(dim=1)
    nothing = torch.full_like(product[:, 0], torch.nan)
    good = Solution(product, torch.zeros_like(bad, dtype=torch.int8), nothing, nothing)
    return (good.failing(bad, f"the second derivative of log_partition is not finite; {SAFE}"),)


def _nothing(instances: Instances, k: int) -> str:
    if instances.forbidden is not None and bool(instances.forbidden[k].any()):
        return "no structure does without the forbidden parts"
    return "it has no structure"

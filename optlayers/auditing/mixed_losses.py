"""Whether the loss of every instance is one of its own structure alone, as an audit takes it to be."""

from __future__ import annotations

import torch
from torch import Tensor

from optlayers.auditing.problem import Problem

__all__ = ["refuse_mixed_losses"]

TRIES = 4
"""So often are structures exchanged in each of two ways."""


def refuse_mixed_losses(problem: Problem) -> None:
    """Exchange the structures of some instances, and look at the losses of those that keep theirs.

    They are those of one half and then of the other, which are given what is far from their own; and those of all but
    one, which are given what is best for the same scores, so that a maximum over the batch is another one. What is put
    in their place are best vertices of the same instances at other scores: each fits the size, the mask and the gold
    structure that the objective may hold for its instance. An objective that is random is not judged: asked twice for
    the same structures, it does not give the same losses.

    Raises
    ------
    ValueError : the loss of an instance changes although its structure does not.
    """
    if problem.count < 2:
        return
    generator = torch.Generator().manual_seed(0)
    own = problem.structures_at(problem.numbers)
    before = problem.losses_of(own)
    near = torch.finfo(problem.scores.dtype).eps ** 0.5
    for k in range(2 * TRIES):
        order = torch.randperm(problem.count, generator=generator)
        together = bool(k % 2)
        other = problem.structures_at(_scores(problem, generator, together))
        half = order < problem.count // 2
        for moved in (order != 0, order != 1) if together else (half, ~half):
            mixed = _mixed(problem, own, other, moved)
            after = problem.losses_of(mixed)
            close = (after - before).abs() <= near * torch.maximum(before.abs().max(), after[~moved].abs().max())
            wrong = ~(close | moved)
            if bool(wrong.any()) and _same_again(problem, own, before) and _same_again(problem, mixed, after):
                i = int(torch.nonzero(wrong)[0])
                raise ValueError(
                    f"objective must give every instance a loss of its own structure alone, but the loss of instance "
                    f"{_place(problem, i)} changes from {before[i].item():.6g} to {after[i].item():.6g} when the "
                    "structures of other instances do and its own does not. Leave out what is taken over the batch: a "
                    "mean or a maximum that losses are compared with, a softmax over instances, batch normalization "
                    "in training mode; or compute such a number once, outside of objective"
                )


def _scores(problem: Problem, generator: torch.Generator, together: bool) -> Tensor:
    """Scores that lead to other structures: the same for all instances, or each one's own turned around their mean,
    under noise."""
    movable, numbers = problem.movable, problem.numbers
    noise = torch.randn(numbers.shape, generator=generator, dtype=torch.float64)
    if together:
        return torch.where(movable, noise[0], numbers)
    kept = torch.where(movable, numbers, 0.0)
    mean = kept.sum(dim=1, keepdim=True) / movable.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(movable, 2.0 * mean - kept + problem.spread[:, None] * noise, numbers)


def _mixed(problem: Problem, own: Tensor, other: Tensor, moved: Tensor) -> Tensor:
    """Structures of both, the other one where an instance is moved and has one."""
    flat = other.reshape(problem.count, -1)
    taken = moved.to(flat.device) & torch.isfinite(flat).all(dim=1)
    return torch.where(taken[:, None], flat, own.reshape(problem.count, -1)).reshape(own.shape)


def _same_again(problem: Problem, structures: Tensor, losses: Tensor) -> bool:
    """Whether the objective gives these losses twice more, to the last digit or nearly."""
    near = torch.finfo(problem.scores.dtype).eps ** 0.5
    return all(
        torch.allclose(problem.losses_of(structures), losses, rtol=near, atol=0.0, equal_nan=True) for _ in range(2)
    )


def _place(problem: Problem, index: int) -> str:
    """The number of an instance, or its place in several batch dimensions."""
    if len(problem.batch) == 1:
        return str(index)
    return str(tuple(int(k) for k in torch.unravel_index(torch.tensor(index), problem.batch)))

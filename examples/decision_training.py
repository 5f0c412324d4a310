"""Train a linear model of the scores by one method, choose by the regret on dev, report the regret on test."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from decision_methods import METHODS, TWO_STAGE, Known, Loss, least_squares
from decision_problems import PROBLEMS, Data, Problem, Split, draw_data
from torch import Tensor

import optlayers as ol

__all__ = ["Candidate", "Run", "draw", "train"]


@dataclass(frozen=True)
class Run:
    """One method on one draw of a problem: ``seed`` decides on the truth, the instances and the training."""

    problem: str
    degree: int
    noise: float
    method: str
    seed: int
    epochs: int
    sizes: tuple[int, int, int] = (1000, 250, 1000)
    learning_rates: tuple[float, ...] = (0.1, 0.03, 0.01)
    batch_size: int = 50


@dataclass(frozen=True)
class Candidate:
    """A model of its best epoch: by which variant and learning rate, after which epoch, its regret on dev."""

    variant: str
    learning_rate: float
    epoch: int
    dev: float
    model: Tensor


def train(run: Run) -> dict[str, Any]:
    """All variants and learning rates of the method; the best on dev is measured on test.

    Regrets are normalized: their sum over the instances divided by that of the absolute optimal values.
    """
    problem, data = draw(run)
    compiled = ol.compile_polytope(problem.polytope)
    start = time.process_time()  # other runs share the machine
    if run.method == TWO_STAGE:
        model = least_squares(with_constant(data.train.features), data.train.scores)
        candidates = [Candidate("", 0.0, 0, regret(compiled, model, data.dev), model)]
    else:
        candidates = descend_all(run, compiled, data)
    best = min(candidates, key=lambda c: c.dev)
    return {
        "regret": regret(compiled, best.model, data.test),
        **_told(best),
        "seconds": time.process_time() - start,
        "candidates": [_told(c) for c in candidates],
    }


def _told(candidate: Candidate) -> dict[str, Any]:
    return {
        "variant": candidate.variant,
        "learning_rate": candidate.learning_rate,
        "epoch": candidate.epoch,
        "dev": candidate.dev,
    }


def draw(run: Run) -> tuple[Problem, Data]:
    """The problem and the data of a run, which are those of every method."""
    generator = torch.Generator().manual_seed(run.seed)
    problem = PROBLEMS[run.problem](generator)
    return problem, draw_data(problem, run.degree, run.noise, run.sizes, generator)


def with_constant(features: Tensor) -> Tensor:
    """A feature that is always 1, last."""
    return torch.cat([features, features.new_ones(len(features), 1)], dim=1)


def regret(compiled: ol.CompiledPolytope, model: Tensor, split: Split) -> float:
    """The normalized regret of deciding by a model ``(parts, features + 1)``."""
    predicted = with_constant(split.features) @ model.detach().mT
    return ol.regret(compiled, predicted, split.scores, normalized=True).item()


def descend_all(run: Run, compiled: ol.CompiledPolytope, data: Data) -> list[Candidate]:
    """The candidates of all variants."""
    known = Known(data.train.scores, compiled.maximize(data.train.scores).check().value)
    variants = METHODS[run.method]
    found: list[Candidate] = []
    for variant, make in variants.items():
        descent = _Descent(run, compiled, data, known, make(compiled))
        best: list[Candidate] = []
        for epoch in range(1, run.epochs + 1):
            now = descent.after_an_epoch(variant, epoch)
            best = [min(pair, key=lambda c: c.dev) for pair in zip(best or now, now, strict=True)]
        found += best
    return found


class _Descent:
    """Adam with every learning rate at once: the models start alike, see the same batches and go their own ways.

    As one batch of instances they share the cost of every call.
    """

    def __init__(self, run: Run, compiled: ol.CompiledPolytope, data: Data, known: Known, loss: Loss) -> None:
        self.run, self.compiled, self.data, self.known, self.loss = run, compiled, data, known, loss
        self.generator = torch.Generator().manual_seed(run.seed)
        self.features = with_constant(data.train.features)
        parts, size = known.scores.shape[1], self.features.shape[1]
        start = 2 * torch.rand(parts, size, generator=self.generator, dtype=torch.float64) - 1
        self.models = [(start / size**0.5).requires_grad_() for _ in run.learning_rates]
        self.optimizer = torch.optim.Adam(
            [{"params": [model], "lr": rate} for model, rate in zip(self.models, run.learning_rates, strict=True)]
        )

    def after_an_epoch(self, variant: str, epoch: int) -> list[Candidate]:
        """One more pass over the training instances, and where every learning rate is then."""
        self._pass_once()
        return [
            Candidate(variant, rate, epoch, regret(self.compiled, model, self.data.dev), model.detach().clone())
            for model, rate in zip(self.models, self.run.learning_rates, strict=True)
        ]

    def _pass_once(self) -> None:
        order = torch.randperm(len(self.features), generator=self.generator)
        for index in order.split(self.run.batch_size):
            predicted = self.features[index] @ torch.stack(self.models).mT  # (learning rates, batch, parts)
            known = Known(
                self.known.scores[index].expand_as(predicted), self.known.decisions[index].expand_as(predicted)
            )
            self.optimizer.zero_grad()
            self.loss(predicted, known, self.generator).backward()
            self.optimizer.step()

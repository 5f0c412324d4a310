"""One run: a rule, a problem and a seed; trained by the labels alone, measured after every epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from latent_data import SPLITS, Problem, Split, draw_problem
from latent_models import AbstractModel, model_for
from latent_rules import MARKS, RULES
from sklearn.metrics import v_measure_score
from torch import Tensor

import optlayers as ol

__all__ = ["MEASURES", "Run", "agreement", "train"]

MEASURES = ("dev_accuracy", "dev_agreement", "test_accuracy", "test_agreement")


@dataclass(frozen=True)
class Run:
    """``rule`` is a key of RULES or one of MARKS; ``strength`` its hyperparameter, None where it has none."""

    structure: str
    size: int
    rule: str
    strength: float | None
    learning_rate: float
    seed: int
    epochs: int
    batch_size: int = 250
    train_size: int = SPLITS["train"]


def train(run: Run) -> dict[str, Any]:
    """The measures after every epoch, as lists, and the processor's seconds.

    The seed draws the problem, the initial weights, the order of the instances and what the rule draws. Adam, with a
    learning rate that falls linearly to 0.
    """
    start = time.process_time()
    problem = draw_problem(run.structure, run.size, run.seed, run.train_size)
    torch.manual_seed(run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    model = model_for(problem)
    middle = _middle(run, problem)
    optimizer = torch.optim.Adam(model.parameters(), lr=run.learning_rate, fused=True)
    steps = run.epochs * -(-run.train_size // run.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    curve: dict[str, list[float]] = {name: [] for name in MEASURES}
    for _ in range(run.epochs):
        for index in torch.randperm(run.train_size, generator=generator).split(run.batch_size):
            losses = middle.losses(model, problem.train, index, generator)
            optimizer.zero_grad()
            losses.sum().backward()  # not the mean: the signal of an instance does not depend on its batch
            optimizer.step()
            schedule.step()
        for name, split in (("dev", problem.dev), ("test", problem.test)):
            accuracy, agrees = _measure(model, middle, problem, split)
            curve[f"{name}_accuracy"].append(accuracy)
            curve[f"{name}_agreement"].append(agrees)
    return {**curve, "seconds": time.process_time() - start}


@dataclass(frozen=True)
class _Middle:
    """What stands between encoder and decoder: a layer, or a function of a split for the marks."""

    layer: ol.OptLayer | None
    given: Callable[[Split], Tensor] | None
    vertices: ol.CompiledPolytope

    def losses(self, model: AbstractModel, split: Split, index: Tensor, generator: torch.Generator) -> Tensor:
        """One per instance, for every rule in the same way."""
        features, labels = split.features[index], split.labels[index]

        def objective(structures: Tensor) -> Tensor:
            return F.cross_entropy(model.logits(features, structures), labels, reduction="none")

        if self.layer is None:
            return objective(self.given(Split(features, split.structures[index], labels)))
        return self.layer(model.scores(features), objective=objective, generator=generator)

    def at_test(self, model: AbstractModel, split: Split) -> tuple[Tensor, Tensor]:
        """What the decoder gets at test time, and the decided structures.

        A rule that draws or works with losses decides for the best structure; the others send forward what they send in
        training.
        """
        if self.layer is None:
            return (given := self.given(split)), given
        scores = model.scores(split.features)
        decided = self.vertices.maximize(scores).check().value
        rule = self.layer.rule
        return (decided if rule.draws or rule.needs_objective else self.layer(scores)), decided


def _middle(run: Run, problem: Problem) -> _Middle:
    compiled = ol.compile_polytope(problem.polytope)
    if run.rule in RULES:
        choice = RULES[run.rule]
        rule = choice.make(float("nan") if run.strength is None else run.strength)
        layer = ol.OptLayer(compiled, rule, gradient_unit="norm" if choice.in_units else None)
        return _Middle(layer, None, compiled)
    mean = problem.train.structures.mean(dim=0)
    given = {
        "no structure": lambda split: mean.expand_as(split.structures),
        "true scorer": lambda split: compiled.maximize(problem.true_scores(split.features)).check().value,
        "true structure": lambda split: split.structures,
    }
    if run.rule not in given:
        raise ValueError(f"{run.rule!r} is no rule; there are {', '.join((*RULES, *MARKS))}")
    return _Middle(None, given[run.rule], compiled)


@torch.no_grad()
def _measure(model: AbstractModel, middle: _Middle, problem: Problem, split: Split) -> tuple[float, float]:
    structures, decided = middle.at_test(model, split)
    right = model.logits(split.features, structures).argmax(-1) == split.labels
    return 100 * right.double().mean().item(), 100 * agreement(problem.structure, decided, split.structures)


def agreement(structure: str, decided: Float[Tensor, "n *shape"], true: Float[Tensor, "n *shape"]) -> float:
    """Between 0 and 1: V-measure of categories, whose names are not known; else the share of true parts found."""
    if structure == "category":
        return float(v_measure_score(true.argmax(-1).numpy(), decided.argmax(-1).numpy()))
    return ((decided * true).sum() / true.sum()).item()

"""Fit a model in one way and in another, and say case by case what the latter gains: numbers, a table, a picture."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.table import Table
from scipy import stats
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def fit(
    model: Model,
    learn: Callable[[Model, Tensor], Tensor],
    dev: Callable[[Model], Tensor],
    *,
    cases: int,
    batch: int,
    epochs: int,
    rate: float,
    only: str = "",
) -> Model:
    """Adam on the parameters that are named so, for the loss ``learn`` of the model and of the indices of some cases;
    the model of the epoch with the least ``dev``."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.Adam([p for name, p in model.named_parameters() if name.startswith(only)], lr=rate)
    best, kept = float("inf"), model
    for _ in range(epochs + 1):
        with torch.no_grad():
            now = dev(model).item()
        if now < best:
            best, kept = now, copy.deepcopy(model)
        for index in torch.randperm(cases).split(batch):
            optimizer.zero_grad()
            learn(model, index).backward()
            optimizer.step()
    return kept


@dataclass(frozen=True)
class Gain:
    """A mean gain over the same cases: half its 95 % interval, and how likely it is by chance (paired t-test)."""

    mean: float
    half: float
    chance: float

    @property
    def cells(self) -> list[str]:
        """As two cells of a table."""
        return [f"{self.mean:+.3f} ± {self.half:.3f}", f"{self.chance:.1g}"]


def gain_of(other: Tensor, first: Tensor) -> Gain:
    """What ``other`` has more than ``first`` in each case."""
    more = other - first
    chance = float(stats.ttest_rel(other.numpy(), first.numpy()).pvalue)
    return Gain(more.mean().item(), 1.96 * more.std().item() / len(more) ** 0.5, chance)


def table_with(title: str, columns: Sequence[str]) -> Table:
    """An empty table, whose column of fits stands to the left and is not broken."""
    table = Table(title=title, box=SIMPLE)
    for column in columns:
        table.add_column(column, justify="left" if column == "fit" else "right", no_wrap=column == "fit")
    return table


def save(figure: Figure, path: Path) -> None:
    """Write a picture, in a folder that is made if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)

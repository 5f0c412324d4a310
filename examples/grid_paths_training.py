"""One run: a rule and a seed; a small ResNet is trained from true paths and judged on maps that it has not seen."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from grid_paths_data import Maps, draw_maps
from grid_paths_polytope import cell_paths
from grid_paths_rules import RULES, Known
from jaxtyping import Float, UInt8
from sweep import device
from torch import Tensor, nn

import optlayers as ol

__all__ = ["MEASURES", "SHOWN", "CostModel", "Run", "judge", "splits", "train"]

MEASURES = ("optimal", "exact", "ratio")
SHOWN = 4
"""So many of the first maps for the report keep the paths that were decided on them."""
OPTIMAL = 1e-9
"""A path whose cost is within this part of the least one is a cheapest path."""
CHANNELS = 16


@dataclass(frozen=True)
class Run:
    """``rule`` is a key of RULES; the seed draws the maps, the initial weights, the batches and the noise."""

    rule: str
    seed: int
    size: int
    train_maps: int
    test_maps: int
    epochs: int
    learning_rate: float
    batch_size: int


class _Block(nn.Module):
    """A residual block: two convolutions around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.norms[0](self.first(x)).relu()
        return (x + self.norms[1](self.second(inner))).relu()


class CostModel(nn.Module):
    """From images to a cost for every cell, above 0: the first layers of a ResNet, pooled to the grid.

    As in Vlastelica et al. (2020), but narrower: with 16 channels in place of 64.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.blocks = nn.Sequential(_Block(CHANNELS), _Block(CHANNELS))
        self.cost = nn.Conv2d(CHANNELS, 1, 1)

    def forward(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch size size"]:
        """The costs."""
        seen = self.blocks(self.stem(images.float() / 127.5 - 1.0))
        return F.softplus(F.adaptive_avg_pool2d(self.cost(seen), self.size)).squeeze(1)


def splits(run: Run) -> tuple[Maps, Maps]:
    """The maps to learn from and those of the report, which are the same for all rules."""
    return draw_maps(run.train_maps, run.size, 2 * run.seed), draw_maps(run.test_maps, run.size, 2 * run.seed + 1)


def train(run: Run) -> dict[str, Any]:
    """The measures on maps of the report after every epoch, and the processor's seconds for an epoch of training.

    Adam, with a learning rate that falls linearly to 0. ``paths`` are those of the first maps after the last epoch.
    """
    learn, test = splits(run)
    compiled = ol.compile_polytope(cell_paths(run.size, run.size))
    loss = RULES[run.rule](compiled)
    generator = torch.Generator().manual_seed(run.seed)
    torch.manual_seed(run.seed)
    model = CostModel(run.size).to(device())
    optimizer = torch.optim.Adam(model.parameters(), lr=run.learning_rate)
    steps = run.epochs * -(-run.train_maps // run.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    order = torch.Generator().manual_seed(run.seed)  # of its own: rules that draw noise see the same batches
    curve: dict[str, list[float]] = {name: [] for name in MEASURES}
    seconds = []
    decided = test.paths
    for _ in range(run.epochs):
        start = time.process_time()  # other runs share the machine
        model.train()
        for index in torch.randperm(run.train_maps, generator=order).split(run.batch_size):
            optimizer.zero_grad()
            loss(
                model(learn.images[index].to(device())).cpu(), Known(learn.paths[index], learn.costs[index]), generator
            ).backward()
            optimizer.step()
            schedule.step()
        seconds.append(time.process_time() - start)
        decided = decide(model, compiled, test)
        for name, value in judge(decided, test).items():
            curve[name].append(value)
    return {**curve, "seconds": seconds, "paths": decided[:SHOWN].int().tolist()}


@torch.no_grad()
def decide(model: CostModel, compiled: ol.CompiledPolytope, maps: Maps) -> Float[Tensor, "count size size"]:
    """The cheapest paths by predicted costs."""
    model.eval()
    costs = torch.cat([model(images.to(device())).cpu() for images in maps.images.split(100)])
    return compiled.maximize(-costs.double()).check().value


def judge(decided: Float[Tensor, "count size size"], maps: Maps) -> dict[str, float]:
    """Shares in percent: of paths with the least true cost, and of those equal to the given one; and the mean of true
    costs by the least ones."""
    least = (maps.costs * maps.paths).sum((1, 2))
    ratio = (maps.costs * decided).sum((1, 2)) / least
    exact = (decided == maps.paths).all(dim=2).all(dim=1)
    return {
        "optimal": 100 * (ratio <= 1 + OPTIMAL).double().mean().item(),
        "exact": 100 * exact.double().mean().item(),
        "ratio": ratio.mean().item(),
    }

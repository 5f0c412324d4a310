"""Training by decisions with optlayers and with PyEPO: the regret that is reached, and the seconds it takes.

Shortest paths through a grid of 5 by 5 cells, from PyEPO's generator: costs of degree 4 in 5 features, with noise 0.5.
For every method that both have (see ``trained_methods.py``) a linear model is trained twice, through either side's
loss. Both begin with the same weights, and see the same instances in the same batches. The optimizer is Adam, fused, so
that little of an epoch is what both share; numbers are float32. Methods that draw noise draw their own.

- Regret: what the decisions for predicted costs cost more than the best ones, by what the best ones cost, on instances
  that nobody has learned from; mean and 95 % interval (Student's t) over the seeds, and that of the difference within a
  seed. All models are measured by ``optlayers.regret``, and again by ``pyepo.metric.regret``; the program stops where
  the two differ.
- Seconds: medians over rounds, in which both train for one more epoch, one after the other; and the median of PyEPO's
  by ours within a round. PyEPO solves by OR-tools in one process; OMP_NUM_THREADS limits the threads of ours.

A method by which both would train for more than ``--cap`` seconds is only measured for one epoch, and has no regret.

    python benchmarks/training_with_pyepo.py
    python benchmarks/training_with_pyepo.py --only 'SPO|identity' --seeds 0 1 --epochs 5
    python benchmarks/training_with_pyepo.py --only projection --seeds 0 1 --epochs 3 --cap 3000
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import brief, machine, markdown, open_console, seconds, table, write_csv
from rich.console import Console
from scipy import stats
from torch import Tensor, nn
from trained_methods import METHODS, Known, Loss, Method

import optlayers as ol
from polytopes import grid_path

__all__ = ["Findings", "Regret", "Round", "Split", "Trainee", "arguments", "compare", "draw", "lines", "main"]

GRID, FEATURES, DEGREE, NOISE = (5, 5), 5, 4, 0.5
NAME = "training_with_pyepo"
HEADS = [
    "method",
    "regret, optlayers, %",
    "regret, PyEPO, %",
    "difference, points",
    "seconds / epoch, optlayers",
    "seconds / epoch, PyEPO",
    "ratio",
]
AGREE = 1e-4
"""Both measures of a regret differ by no more than this; PyEPO rounds to float32, and ties may be decided otherwise."""


@dataclass(frozen=True)
class Regret:
    """What models of one seed reach with either side, as a part of the least costs."""

    method: str
    seed: int
    ours: float
    theirs: float


@dataclass(frozen=True)
class Round:
    """Seconds for an epoch with either side, one after the other."""

    method: str
    number: int
    ours: float
    theirs: float


@dataclass
class Findings:
    """What was measured so far."""

    regrets: list[Regret] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)


@dataclass(frozen=True)
class Split:
    """Features ``(count, FEATURES)`` and what is known of the instances."""

    features: Tensor
    known: Known


class Trainee:
    """A linear model in training, by Adam: the seed decides on its first weights and on its batches."""

    def __init__(self, loss: Loss, data: Split, *, seed: int, positive: bool, batch: int, rate: float) -> None:
        torch.manual_seed(seed)
        linear = nn.Linear(data.features.shape[1], data.known.costs.shape[1])
        self.model = nn.Sequential(linear, nn.Softplus()) if positive else linear
        self.loss, self.data, self.batch = loss, data, batch
        self.order = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=rate, fused=True)

    def batches(self) -> Sequence[Tensor]:
        """Those of the next epoch."""
        return torch.randperm(len(self.data.features), generator=self.order).split(self.batch)

    def step(self, index: Tensor) -> None:
        """Learn from a batch."""
        self.optimizer.zero_grad()
        self.loss(self.model(self.data.features[index]), self.data.known.at(index)).backward()
        self.optimizer.step()

    def epoch(self) -> None:
        """Learn from all instances once."""
        for index in self.batches():
            self.step(index)


def draw(compiled: ol.CompiledPolytope, seed: int, sizes: Sequence[int]) -> list[Split]:
    """Splits of so many instances of one truth, by PyEPO's generator; their best paths are by ours."""
    from pyepo.data.shortestpath import genData

    features, costs = genData(sum(sizes), FEATURES, GRID, deg=DEGREE, noise_width=NOISE, seed=seed)
    x, c = torch.from_numpy(features).float(), torch.from_numpy(costs)
    paths = compiled.maximize(-c).check().value
    parts = (each.split(list(sizes)) for each in (x, c, paths, (c * paths).sum(1)))
    return [Split(x, Known(*known)) for x, *known in zip(*parts, strict=True)]


def regret_of(model: nn.Module, test: Split, compiled: ol.CompiledPolytope, theirs: Any) -> float:
    """The normalized regret, by ours.

    Raises
    ------
    RuntimeError : when PyEPO's measure is another one.
    """
    from pyepo import metric

    with torch.no_grad():
        mine = ol.regret(compiled, -model(test.features), -test.known.costs, normalized=True).item()
    known = test.known
    other = metric.regret(model, theirs, [(test.features, known.costs, known.paths, known.least[:, None])])
    if not abs(mine - other) <= AGREE:
        raise RuntimeError(f"the regret of one model is {mine:.6f} by optlayers and {other:.6f} by PyEPO")
    return mine


def compare(method: Method, options: argparse.Namespace, findings: Findings, console: Console) -> None:
    """Measure one method, rounds first; what is found goes to ``findings``."""
    from pyepo.model.ort import shortestPathModel

    compiled, model = ol.compile_polytope(grid_path(*GRID)), shortestPathModel(GRID)
    sizes = (options.train_instances, options.test_instances)

    def trainees(seed: int) -> tuple[Trainee, Trainee, Split]:
        learn, test = draw(compiled, seed, sizes)
        losses = method.ours(compiled, torch.Generator().manual_seed(seed)), method.theirs(model, seed)
        settings = {"seed": seed, "positive": method.positive, "batch": options.batch_size, "rate": options.rate}
        ours, theirs = (Trainee(loss, learn, **settings) for loss in losses)
        return ours, theirs, test

    ours, theirs, _ = trainees(options.seeds[0])
    once = sum(_warmed_up(each) for each in (ours, theirs))
    expected = once * (options.rounds + options.epochs * len(options.seeds))
    fits = expected <= options.cap
    if not fits:
        text = f"{method.name}: training would take {expected:.0f} s, more than {options.cap:g} s (--cap)"
        console.print(f"{text}: one epoch is measured, and no regret")
    for number in range(options.rounds if fits else 1):
        findings.rounds.append(_round(method.name, number, ours.epoch, theirs.epoch))
    for seed in options.seeds if fits else []:
        ours, theirs, test = trainees(seed)
        for _ in range(options.epochs):
            ours.epoch()
            theirs.epoch()
        reached = (regret_of(each.model, test, compiled, model) for each in (ours, theirs))
        findings.regrets.append(Regret(method.name, seed, *reached))


def _warmed_up(trainee: Trainee) -> float:
    """Learn from two batches, the second by the clock; the seconds that an epoch will take."""
    batches = trainee.batches()
    trainee.step(batches[0])
    return len(batches) * seconds([lambda: trainee.step(batches[-1])])


def _round(name: str, number: int, ours: Callable[[], object], theirs: Callable[[], object]) -> Round:
    """An epoch each; who begins takes turns."""
    turns = [ours, theirs] if number % 2 == 0 else [theirs, ours]
    taken = {turn: seconds([turn]) for turn in turns}
    return Round(name, number, taken[ours], taken[theirs])


def lines(findings: Findings) -> list[dict[str, str]]:
    """The rows of the table."""
    made = []
    for name in dict.fromkeys(each.method for each in findings.rounds):
        rounds = [each for each in findings.rounds if each.method == name]
        regrets = [each for each in findings.regrets if each.method == name]
        row = {"method": name}
        row["seconds / epoch, optlayers"] = brief(statistics.median(r.ours for r in rounds))
        row["seconds / epoch, PyEPO"] = brief(statistics.median(r.theirs for r in rounds))
        row["ratio"] = f"{brief(statistics.median(r.theirs / r.ours for r in rounds))}×"
        if regrets:
            row["regret, optlayers, %"] = _cell([100 * r.ours for r in regrets])
            row["regret, PyEPO, %"] = _cell([100 * r.theirs for r in regrets])
            row["difference, points"] = _cell([100 * (r.ours - r.theirs) for r in regrets], "+")
        made.append(row)
    return made


def _cell(values: Sequence[float], sign: str = "") -> str:
    """Mean and half the width of its 95 % interval (Student's t)."""
    shown = f"{round(float(np.mean(values)), 3) + 0.0:{sign}.3f}".replace("-", "−")  # + 0.0 makes 0 of -0
    if len(values) < 2:
        return shown
    half = stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return f"{shown} ± {half:.3f}"


def title(options: argparse.Namespace) -> str:
    """What a reader has to know."""
    return (
        f"Shortest paths {GRID[0]} × {GRID[1]}, degree {DEGREE}, noise {NOISE}: {options.train_instances} instances to "
        f"learn from, {options.test_instances} for the regret, {options.epochs} epochs, batches of "
        f"{options.batch_size}, {len(options.seeds)} seeds ({machine()})"
    )


def write(findings: Findings, options: argparse.Namespace) -> None:
    """A table as Markdown, and all numbers as CSV."""
    options.output.mkdir(parents=True, exist_ok=True)
    text = f"{title(options)}\n\n{markdown(HEADS, lines(findings))}\n"
    (options.output / f"{NAME}.md").write_text(text, encoding="utf-8")
    write_csv(options.output / f"{NAME}_seconds.csv", findings.rounds)
    if findings.regrets:
        write_csv(options.output / f"{NAME}_regrets.csv", findings.regrets)


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; ``methods`` are those that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="REGEX", help="methods, by name")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7, help="epochs that are measured by the clock (7)")
    parser.add_argument("--train-instances", type=int, default=1000)
    parser.add_argument("--test-instances", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rate", type=float, default=0.01, help="Adam's learning rate (0.01)")
    parser.add_argument("--cap", type=float, default=900.0, help="seconds that a method may take (900)")
    parser.add_argument("--output", type=Path, default=Path("out/benchmarks"))
    options = parser.parse_args(given)
    for name in ("epochs", "rounds", "train_instances", "test_instances", "batch_size"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, but is {getattr(options, name)}")
    for name in ("rate", "cap"):
        if not 0 < getattr(options, name) < math.inf:
            parser.error(f"--{name} must be above 0, but is {getattr(options, name)}")
    if min(options.seeds) < 0:
        parser.error(f"--seeds must be at least 0, but are {options.seeds}")
    options.seeds = list(dict.fromkeys(options.seeds))
    try:
        options.methods = [method for method in METHODS if re.search(options.only, method.name, re.IGNORECASE)]
    except re.error as error:
        parser.error(f"--only {options.only!r} is no regular expression: {error}")
    if not options.methods:
        parser.error(f"no method matches {options.only!r}; there are {', '.join(m.name for m in METHODS)}")
    missing = [module for module in ("pyepo", "ortools") if importlib.util.find_spec(module) is None]
    if missing:
        parser.error(f"{' and '.join(missing)} not installed; pip install 'optlayers[peers]' brings what is measured")
    return options


def main(given: Sequence[str] | None = None) -> Findings:
    """Measure, print the table; write it and the numbers after every method."""
    options = arguments(given)
    console, findings = open_console(), Findings()
    for method in options.methods:
        with console.status(f"{method.name} …"):
            compare(method, options, findings, console)
        write(findings, options)
    console.print(table(title(options), HEADS, lines(findings)))
    console.print(f"wrote {NAME}.md and its numbers to {options.output}")
    return findings


if __name__ == "__main__":
    main()

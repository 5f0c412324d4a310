"""Supply and demand that are predicted, as right-hand sides of a plan: trained by what the plan costs in the end.

Every evening trucks are booked from three plants to six shops. What the plants will have and the shops will need is
known in the morning only; a model predicts both from what is known now, and the plan is

    max <margin - booking, x>   where   row sums of x <= predicted supply,   column sums of x <= predicted demand.

In the morning goods travel in booked trucks, as far as there are goods and somebody needs them. What is then lacking
may be brought by rush trucks, which cost more; what was booked and not used is lost. Both are one linear program again,
whose right-hand sides are the true supply and demand and, for every truck, what was booked.

Two ways to fit one and the same model of supply and demand (the logarithm of each is linear in features):

- two-stage: by the squared error of supply and demand, that is, for their means;
- end to end: by the money that is made. The plan is ``SparseMAP`` (its point moves with the right-hand sides), and the
  morning is ``OptimalValue``, whose gradient for what was booked is the price of it.

Why can it be better? Not because it predicts better: it predicts worse. But a booking that is not needed loses little,
and a rush truck costs much (``--rush``), so that the mean is not what one should plan for: of one shop alone the best
plan is a quantile of demand (the newsvendor's). Shops share plants, so that each has a quantile of its own, which
depends on the margins and on what is scarce. A loss of supply and demand by themselves cannot know that. A third row,
two-stage for one quantile of all demands (by the pinball loss; the profit on dev chooses which), shows how much of the
gain a quantile alone has. Where a day holds no surprise (``--noise 0``) the mean is right, and there is no gain.

    python examples/predicted_supply.py                   half a minute
    python examples/predicted_supply.py --rush 1 2 4 8    the gain by the price of rush trucks

The table has the profit of days that nothing was learned from, as a share of what one makes who knows supply and demand
the evening before, a paired t-test against two-stage, and the squared error of the forecast. The picture shows
predictions next to what came, and the gain by the price of rush trucks.

References: Elmachtoub and Grigas (2022), Smart "predict, then optimize"; Donti, Amos and Kolter (2017), Task-based
end-to-end model learning in stochastic optimization; Hu, Lee and Lee (2023), Predict+optimize for packing and covering
LPs with unknown parameters in constraints.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import comparison
import cvxpy as cp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from comparison import Gain, gain_of, save, table_with
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import optlayers as ol

PLANTS, SHOPS, FEATURES = 3, 6, 5
BOOKING = 1.0
"""What a booked truck costs per unit."""
TWO_STAGE, QUANTILE, END_TO_END = "two-stage, mean", "two-stage, quantile", "end to end"


def evening() -> ol.Polytope:
    """Plans within what is predicted, ``(PLANTS, SHOPS)``."""
    x = cp.Variable((PLANTS, SHOPS), nonneg=True)
    supply, demand = cp.Parameter(PLANTS, name="supply", nonneg=True), cp.Parameter(SHOPS, name="demand", nonneg=True)
    return ol.Polytope(x, [cp.sum(x, axis=1) <= supply, cp.sum(x, axis=0) <= demand])


def morning() -> ol.Polytope:
    """What travels in booked trucks, and in rush trucks: ``(2, PLANTS * SHOPS)``."""
    x = cp.Variable((2, PLANTS * SHOPS), nonneg=True)
    booked = cp.Parameter(PLANTS * SHOPS, name="booked", nonneg=True)
    supply, demand = cp.Parameter(PLANTS, name="supply", nonneg=True), cp.Parameter(SHOPS, name="demand", nonneg=True)
    moved = cp.reshape(x[0] + x[1], (PLANTS, SHOPS), order="C")
    rows = [cp.sum(moved, axis=1) <= supply, cp.sum(moved, axis=0) <= demand]
    return ol.Polytope(x, [x[0] <= booked, *rows])


@dataclass(frozen=True)
class Days:
    """Features ``(days, FEATURES)``, and the supply and demand of the morning after."""

    features: Tensor
    supply: Tensor
    demand: Tensor

    def take(self, index: Tensor) -> Days:
        """Some of them."""
        return Days(self.features[index], self.supply[index], self.demand[index])


@dataclass(frozen=True)
class Country:
    """What a unit that is sold brings on each way, before its truck is paid, ``(PLANTS, SHOPS)``; the days."""

    margin: Tensor
    learn: Days
    dev: Days
    test: Days


def draw_country(sizes: Sequence[int], noise: float, generator: torch.Generator) -> Country:
    """The logarithms of supply and demand are linear in features, with normal errors of ``noise``."""
    count = sum(sizes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features = normal(count, FEATURES)
    slopes = 0.3 * normal(FEATURES, PLANTS + SHOPS) / FEATURES**0.5
    errors = torch.cat([0.5 * noise * normal(count, PLANTS), noise * normal(count, SHOPS)], dim=1)
    level = torch.tensor([2.2] * PLANTS + [1.0] * SHOPS, dtype=torch.float64).log()
    amounts = torch.exp(level + features @ slopes + errors)
    apart = torch.rand(PLANTS, 1, 2, generator=generator) - torch.rand(1, SHOPS, 2, generator=generator)
    margin = 6.0 - 2.0 * apart.norm(dim=2).double()
    days = zip(*(part.split(list(sizes)) for part in (features, *amounts.split([PLANTS, SHOPS], dim=1))), strict=True)
    return Country(margin, *(Days(*one) for one in days))


class Forecast(nn.Module):
    """Supply and demand, positive."""

    def __init__(self) -> None:
        super().__init__()
        self.log_amounts = nn.Linear(FEATURES, PLANTS + SHOPS, dtype=torch.float64)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """``(days, PLANTS)`` and ``(days, SHOPS)``."""
        supply, demand = torch.exp(self.log_amounts(features)).split([PLANTS, SHOPS], dim=-1)
        return supply, demand


class Business:
    """The evening as a layer, and the morning as its optimal value."""

    def __init__(self, country: Country, rush: float) -> None:
        self.margin, evenings, mornings = country.margin, ol.compile_polytope(evening()), ol.compile_polytope(morning())
        self.plan = ol.OptLayer(evenings, ol.SparseMAP())
        self.best_plan = ol.OptLayer(evenings, ol.Pipeline())
        self.value = ol.OptimalValue(mornings)
        self.prices = torch.stack([self.margin.flatten(), self.margin.flatten() - BOOKING - rush])

    def made(self, plan: Tensor, days: Days) -> Tensor:
        """The profit of plans, ``(days,)``: trucks are paid when they are booked."""
        booked = plan.flatten(1)
        prices = self.prices.expand(len(booked), -1, -1)
        earned = self.value(prices, booked=booked, supply=days.supply, demand=days.demand)
        return earned - BOOKING * booked.sum(dim=1)

    def soft_profit(self, forecast: Forecast, days: Days) -> Tensor:
        """The profit by the plan that moves with the forecast."""
        supply, demand = forecast(days.features)
        scores = (self.margin - BOOKING).expand(len(supply), -1, -1)
        return self.made(self.plan(SHARP * scores, supply=supply, demand=demand), days)

    def profit(self, supply: Tensor, demand: Tensor, days: Days) -> Tensor:
        """The profit by the best plan for these amounts, as it is carried out."""
        scores = (self.margin - BOOKING).expand(len(supply), -1, -1)
        with torch.no_grad():
            return self.made(self.best_plan(scores, supply=supply, demand=demand), days)


LEVELS = (0.5, 0.6, 0.7, 0.8)
"""Of quantiles of demand, among which the profit on dev chooses."""
SHARP = 4.0
"""Scores of SparseMAP are larger by this, so that its plans are near the best ones."""
Loss = Callable[[Forecast, Days], Tensor]


def squared(forecast: Forecast, days: Days) -> Tensor:
    """The squared error of all amounts."""
    supply, demand = forecast(days.features)
    return (supply - days.supply).square().mean() + (demand - days.demand).square().mean()


def pinball(level: float) -> Loss:
    """The loss whose best forecast of demand is a quantile; supply is its mean."""

    def loss(forecast: Forecast, days: Days) -> Tensor:
        supply, demand = forecast(days.features)
        short = days.demand - demand
        return (supply - days.supply).square().mean() + torch.maximum(level * short, (level - 1.0) * short).mean()

    return loss


def fit(forecast: Forecast, loss: Loss, learn: Days, dev: Days, epochs: int, rate: float) -> Forecast:
    """The forecast with the least loss on dev."""
    sizes = {"cases": len(learn.features), "batch": 50, "epochs": epochs}
    return comparison.fit(
        forecast, lambda mine, index: loss(mine, learn.take(index)), lambda mine: loss(mine, dev), rate=rate, **sizes
    )


@dataclass(frozen=True)
class Outcome:
    """A way to fit, in one country: profits of the days of the test, those of who knew, errors, forecasts of demand."""

    name: str
    rush: float
    seed: int
    profit: Tensor
    known: Tensor
    error: float
    demand: Tensor
    came: Tensor
    seconds: float


def run(seed: int, rush: float, noise: float, sizes: Sequence[int], epochs: int) -> list[Outcome]:
    """All ways in one country."""
    torch.manual_seed(seed)
    country = draw_country(sizes, noise, torch.Generator().manual_seed(seed))
    business, test = Business(country, rush), country.test
    known = business.profit(test.supply, test.demand, test)

    def loss(forecast: Forecast, days: Days) -> Tensor:
        return -business.soft_profit(forecast, days).mean()

    def by_quantile() -> Forecast:
        tried = [fit(mean_first, pinball(level), country.learn, country.dev, 30, 0.01) for level in LEVELS]
        return max(tried, key=lambda f: business.profit(*f(country.dev.features), country.dev).mean().item())

    start = Forecast()
    mean_first = fit(start, squared, country.learn, country.dev, 60, 0.01)
    ways: dict[str, Callable[[], Forecast]] = {
        TWO_STAGE: lambda: fit(mean_first, squared, country.learn, country.dev, 20, 0.005),
        QUANTILE: by_quantile,
        END_TO_END: lambda: fit(mean_first, loss, country.learn, country.dev, epochs, 0.01),
    }
    outcomes = []
    for name, way in ways.items():
        began = time.perf_counter()
        forecast = way()
        seconds = time.perf_counter() - began
        with torch.no_grad():
            supply, demand = forecast(test.features)
            error = squared(forecast, test).item()
        profit = business.profit(supply, demand, test)
        outcomes.append(Outcome(name, rush, seed, profit, known, error, demand, test.demand, seconds))
    return outcomes


def gain(outcomes: Sequence[Outcome], name: str) -> Gain:
    """What a way makes more than two-stage on the days of all seeds."""
    first, other = (torch.cat([o.profit for o in outcomes if o.name == way]) for way in (TWO_STAGE, name))
    return gain_of(other, first)


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """A row for each price and way."""
    table = table_with("test days of all seeds", ("rush", "fit", "profit, %", "gain", "p", "error", "s"))
    for rush in dict.fromkeys(o.rush for o in outcomes):
        here = [o for o in outcomes if o.rush == rush]
        for name in dict.fromkeys(o.name for o in here):
            mine = [o for o in here if o.name == name]
            share = sum(o.profit.sum().item() for o in mine) / sum(o.known.sum().item() for o in mine)
            table.add_row(
                f"{rush:g}",
                name,
                f"{100 * share:.1f}",
                *(["", ""] if name == TWO_STAGE else gain(here, name).cells),
                f"{sum(o.error for o in mine) / len(mine):.2f}",
                f"{sum(o.seconds for o in mine) / len(mine):.1f}",
            )
    return table


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Forecasts of demand next to what came, and gains by the price of rush trucks."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    prices, first = sorted({o.rush for o in outcomes}), outcomes[0]
    for place, name in enumerate((TWO_STAGE, END_TO_END)):
        o = next(o for o in outcomes if o.name == name and (o.rush, o.seed) == (prices[-1], first.seed))
        left.plot(o.demand.flatten(), o.came.flatten(), ".", markersize=2, alpha=0.4, color=f"C{2 * place}")
        left.plot([], [], "o", color=f"C{2 * place}", label=name)
    top = float(first.came.quantile(0.995))
    left.plot([0, top], [0, top], color="black", linewidth=0.8)
    left.set(xlim=(0, top), ylim=(0, top), xlabel=f"demand that is planned for, rush {prices[-1]:g}", ylabel="demand")
    left.legend(frameon=False, fontsize=8)
    for place, name in enumerate((QUANTILE, END_TO_END), start=1):
        of_prices = [gain([o for o in outcomes if o.rush == price], name) for price in prices]
        means, halves = [more.mean for more in of_prices], [more.half for more in of_prices]
        right.errorbar(prices, means, halves, fmt="o-", label=name, color=f"C{place}")
    right.set_xticks(prices)
    right.axhline(0.0, color="black", linewidth=0.8)
    right.set(xlabel="what a rush truck costs more", ylabel=f"profit beyond {TWO_STAGE}, per day")
    right.legend(frameon=False, fontsize=8)
    save(figure, path)


def main(given: list[str] | None = None) -> list[Outcome]:
    """Fit, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rush", nargs="+", type=float, default=[1.0, 4.0], help="what rush trucks cost more (1 4)")
    parser.add_argument("--noise", type=float, default=0.5, help="of demand, in logarithms; half for supply (0.5)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--days", nargs=3, type=int, default=[400, 200, 1000], metavar=("LEARN", "DEV", "TEST"))
    parser.add_argument("--epochs", type=int, default=10, help="end to end (10)")
    parser.add_argument("--output", type=Path, default=Path("out/predicted_supply"))
    options = parser.parse_args(given)
    console = Console()
    outcomes = [
        o
        for rush in options.rush
        for seed in options.seeds
        for o in run(seed, rush, options.noise, options.days, options.epochs)
    ]
    console.print(table_of(outcomes))
    draw(outcomes, options.output / "predicted_supply.png")
    console.print(f"wrote {options.output / 'predicted_supply.png'}")
    return outcomes


if __name__ == "__main__":
    main()

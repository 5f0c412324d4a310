"""A portfolio whose expected returns and covariance are learned by what it earns.

Every month some signals are seen, and money is divided among 12 assets in four sectors: long only, all of it, at most
40 % in a sector. A model turns the signals into expected returns m, into loadings F of three common factors and into
own risks D; the portfolio is that of Markowitz (1952),

    max <m, w> - risk_aversion / 2 * (||F w||^2 + ||D w||^2),

which is ``Regularized(...)`` with a declared expression: its parameters F and D have a gradient as the scores m have.

Two ways to fit one and the same model, and the same months to learn from:

- two-stage: by the likelihood of returns (Gaussian, with mean m and covariance F'F + D'D), which knows no portfolio;
- end to end: from there on by the realized utility of the portfolio, r'w - risk_aversion / 2 * (r'w)^2, with gradients
  through the layer (``mean alone`` holds F and D, so that one sees what the learned covariance adds).

Returns are drawn: expected ones bend with the signals and calm months differ from wild ones, while the model is linear
in the signals. It cannot be right everywhere, so that it matters where it errs: likelihood counts all assets alike, and
the portfolio only those that it could hold. With ``--bend 0`` the model can be right, the likelihood uses what is known
best, and end to end has nothing to gain.

    python examples/portfolio.py                a minute
    python examples/portfolio.py --bend 0

The table has utilities of months that nothing was learned from, what is gained over two-stage with a paired t-test
month by month by SciPy, the largest share and how many assets are held. The picture has the gains of all seeds, and
what the portfolios hold.

References: Markowitz (1952), Portfolio selection. Donti, Amos and Kolter (2017), Task-based end-to-end model learning
in stochastic optimization. Butler and Kwon (2023), Integrating prediction in mean-variance portfolio optimization.
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

ASSETS, SECTORS, FACTORS, SIGNALS = 12, 4, 3, 6
CAP = 0.4
"""Of a sector."""
RISK_AVERSION = 0.3
"""For returns in percent."""
TWO_STAGE, MEAN_ALONE, END_TO_END = "two-stage", "end to end, mean alone", "end to end"


def portfolio() -> tuple[ol.Polytope, cp.Expression]:
    """The portfolios ``(ASSETS,)``, and their risk, a function of the parameters ``factors`` and ``own``."""
    w = cp.Variable(ASSETS, nonneg=True)
    factors = cp.Parameter((FACTORS, ASSETS), name="factors")
    own = cp.Parameter(ASSETS, nonneg=True, name="own")
    sectors = w.reshape((SECTORS, ASSETS // SECTORS), order="C")
    polytope = ol.Polytope(w, [cp.sum(w) == 1, cp.sum(sectors, axis=1) <= CAP])
    return polytope, 0.5 * RISK_AVERSION * (cp.sum_squares(factors @ w) + cp.sum_squares(cp.multiply(own, w)))


@dataclass(frozen=True)
class Months:
    """Signals ``(months, SIGNALS)``, and the returns in percent that follow, ``(months, ASSETS)``."""

    signals: Tensor
    returns: Tensor


def draw_months(sizes: Sequence[int], bend: float, generator: torch.Generator) -> list[Months]:
    """Months of one market: some to learn from, some to choose on, some to report.

    The expected return of an asset is a straight line of some signals, bent upwards by ``bend``; one signal says how
    wild the month is.
    """
    count = sum(sizes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    signals, slopes, loadings = normal(count, SIGNALS), normal(SIGNALS, ASSETS), normal(FACTORS, ASSETS)
    line = signals @ slopes / SIGNALS**0.5
    expected = 1.0 + line + bend * (line.square() - 1.0) * torch.linspace(-1, 1, ASSETS, dtype=torch.float64)
    wild = torch.exp(0.4 * signals[:, :1])
    common = (wild * normal(count, FACTORS)) @ loadings
    returns = expected + common + (1.0 + torch.rand(ASSETS, generator=generator)) * normal(count, ASSETS)
    pieces = zip(signals.split(list(sizes)), returns.split(list(sizes)), strict=True)
    return [Months(*piece) for piece in pieces]


class Market(nn.Module):
    """Signals to expected returns, and to loadings and own risks that grow and shrink together."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Linear(SIGNALS, ASSETS, dtype=torch.float64)
        self.factors = nn.Parameter(torch.randn(FACTORS, ASSETS, dtype=torch.float64))
        self.log_own = nn.Parameter(torch.zeros(ASSETS, dtype=torch.float64))
        self.log_size = nn.Linear(SIGNALS, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.log_size.weight)

    def forward(self, signals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Expected returns, loadings ``(months, FACTORS, ASSETS)`` and own risks."""
        size = torch.exp(self.log_size(signals))
        return self.mean(signals), size[:, :, None] * self.factors, torch.exp(self.log_own).expand(len(signals), -1)

    def surprise(self, months: Months) -> Tensor:
        """What returns surprise the model by, on average: minus the logarithm of their Gaussian likelihood, but for
        a constant."""
        mean, factors, own = self(months.signals)
        covariance = factors.mT @ factors + torch.diag_embed(own.square() + 1e-3)
        root, rest = torch.linalg.cholesky(covariance), (months.returns - mean)[:, :, None]
        whitened = torch.linalg.solve_triangular(root, rest, upper=False)
        return 0.5 * whitened.square().sum(dim=(1, 2)).mean() + root.diagonal(dim1=1, dim2=2).log().sum(dim=1).mean()


class Investor:
    """The layer, and what its portfolios are worth."""

    def __init__(self) -> None:
        polytope, risk = portfolio()
        self.layer = ol.OptLayer(polytope, ol.Regularized(risk))

    def shares(self, market: Market, signals: Tensor) -> Tensor:
        """What the model leads to."""
        mean, factors, own = market(signals)
        return self.layer(mean, factors=factors, own=own)

    def utility(self, market: Market, months: Months) -> Tensor:
        """What it leads to is worth, ``(months,)``."""
        earned = (self.shares(market, months.signals) * months.returns).sum(dim=1)
        return earned - 0.5 * RISK_AVERSION * earned.square()


Loss = Callable[[Market, Months], Tensor]


def fit(market: Market, loss: Loss, learn: Months, dev: Months, epochs: int, batch: int, only: str = "") -> Market:
    """The market with the least loss on dev; what is named so is learned."""

    def of_some(market: Market, index: Tensor) -> Tensor:
        return loss(market, Months(learn.signals[index], learn.returns[index]))

    sizes = {"cases": len(learn.signals), "batch": batch, "epochs": epochs}
    return comparison.fit(market, of_some, lambda market: loss(market, dev), rate=0.02, only=only, **sizes)


@dataclass(frozen=True)
class Outcome:
    """A way to fit, on one market: the utility of every month of the test, and the portfolios."""

    name: str
    seed: int
    utility: Tensor
    shares: Tensor
    seconds: float


def run(seed: int, bend: float, sizes: Sequence[int], epochs: int) -> list[Outcome]:
    """All ways on one market."""
    torch.manual_seed(seed)
    learn, dev, test = draw_months(sizes, bend, torch.Generator().manual_seed(seed))
    investor, outcomes = Investor(), []

    def loss(market: Market, months: Months) -> Tensor:
        return -investor.utility(market, months).mean()

    start = time.perf_counter()
    two_stage = fit(Market(), Market.surprise, learn, dev, 300, len(learn.signals))
    fitted = {TWO_STAGE: (two_stage, time.perf_counter() - start)}
    for name, only in ((MEAN_ALONE, "mean"), (END_TO_END, "")):
        start = time.perf_counter()
        fitted[name] = fit(two_stage, loss, learn, dev, epochs, 100, only), time.perf_counter() - start
    for name, (market, seconds) in fitted.items():
        with torch.no_grad():
            shares = investor.shares(market, test.signals)
            outcomes.append(Outcome(name, seed, investor.utility(market, test), shares, seconds))
    return outcomes


def gain(outcomes: Sequence[Outcome], name: str) -> Gain:
    """What a way earns more than two-stage in the months of all seeds."""
    first, other = (torch.cat([o.utility for o in outcomes if o.name == way]) for way in (TWO_STAGE, name))
    return gain_of(other, first)


def table_of(outcomes: Sequence[Outcome]) -> Table:
    """A row for each way."""
    table = table_with("test months of all seeds", ("fit", "utility", "gain", "p", "largest", "held", "s"))
    for name in dict.fromkeys(o.name for o in outcomes):
        mine = [o for o in outcomes if o.name == name]
        shares = torch.cat([o.shares for o in mine])
        table.add_row(
            name,
            f"{torch.cat([o.utility for o in mine]).mean():.3f}",
            *(["", ""] if name == TWO_STAGE else gain(outcomes, name).cells),
            f"{shares.max(dim=1).values.mean():.2f}",
            f"{(shares > 1e-6).double().sum(dim=1).mean():.1f}",
            f"{sum(o.seconds for o in mine) / len(mine):.1f}",
        )
    return table


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """The gains of every seed with intervals, and what is held on average."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    seeds = sorted({o.seed for o in outcomes})
    for place, name in enumerate((MEAN_ALONE, END_TO_END)):
        for seed in seeds:
            more = gain([o for o in outcomes if o.seed == seed], name)
            label = name if seed == seeds[0] else None
            spot = seeds.index(seed) + 0.2 * place
            left.errorbar(spot, more.mean, more.half, fmt="o", color=f"C{place + 1}", label=label)
    left.legend(frameon=False, fontsize=8)
    left.axhline(0.0, color="black", linewidth=0.8)
    left.set_xticks([k + 0.1 for k in range(len(seeds))], [f"seed {seed}" for seed in seeds])
    left.set_ylabel("utility beyond two-stage, per month")
    for place, name in enumerate((TWO_STAGE, MEAN_ALONE, END_TO_END)):
        shares = next(o.shares for o in outcomes if o.name == name).mean(dim=0)
        right.bar([k + 0.27 * (place - 1) for k in range(ASSETS)], shares.tolist(), 0.27, color=f"C{place}", label=name)
    right.set_xlabel("asset")
    right.set_ylabel(f"share on average, seed {seeds[0]}")
    right.legend(frameon=False, fontsize=8)
    save(figure, path)


def main(given: list[str] | None = None) -> list[Outcome]:
    """Fit, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--bend", type=float, default=1.0, help="of expected returns, which the model lacks (1)")
    parser.add_argument("--months", nargs=3, type=int, default=[1000, 500, 2000], metavar=("LEARN", "DEV", "TEST"))
    parser.add_argument("--epochs", type=int, default=12, help="end to end (12)")
    parser.add_argument("--output", type=Path, default=Path("out/portfolio"))
    options = parser.parse_args(given)
    console = Console()
    outcomes = [o for seed in options.seeds for o in run(seed, options.bend, options.months, options.epochs)]
    console.print(table_of(outcomes))
    draw(outcomes, options.output / "portfolio.png")
    console.print(f"wrote {options.output / 'portfolio.png'}")
    return outcomes


if __name__ == "__main__":
    main()

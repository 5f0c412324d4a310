"""One polytope under every regularizer: where scores of all directions and sizes lead, and what a temperature does.

Draws a picture: a polygon, x + y <= 1.5 in the unit square; for scores on circles of growing size the points that each
regularizer leads to. Then prints how an entropic assignment turns into a matching as its temperature falls.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cvxpy as cp
import torch
from matplotlib.figure import Figure

import optlayers as ol
import polytopes

REGULARIZERS: dict[str, ol.AbstractRegularizer] = {
    "Euclidean(): SparseMAP": ol.Euclidean(),
    "Euclidean([0.5, 2])": ol.Euclidean([0.5, 2.0]),
    "Entropy(0.5)": ol.Entropy(0.5),
    "Tsallis(1.5)": ol.Tsallis(1.5),
    "Tsallis(3)": ol.Tsallis(3.0),
    "Barrier(0.1)": ol.Barrier(0.1),
}


def polygon() -> ol.Polytope:
    """The unit square without a corner."""
    x = cp.Variable(2, nonneg=True)
    return ol.Polytope(x, [x <= 1, cp.sum(x) <= 1.5])


def draw(path: Path) -> None:
    """A panel for each regularizer, a line for each size of the scores."""
    figure = Figure(figsize=(10, 6.6), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True, sharey=True)
    for panel, (name, regularizer) in zip(panels.flat, REGULARIZERS.items(), strict=True):
        ol.plots.regularized_circles(polygon(), regularizer, ax=panel).set_title(name, fontsize=10)
        panel.label_outer()
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, title="‖scores‖", loc="outside right center", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def cool(size: int = 6) -> None:
    """An assignment from dense to a matching."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(size, size, generator=generator, dtype=torch.float64)
    temperature = cp.Parameter(name="temperature", pos=True)
    assign = ol.OptLayer(polytopes.matching(size), ol.Regularized(ol.Entropy(temperature)))
    best = ol.OptLayer(polytopes.matching(size), ol.Pipeline())(scores)
    print("temperature   largest part of each row        away from the best matching")
    for value in (10.0, 1.0, 0.3, 0.1, 0.03, 0.01):
        plan = assign(scores, temperature=value)
        largest = " ".join(f"{x:.2f}" for x in plan.max(dim=1).values.tolist())
        print(f"{value:11g}   {largest}   {(plan - best).abs().max().item():.1e}")


def main() -> None:
    """Draw, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("out/regularizers"), help="where the picture goes")
    options = parser.parse_args()
    draw(options.output / "regularizers.png")
    print(f"wrote {options.output / 'regularizers.png'}\n")
    cool()


if __name__ == "__main__":
    main()

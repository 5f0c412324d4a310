"""How near perturb-and-MAP comes to the Gibbs distribution, structure by structure.

A best structure for scores with noise is a random structure. With Gumbel noise on a simplex, and with logistic noise
on bits, it has the Gibbs distribution ``p(z) ~ exp <s, z>``; elsewhere another one. For every structure and noise: the
total variation distance between both (half of the sum of absolute differences of probabilities: 0 for the same
distribution, 1 for two that have no structure in common), and the largest difference of a marginal. At scores of 0, and
the mean over scores from N(0, 1).

    python benchmarks/noise.py --samples 200000 --output out/benchmarks
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from measuring import machine, open_console, table
from torch import Tensor

import optlayers as ol
from polytopes import arborescence, cube, matching, partial_matching, sequence, simplex, subset

HEADS = ["structure", "structures", "noise", "at 0", "a marginal", "at N(0, 1)", "a marginal there"]


@dataclass(frozen=True)
class Case:
    """A structure, and how many parts all of its structures have, None where they differ."""

    name: str
    polytope: ol.Polytope
    parts: int | None
    parameters: dict[str, Tensor] = field(default_factory=dict)

    @property
    def noises(self) -> dict[str, ol.AbstractNoise]:
        """What is tried."""
        noises: dict[str, ol.AbstractNoise] = {"Gumbel": ol.Gumbel(), "Logistic": ol.Logistic()}
        return noises if self.parts is None else noises | {"SumOfGamma": ol.SumOfGamma(self.parts)}


CASES = [
    Case("simplex 5", simplex(5), 1),
    Case("cube 1", cube(1), None),
    Case("cube 4", cube(4), None),
    Case("2 of 5", subset(5), 2, {"budget": torch.tensor(2.0)}),
    Case("sequence 3 x 3", sequence(3, 3), 3),
    Case("matching 3", matching(3), 3),
    Case("matching 4", matching(4), 4),
    Case("partial matching 3 x 3", partial_matching(3, 3), None),
    Case("arborescence, 3 words", arborescence(3), 3),
]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000, help="structures that are drawn for a distribution")
    parser.add_argument("--draws", type=int, default=5, help="scores from N(0, 1)")
    parser.add_argument("--output", type=Path, help="a folder for noise.txt")
    given = parser.parse_args()
    lines = [line for case in CASES for line in lines_of(case, given.samples, given.draws)]
    found = table(f"perturb-and-MAP, total variation distance to Gibbs ({machine()})", HEADS, lines)
    console = open_console()
    console.print(found)
    if given.output is not None:
        given.output.mkdir(parents=True, exist_ok=True)
        with (given.output / "noise.txt").open("w") as file:
            type(console)(file=file, width=120).print(found)


def lines_of(case: Case, samples: int, draws: int) -> Iterator[dict[str, str]]:
    """One line for each noise."""
    compiled = ol.compile_polytope(case.polytope)
    vertices = compiled.vertices(**case.parameters).flatten(1)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(draws, vertices.shape[1], generator=generator, dtype=torch.float64)
    for name, noise in case.noises.items():
        found = [distances(case, compiled, vertices, s, noise, samples) for s in (torch.zeros_like(drawn[0]), *drawn)]
        zero, others = found[0], torch.tensor(found[1:]).mean(0)
        numbers = [f"{value:.3f}" for value in (*zero, *others.tolist())]
        yield dict(zip(HEADS, [case.name, str(len(vertices)), name, *numbers], strict=True))


def distances(
    case: Case,
    compiled: ol.CompiledPolytope,
    vertices: Tensor,
    scores: Tensor,
    noise: ol.AbstractNoise,
    samples: int,
) -> tuple[float, float]:
    """Of the distributions, and of the marginals that differ most."""
    gibbs = torch.softmax(vertices @ scores, dim=0)
    perturbed = scores + noise.draw((samples, len(scores)), torch.Generator().manual_seed(1), scores.device)
    best = compiled.maximize(perturbed.reshape(samples, *compiled.shape), **case.parameters).check().value.flatten(1)
    which = torch.cdist(best, vertices).argmin(dim=1)
    share = torch.bincount(which, minlength=len(vertices)).double() / samples
    marginals = (share - gibbs) @ vertices
    return 0.5 * float((share - gibbs).abs().sum()), float(marginals.abs().max())


if __name__ == "__main__":
    main()

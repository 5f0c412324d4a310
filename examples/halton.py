"""Settings to try: the same points on logarithmic scales for everyone who compares."""

from __future__ import annotations

import numpy as np
from scipy.stats import qmc

__all__ = ["log_points"]


def log_points(count: int, ranges: list[tuple[float, float]], seed: int) -> list[list[float]]:
    """So many points of a Halton sequence, each with a number from every range, evenly spread on a logarithmic scale.

    Fewer points are the first ones of more. Numbers are rounded to four digits, as they are shown.
    """
    if count < 1:
        return []
    low, high = np.log10(np.array(ranges, dtype=float)).T
    points = 10 ** qmc.scale(qmc.Halton(len(ranges), rng=seed).random(count), low, high)
    return [[float(f"{value:.4g}") for value in point] for point in points.tolist()]

"""What the reports of examples share, and the settings that are tried."""

import math

import numpy as np
import pytest
from halton import log_points
from report_tables import Gain, cell, markdown_table, mean_and_interval, over_cases
from scipy import stats


def test_interval_is_students():
    values = [79.0, 81.0, 80.5, 78.5, 80.0]
    mean, half = mean_and_interval(values)
    low, high = stats.t.interval(0.95, df=4, loc=mean, scale=stats.sem(values))
    assert mean == pytest.approx(79.8) and (mean - half, mean + half) == pytest.approx((low, high))
    assert mean_and_interval([3.0])[0] == 3.0 and math.isnan(mean_and_interval([3.0])[1])


def test_over_cases_is_the_paired_bootstrap():
    a, b = np.random.default_rng(0).normal(size=(2, 50))

    def difference(x, y, axis):
        return (x - y).mean(axis=axis)

    settings = {"paired": True, "n_resamples": 2000, "batch": 100, "method": "percentile", "rng": 0}
    known = stats.bootstrap((a, b), difference, **settings).confidence_interval
    found = over_cases(lambda index, axis: (a - b)[index].mean(axis=axis), 50)
    assert found == pytest.approx(tuple(known))
    alone = over_cases(lambda index, axis: np.stack([a[index].mean(axis=axis)] * 3), 1)
    assert np.shape(alone) == (2, 3) and np.isnan(alone).all()


def test_cells_and_tables():
    assert cell([1.0, 1.0]) == "1.0 ± 0.0" and cell([-1.26], 1, "+") == "−1.3" and cell([-0.01], 1, "+") == "+0.0"
    assert str(Gain(1.26, 0.5, (0.4, 2.0))) == "+1.3 ± 0.5 [+0.4, +2.0] *"
    assert str(Gain(-1.26, 1.5, (-2.0, -0.4))) == "−1.3 ± 1.5 [−2.0, −0.4]"
    assert str(Gain(2.0, math.nan, (math.nan, math.nan))) == "+2.0"
    assert markdown_table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]


def test_points_are_spread_on_logarithmic_scales():
    ranges = [(0.01, 1.0), (1.0, 1000.0)]
    points = np.array(log_points(64, ranges, seed=3))
    for column, (low, high) in zip(np.log10(points).T, np.log10(ranges), strict=True):
        counted = np.histogram(column, bins=8, range=(low, high))[0]
        assert counted.sum() == 64 and counted.min() >= 6 and counted.max() <= 10
    assert log_points(5, ranges, seed=3) == points[:5].tolist() != log_points(5, ranges, seed=4)
    assert log_points(0, ranges, seed=3) == log_points(-1, ranges, seed=3) == []

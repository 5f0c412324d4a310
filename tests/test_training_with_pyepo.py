"""What optlayers and PyEPO both train by: the same gradients where no noise is drawn, and the table that is made."""

import csv

import pytest
import torch
import training_with_pyepo
from trained_methods import METHODS, Known, OnCosts
from training_with_pyepo import Findings, Regret, Round, Split, Trainee, arguments, lines, main

import optlayers as ol
from polytopes import grid_path

BY_NAME = {method.name: method for method in METHODS}


def known_of(compiled, costs):
    paths = compiled.maximize(-costs).check().value
    return Known(costs, paths, (costs * paths).sum(1))


@pytest.fixture(scope="module")
def compiled():
    return ol.compile_polytope(grid_path(5, 5))


@pytest.fixture
def batch(compiled):
    """Predicted costs, and what is known."""
    generator = torch.Generator().manual_seed(0)
    true = 0.5 + torch.rand(16, 40, generator=generator)
    return true * (0.5 + torch.rand(16, 40, generator=generator)), known_of(compiled, true)


def mean_gradient(loss, predicted, known, repeats):
    total = torch.zeros_like(predicted)
    for _ in range(repeats):
        leaf = predicted.clone().requires_grad_()
        total += torch.autograd.grad(loss(leaf, known), leaf)[0] / repeats
    return total


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_gradients_of_ours_are_those_of_pyepo(method, compiled, batch):
    """With noise they are means over draws that differ."""
    pytest.importorskip("ortools")
    models = pytest.importorskip("pyepo.model.ort")
    repeats = 12 if method.random else 1
    losses = method.ours(compiled, torch.Generator().manual_seed(0)), method.theirs(models.shortestPathModel((5, 5)), 0)
    mine, theirs = (mean_gradient(loss, *batch, repeats) for loss in losses)
    alike = torch.nn.functional.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0)
    if not method.random:
        assert mine.abs().max() > 0.01 and (mine - theirs).abs().max() <= 1e-5
    elif method.name.startswith("perturbed optimizer"):  # of much variance
        assert alike > 0.3 and mine.norm() / theirs.norm() == pytest.approx(1.0, abs=0.3)
    else:
        assert alike > 0.95 and mine.norm() / theirs.norm() == pytest.approx(1.0, abs=0.1)


def test_noise_on_costs_is_that_of_scores_negated():
    noise, shape = ol.Gumbel(), (3, 1000)
    on_scores, on_costs = (
        each.draw(shape, torch.Generator().manual_seed(0), torch.device("cpu")) for each in (noise, OnCosts(noise))
    )
    assert torch.equal(on_costs, -on_scores) and OnCosts(noise).mean == -noise.mean
    at = on_costs[0].clone().requires_grad_()
    log_density = (at - torch.exp(at)).sum()  # of a number whose negative is Gumbel
    (slope,) = torch.autograd.grad(log_density, at)
    assert torch.allclose(OnCosts(noise).score(at.detach()), -slope)
    assert not OnCosts(ol.SumOfGamma(5)).has_score


def test_trainees_begin_alike_and_see_the_same_batches(compiled):
    features, costs = torch.randn(50, 5), 0.5 + torch.rand(50, 40)
    split = Split(features, known_of(compiled, costs))
    seen = []

    def loss(predicted, known):
        seen.append(known.costs)
        return predicted.sum()

    ways = [Trainee(loss, split, seed=7, positive=False, batch=20, rate=0.01) for _ in range(2)]
    for way in ways:
        way.epoch()
        way.epoch()
    assert len(seen) == 12 and [len(each) for each in seen[:3]] == [20, 20, 10]
    assert all(torch.equal(one, other) for one, other in zip(seen[:6], seen[6:], strict=True))
    assert not torch.equal(seen[0], seen[3])
    pairs = zip(ways[0].model.parameters(), ways[1].model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_positive_predictions_are_above_0(compiled):
    split = Split(10 * torch.randn(50, 5), known_of(compiled, 0.5 + torch.rand(50, 40)))
    model = Trainee(lambda *_: None, split, seed=0, positive=True, batch=20, rate=0.01).model
    assert (model(split.features) > 0).all()


def test_the_table_has_intervals_differences_and_ratios():
    findings = Findings(
        [Regret("SPO+", 0, 0.10, 0.11), Regret("SPO+", 1, 0.12, 0.11), Regret("SPO+", 2, 0.11, 0.11)],
        [Round("SPO+", 0, 0.1, 2.0), Round("SPO+", 1, 0.2, 3.0), Round("SPO+", 2, 0.1, 1.0), Round("slow", 0, 1, 144)],
    )
    spo, slow = lines(findings)
    assert spo == {
        "method": "SPO+",
        "regret, optlayers, %": "11.000 ± 2.484",  # t(0.975, 2) = 4.3027, standard error 1 / sqrt(3)
        "regret, PyEPO, %": "11.000 ± 0.000",
        "difference, points": "+0.000 ± 2.484",
        "seconds / epoch, optlayers": "0.1",
        "seconds / epoch, PyEPO": "2",
        "ratio": "15×",
    }
    assert slow == {
        "method": "slow",
        "seconds / epoch, optlayers": "1",
        "seconds / epoch, PyEPO": "144",
        "ratio": "144×",
    }


def test_one_seed_has_no_interval():
    (row,) = lines(Findings([Regret("SPO+", 0, 0.1, 0.125)], [Round("SPO+", 0, 0.1, 2.0)]))
    assert row["difference, points"] == "−2.500" and row["regret, optlayers, %"] == "10.000"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--only", "magic"], "no method matches 'magic'; there are SPO+"),
        (["--only", "("], "is no regular expression"),
        (["--rounds", "0"], "--rounds must be at least 1, but is 0"),
        (["--cap", "nan"], "--cap must be above 0, but is nan"),
        (["--seeds", "-3"], "--seeds must be at least 0"),
    ],
)
def test_a_wrong_option_is_explained(capsys, given, message):
    with pytest.raises(SystemExit):
        arguments(given)
    assert message in capsys.readouterr().err


def test_what_is_missing_is_named_with_what_brings_it(monkeypatch, capsys):
    monkeypatch.setattr(training_with_pyepo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        arguments([])
    assert "pyepo and ortools not installed; pip install 'optlayers[peers]'" in capsys.readouterr().err


def test_the_comparison_end_to_end(tmp_path, capsys):
    pytest.importorskip("ortools")
    pytest.importorskip("pyepo")
    given = ["--only", "SPO|identity", "--seeds", "0", "1", "--epochs", "2", "--rounds", "2"]
    given += ["--train-instances", "64", "--test-instances", "50", "--output", str(tmp_path)]
    findings = main(given)
    assert [(r.method, r.seed) for r in findings.regrets] == [
        (name, seed) for name in ("SPO+", "negative identity") for seed in (0, 1)
    ]
    for each in findings.regrets:  # without noise both go the same way
        assert 0 < each.ours < 1 and each.ours == pytest.approx(each.theirs, abs=1e-3)
    with (tmp_path / "training_with_pyepo_seconds.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 4
    text = (tmp_path / "training_with_pyepo.md").read_text()
    assert "64 instances to learn from, 50 for the regret, 2 epochs" in text and "| negative identity |" in text
    main([*given, "--cap", "1e-9"])
    assert "one epoch is measured, and no regret" in capsys.readouterr().out

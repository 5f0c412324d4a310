"""Predict, then optimize: the data, the problems, and the whole example but small."""

import csv
import json
from statistics import mean

import pytest
import torch
from decision_focused import DEFAULT_METHODS, arguments, main, planned
from decision_methods import METHODS, RULES, TWO_STAGE, Known, hamming, regret
from decision_problems import FEATURES, PROBLEMS, draw_amounts, draw_data, knapsack, shortest_path
from decision_training import Run, draw, train

import optlayers as ol


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_amounts_without_noise_are_the_polynomial(degree):
    features = torch.randn(6, FEATURES, generator=seeded(), dtype=torch.float64)
    amounts, matrix = draw_amounts(features, 3, degree, 0.0, seeded(1))
    for i in range(6):
        for j in range(3):
            inner = sum(matrix[j, k].item() * features[i, k].item() for k in range(FEATURES)) / FEATURES**0.5
            assert amounts[i, j].item() == pytest.approx(((inner + 3) ** degree + 1) / 3.5**degree)


def test_noise_is_uniform_about_the_polynomial():
    features = torch.randn(4000, FEATURES, generator=seeded(), dtype=torch.float64)
    amounts, matrix = draw_amounts(features, 10, 4, 0.5, seeded(1))
    polynomial = ((features @ matrix.T / FEATURES**0.5 + 3) ** 4 + 1) / 3.5**4
    factor = amounts / polynomial
    assert 0.5 <= factor.min() < 0.501 and 1.499 < factor.max() <= 1.5
    assert factor.mean().item() == pytest.approx(1.0, abs=0.01)
    assert factor.var().item() == pytest.approx(1 / 12, abs=0.003)


def test_features_and_the_matrix_are_drawn_as_published():
    _, matrix = draw_amounts(torch.zeros(1, FEATURES, dtype=torch.float64), 4000, 1, 0.0, seeded())
    assert matrix.unique().tolist() == [0.0, 1.0]
    assert matrix.mean().item() == pytest.approx(0.5, abs=0.02)
    data = draw_data(shortest_path(seeded()), 1, 0.0, (4000, 10, 20), seeded())
    covariance = data.train.features.T.cov()
    assert data.train.features.mean(0).abs().max() < 0.06
    assert (covariance - torch.eye(FEATURES, dtype=torch.float64)).abs().max() < 0.08
    assert [len(part.scores) for part in (data.train, data.dev, data.test)] == [4000, 10, 20]


@pytest.mark.parametrize(("degree", "noise"), [(0, 0.0), (1, -0.1), (1, 1.5)])
def test_wrong_amounts_are_refused(degree, noise):
    with pytest.raises(ValueError, match=f"but got degree {degree} and noise {noise}"):
        draw_amounts(torch.zeros(1, 2), 3, degree, noise, seeded())


def test_costs_are_negated_and_values_are_not():
    cost, value = (draw_data(make(seeded()), 2, 0.5, (50, 1, 1), seeded(1)) for make in (shortest_path, knapsack))
    assert (cost.train.scores < 0).all() and (value.train.scores > 0).all()


def test_the_knapsack_is_declared_right():
    polytope = knapsack(seeded()).polytope
    report = ol.testing.check_polytope(polytope)
    assert polytope.oracle is None
    assert not report.integral  # a relaxation: the last item that fits is cut
    weights = 3 + 5 * torch.rand(3, 20, generator=seeded(), dtype=torch.float64)
    values = torch.rand(50, 20, generator=seeded(1), dtype=torch.float64)
    taken = ol.compile_polytope(polytope).maximize(values).check().value
    used = taken @ weights.T / weights.sum(1)
    assert (used < 0.25 + 1e-9).all() and (used.amax(1) > 0.25 - 1e-9).all()


@pytest.mark.parametrize("name", list(PROBLEMS))
def test_perfect_predictions_have_no_regret_and_least_squares_makes_them(name):
    run = Run(name, 1, 0.0, TWO_STAGE, seed=3, epochs=1)
    problem, data = draw(run)
    scores = data.test.scores
    assert ol.regret(problem.polytope, scores, scores, normalized=True).abs() < 1e-12
    assert ol.regret(problem.polytope, -scores, scores, normalized=True) > 0.1
    assert abs(train(run)["regret"]) < 1e-9  # at degree 1 without noise the model is right


def test_decision_losses_by_hand():
    known = Known(torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[1.0, 0.0, 1.0]]))
    decided = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    assert (regret(decided, known).item(), hamming(decided, known).item()) == (4.0, 3.0)
    assert torch.autograd.grad(regret(decided, known), decided)[0].tolist() == [[-3.0, -1.0, -2.0]]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PROBLEMS))
def test_where_the_model_is_misspecified_spo_plus_decides_better_than_least_squares(name):
    regrets = {
        method: [train(Run(name, 4, 0.0, method, seed, epochs=6))["regret"] for seed in range(3)]
        for method in (TWO_STAGE, "spo+")
    }
    assert mean(regrets["spo+"]) < 0.6 * mean(regrets[TWO_STAGE])


def test_the_chosen_candidate_is_the_best_on_dev():
    run = Run("shortest path", 4, 0.5, "blackbox", 0, epochs=2, sizes=(100, 50, 50))
    found, again = train(run), train(run)
    candidates = found["candidates"]
    assert {(c["variant"], c["learning_rate"]) for c in candidates} == {
        (variant, rate) for variant in METHODS["blackbox"] for rate in run.learning_rates
    }
    assert found["dev"] == min(c["dev"] for c in candidates)
    assert {**found, "seconds": 0.0} == {**again, "seconds": 0.0}


def test_every_learning_rate_keeps_its_best_epoch():
    # Longer runs begin as the shorter ones do.
    runs = [Run("shortest path", 4, 0.5, "spo+", 0, epochs, sizes=(100, 50, 50)) for epochs in (1, 2, 3, 4)]
    kept = torch.tensor([[c["dev"] for c in train(run)["candidates"]] for run in runs])
    assert (kept.diff(dim=0) <= 0).all() and (kept[-1] < kept[0]).any()


@pytest.mark.slow
@pytest.mark.usefixtures("started_ray")
def test_every_method_runs(tmp_path):
    tiny = ["--train-instances", "50", "--dev-instances", "20", "--test-instances", "20", "--epochs", "1"]
    methods = [TWO_STAGE, *METHODS]
    given = [*tiny, "--jobs", "1", "--seeds", "0", "1", "--output", str(tmp_path), "--methods", *methods]
    outcomes = main(given)
    assert len(outcomes) == 2 * 2 * len(methods)
    written = {path.name for path in tmp_path.iterdir() if path.is_file()}
    assert written == {"runs.csv", "candidates.csv", "table.md", "regrets.png", "differences.png"}
    with (tmp_path / "runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["test_regret"]) for row in rows] == pytest.approx(
        [o.result["regret"] for o in outcomes], abs=1e-6
    )
    assert all(0 <= o.result["regret"] < 1 for o in outcomes)
    table = (tmp_path / "table.md").read_text()
    assert table.count("| two-stage |") == 2 and table.count("| spigot |") == 4
    path = next((tmp_path / "runs").iterdir())
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "result": {**kept["result"], "regret": 0.125}}))
    assert 12.5 in [o.percent for o in main(given)]  # a second start reads what is there


def test_the_same_draw_for_every_method():
    runs = planned(arguments(["--seeds", "0", "1", "--degrees", "1", "4", "--noise", "0", "0.5"]))
    assert len(runs) == 2 * 2 * 2 * len(DEFAULT_METHODS) * 2
    first, second = (draw(Run("knapsack", 4, 0.5, method, 7, 1))[1] for method in ("spo+", TWO_STAGE))
    other = draw(Run("knapsack", 4, 0.5, TWO_STAGE, 8, 1))[1]
    assert torch.equal(first.test.scores, second.test.scores) and not torch.equal(first.test.scores, other.test.scores)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--epochs", "0"], "--epochs must be at least 1, but is 0"),
        (["--degrees", "0", "2"], r"--degrees must be at least 1, but are [0, 2]"),
        (["--noise", "2"], "--noise must be between 0 and 1, but is [2.0]"),
        (["--methods", "magic"], "invalid choice: 'magic'"),
        (["--problems", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_a_wrong_option_is_explained(capsys, given, message):
    with pytest.raises(SystemExit):
        arguments(given)
    assert message in capsys.readouterr().err


def test_the_default_of_identity_is_one_of_the_variants():
    """Centred where all structures are equally long, as ``docs/results.md`` says of every problem there."""
    signal = torch.randn(1, 40, generator=seeded(), dtype=torch.float64)
    for name, center in (("shortest path", True), ("knapsack", False)):
        polytope = PROBLEMS[name](seeded()).polytope
        scores = torch.randn(1, *polytope.shape, generator=seeded(1), dtype=torch.float64)
        found = []
        for rule in (ol.Identity(), RULES["identity"][f"center {center}"]):
            leaf = scores.clone().requires_grad_()
            ol.OptLayer(polytope, rule)(leaf).backward(signal[:, : scores.numel()].reshape(scores.shape))
            found.append(leaf.grad)
        assert torch.equal(*found)

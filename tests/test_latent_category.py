"""The study of latent structures: its data, and that structures are learned from labels."""

import csv
import time
from dataclasses import replace

import pytest
import torch
from latent_category import arguments, candidates, chosen, main
from latent_data import SIZES, STRUCTURES, draw_problem
from latent_models import CategoryModel, model_for
from latent_report import Result
from latent_rules import MARKS, RULES
from latent_training import MEASURES, Run, agreement, train

import optlayers as ol

PROBLEMS = [("category", 3), *SIZES.items()]


@pytest.mark.parametrize("clusters", [3, 10])
def test_labels_of_every_cluster_are_balanced_and_linear(clusters):
    problem = draw_problem("category", clusters, seed=0)
    split = problem.train
    assert (len(split), len(problem.dev), len(problem.test)) == (5000, 1000, 1000)
    assert split.features.shape == (5000, 100)
    for k in range(clusters):
        mine = split.structures[:, k] == 1
        count = int(mine.sum())
        assert abs(count - 5000 / clusters) < 4 * (5000 / clusters) ** 0.5
        x, y = split.features[mine], split.labels[mine].double()
        assert abs(y.mean() - 0.5) < 4 * 0.5 / count**0.5
        assert abs(x.std(dim=0).mean() - 0.1) < 0.005
        # Least squares on the centred points finds the direction of the label.
        centred = (x - x.mean(dim=0)).double()
        direction = torch.linalg.lstsq(centred, 2 * y[:, None] - 1).solution
        assert ((centred @ direction > 0).flatten() == (y > 0.5)).double().mean() > 0.9


@pytest.mark.parametrize(("structure", "size"), PROBLEMS)
def test_true_structures_are_vertices_and_every_one_is_as_probable(structure, size):
    problem = draw_problem(structure, size, seed=1)
    split = problem.train
    compiled = ol.compile_polytope(problem.polytope)
    # A vertex with 0/1 entries is the best one for the scores 2 z - 1.
    assert torch.equal(compiled.maximize(2 * split.structures - 1).check().value, split.structures)
    assert abs(split.labels.double().mean() - 0.5) < 4 * 0.5 / 5000**0.5
    _, counts = torch.unique(split.structures.flatten(1), dim=0, return_counts=True)
    every = {"category": 3, "tree": 5**4, "matching": 120, "sequence": 3**6}[structure]
    assert len(counts) >= 0.99 * every
    expected = 5000 / every
    chi_square = ((counts - expected) ** 2 / expected).sum() + (every - len(counts)) * expected
    assert abs(chi_square - (every - 1)) < 5 * (2 * (every - 1)) ** 0.5


@pytest.mark.parametrize(("structure", "size"), PROBLEMS)
def test_a_perfect_scorer_finds_most_of_the_truth_but_for_noise(structure, size):
    problem = draw_problem(structure, size, seed=2)
    found = ol.compile_polytope(problem.polytope).maximize(problem.true_scores(problem.test.features)).value
    share = agreement(structure, found, problem.test.structures)
    assert share == 1.0 if structure == "category" else 0.85 < share < 0.99


def test_the_category_decoder_is_bilinear():
    torch.manual_seed(0)
    model = CategoryModel(7, 4)
    x, z = torch.randn(5, 7), torch.rand(5, 4)
    torch.testing.assert_close(model.logits(x, z), model.decoder(z, x))


def test_the_decoder_of_parts_sees_chosen_parts_only():
    problem = draw_problem("tree", 3, seed=0, train=10)
    model = model_for(problem)
    z = problem.train.structures
    noise = torch.randn(problem.train.features.shape, generator=torch.Generator().manual_seed(0))
    changed = problem.train.features + noise * (1 - z[..., None])
    torch.testing.assert_close(model.logits(changed, z), model.logits(problem.train.features, z))


def test_agreement_of_categories_does_not_depend_on_names():
    z = torch.eye(3)[torch.tensor([0, 0, 1, 2, 2, 1])]
    assert agreement("category", z[:, [2, 0, 1]], z) == pytest.approx(1.0)
    assert agreement("category", torch.eye(3)[torch.zeros(6, dtype=int)], z) == pytest.approx(0.0)
    assert agreement("matching", torch.eye(3)[None], torch.eye(3)[[1, 0, 2]][None]) == pytest.approx(1 / 3)


TINY = ["--rules", "sparsemap", "spigot", "--structures", "category", "sequence", "--train-size", "100"]
TINY += ["--epochs", "2", "--learning-rates", "0.1", "--strengths", "spigot=0.5,1", "--jobs", "1"]
TINY += ["--grid-seeds", "100", "--seeds", "0", "1"]


@pytest.mark.slow
@pytest.mark.usefixtures("started_ray")
def test_the_study_end_to_end_and_again(tmp_path):
    results = main([*TINY, "--output", str(tmp_path)])
    names = {"sparsemap", "spigot", *MARKS}
    assert {(r.run.structure, r.run.rule) for r in results} == {(s, n) for s in ("category", "sequence") for n in names}
    assert len(results) == 2 * 2 * len(names)
    assert all(len(r.curve[measure]) == 2 for r in results for measure in MEASURES)
    files = {
        "curves_category_3.png",
        "curves_sequence_6.png",
        "grid.csv",
        "results.png",
        "runs",
        "runs.csv",
        "table.md",
    }
    assert {path.name for path in tmp_path.iterdir()} == files
    with (tmp_path / "runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * len(results) and sum(int(row["chosen"]) for row in rows) == len(results)
    assert (tmp_path / "table.md").read_text().count("| spigot |") == 2
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(kept) == len(results) + 2 * (len(names) + 1)
    start = time.perf_counter()
    again = main([*TINY, "--output", str(tmp_path)])
    assert again == results and time.perf_counter() - start < 10  # no process was started
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == kept


def test_the_grid_is_chosen_on_dev():
    options = arguments(["--rules", "spigot", "--structures", "tree", "--learning-rates", "0.1", "1", "2"])
    group = candidates(options)[-1]
    assert len(group) == 9 and chosen([group], [], []) == [group[4]]
    results = [
        Result(replace(run, seed=5), {name: [50.0, 50.0 + (name == "dev_accuracy") * k] for name in MEASURES}, 1.0)
        for k, run in enumerate([*group[1:], group[0]])
    ]
    assert chosen([group], results, [5]) == [group[0]]


@pytest.mark.many(3)
@pytest.mark.parametrize("name", RULES)
def test_every_rule_takes_part_and_is_reproducible(name):
    strength = RULES[name].strengths[0] if RULES[name].strengths else None
    run = Run("matching", 3, name, strength, 0.03, seed=4, epochs=1, batch_size=50, train_size=100)
    first, second = (train(run) for _ in range(2))
    assert all(first[measure] == second[measure] for measure in MEASURES)


@pytest.mark.many(2)
@pytest.mark.parametrize("name", ["sparsemap", "structured attention"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures_are_learned_from_labels(structure, name):
    run = Run(structure, 3, name, None, 0.03, seed=0, epochs=6, batch_size=100, train_size=2000)
    learned, fixed, known = (
        Result.of(r, train(r)) for r in (run, replace(run, rule="pipeline"), replace(run, rule="true scorer"))
    )
    assert learned.at_best("test_agreement") > max(80.0, fixed.at_best("test_agreement") + 20)
    assert learned.at_best("test_accuracy") > fixed.at_best("test_accuracy") + 20
    assert learned.at_best("test_agreement") <= known.at_best("test_agreement") + 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--strengths", "sparsemap=1"], "expected RULE=VALUE,VALUE"),
        (["--strengths", "spigot=much"], "are no numbers"),
        (["--epochs", "0"], "--epochs must be at least 1, but is 0"),
        (["--clusters", "1"], "--clusters must be at least 2"),
        (["--seeds", "1", "2", "--grid-seeds", "2"], "must differ"),
        (["--rules", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_a_wrong_option_is_explained(capsys, given, message):
    with pytest.raises(SystemExit):
        arguments(given)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("structure", "size"), PROBLEMS)
def test_identity_centres_by_default_as_in_the_tables(structure, size):
    problem = draw_problem(structure, size, seed=0)
    drawn = problem.train.structures.flatten(1).sum(1)
    assert (drawn == drawn[0]).all() and ol.compile_polytope(problem.polytope).equally_long

"""The main example, whole but small."""

import csv

import pytest
from dependency_data import FormatError, sample_corpus
from semantic_training import MARKS, RULES, Corpus, Run, train
from syntax_to_semantics import SIGNAL, arguments, load_corpus, main, planned

TINY = ["--max-words", "4", "--train-sentences", "24", "--dev-sentences", "8", "--epochs", "1", "--jobs", "1"]


def test_every_rule_and_mark_runs(tmp_path):
    results = main([*TINY, "--seeds", "0", "--rules", *RULES, "--output", str(tmp_path)])
    assert {r.run.name for r in results} == {*RULES, *MARKS}
    assert all(len(r.curve) == 1 for r in results)
    assert next(r for r in results if r.run.name == "gold tree").final.attachment == 100.0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.png", "runs.csv", "table.md", "trees.png"]
    with (tmp_path / "runs.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(results)
    rows = [line.split(" | ")[0] for line in (tmp_path / "table.md").read_text().splitlines()[2:]]
    assert rows == [f"| {name}" for name in ("no tree", *RULES, "gold tree")]


@pytest.mark.parametrize("name", ["structured_attention", "spigot", "sparsemap"])
def test_a_run_is_reproducible(name):
    sentences = sample_corpus(32, max_words=4, seed=0)
    run = Run(name, seed=5, epochs=1, tree_fraction=0.5, tree_weight=1.0, signal=1.0, clip_norm=1.0)
    first, second = (train(run, Corpus(sentences[:24], sentences[24:]), report=lambda: None) for _ in range(2))
    assert first.curve == second.curve and first.trees == second.trees


def test_every_rule_gets_the_same_budget():
    runs = planned(arguments(["--seeds", "0", "1", "--signal", "ste=0.5", "structured_attention=0.25"]))
    assert len(runs) == 2 * (len([name for name in RULES if not name.endswith("in_units")]) + len(MARKS))
    assert {r.signal for r in runs if r.name == "ste"} == {0.5}
    assert {r.signal for r in runs if r.name == "structured_attention"} == {0.25}
    assert set(SIGNAL) == set(RULES)
    assert len({(r.epochs, r.tree_fraction, r.tree_weight, r.clip_norm, r.learning_rate) for r in runs}) == 1


def test_corpus_from_files(tmp_path):
    token = "1\tYes\tyes\tUH\t0\troot\t+\t-\t_\n\n"
    options = arguments(["--data", str(tmp_path), "--train-sentences", "2"])
    with pytest.raises(SystemExit, match=r"one file \*train.sdp in .* found 0"):
        load_corpus(options)
    (tmp_path / "a.train.sdp").write_text(token * 3)
    (tmp_path / "a.dev.sdp").write_text(token)
    corpus = load_corpus(options)
    assert (len(corpus.train), len(corpus.dev)) == (2, 1)
    (tmp_path / "a.dev.sdp").write_text(token + "1\tno\n")
    with pytest.raises(FormatError, match=r"a\.dev\.sdp:3: expected at least 9 columns"):
        load_corpus(options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--signal", "ste=much"], "'much' is no number"),
        (["--signal", "nothing=1"], "expected RULE=FACTOR"),
        (["--tree-fraction", "1.5"], "between 0 and 1"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--rules", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_a_wrong_option_is_explained(capsys, given, message):
    with pytest.raises(SystemExit):
        arguments(given)
    assert message in capsys.readouterr().err

"""The main example, whole but small; its measures and its statistics."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dependency_data import FormatError, read_sdp, sample_corpus
from scipy import stats
from semantic_measures import MEASURES, Result, gain
from semantic_parser import Batch, Vocabulary
from semantic_rules import MARKS, RULES, SIGNALS, STEPS, tries
from semantic_training import COUNTS, Corpus, Run, evaluate, fit, train
from syntax_to_semantics import DEFAULT, arguments, chosen_of, defaults, load_corpus, main, runs_of, tried_runs

TINY = ["--max-words", "4", "--train-sentences", "24", "--dev-sentences", "8", "--epochs", "1"]
RUN = Run("pipeline", seed=5, tree_fraction=0.5, signal=1.0, step=1.0, epochs=1)
TOKEN = "1\tYes\tyes\tUH\t0\troot\t+\t-\t_\n\n"


@pytest.mark.usefixtures("started_ray")
def test_every_rule_and_mark_runs(tmp_path):
    (tmp_path / "test.sdp").write_text(TOKEN * 3)
    given = [*TINY, "--seeds", "0", "1", "--rules", *RULES, "--tree-fractions", "0.5", "1", "--tries", "2"]
    given += ["--test", str(tmp_path / "test.sdp"), "--output", str(tmp_path / "out")]
    results = main(given)
    assert len(results) == 2 * len(MARKS) + 2 * 2 * len(RULES)
    assert {r.run.name for r in results} == {*RULES, *MARKS}
    assert all(len(r.curve) == 1 and r.split == "test" and len(r.counts) == 3 for r in results)
    assert all(r.final["tree attachment"] == 100.0 for r in results if r.run.name == "gold tree")
    written = {path.name for path in (tmp_path / "out").iterdir() if path.is_file()}
    assert written == {"fractions.png", "results.png", "trees.png", "runs.csv", "tries.csv", "table.md", "shared.json"}
    with (tmp_path / "out" / "runs.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(results)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("| spigot |") == 2 and table.count("| spigot − pipeline |") == 2
    for path in (tmp_path / "out" / "tries" / "runs").iterdir():
        assert json.loads(path.read_text())["result"]["test"] is None  # what chooses does not see it
    again = main(given)
    assert [r.kept for r in again] == [r.kept for r in results]
    with pytest.raises(ValueError, match=r"holds runs with train '24 sentences .*', not '20 sentences"):
        main([*TINY, "--train-sentences", "20", "--output", str(tmp_path / "out")])


@pytest.mark.parametrize("name", ["structured_attention", "spigot", "sparsemap"])
def test_a_run_is_reproducible(name):
    sentences = sample_corpus(32, max_words=4, seed=0)
    corpus = Corpus(sentences[:24], sentences[24:], [])
    first, second = (train(replace(RUN, name=name), corpus) for _ in range(2))
    assert {**first, "seconds": 0.0} == {**second, "seconds": 0.0}


def test_every_sentence_is_trained_on_once_an_epoch(monkeypatch):
    sentences, seen = sample_corpus(70, max_words=7, seed=0), []
    of = Batch.of

    def watched(part, has_tree, vocabulary):
        seen.append((len(part), [len(s) for s in part], [id(s) for s in part]))
        return of(part, has_tree, vocabulary)

    monkeypatch.setattr(Batch, "of", watched)
    vocabulary = Vocabulary.of(sentences)
    for _ in fit(replace(RUN, batch_size=8), sentences, vocabulary):
        pass
    assert sorted(k for _, _, batch in seen for k in batch) == sorted(map(id, sentences))
    assert max(size for size, _, _ in seen) == 8
    assert np.mean([max(lengths) - min(lengths) for _, lengths, _ in seen]) < 1.0
    assert [lengths[0] for _, lengths, _ in seen] != sorted(lengths[0] for _, lengths, _ in seen)


def test_counts_of_a_sentence_do_not_depend_on_the_others():
    sentences = sample_corpus(20, max_words=7, seed=0)
    vocabulary = Vocabulary.of(sentences)
    model = next(fit(RUN, sentences, vocabulary))[0]
    together = evaluate(model, sentences, vocabulary, RUN)
    alone = torch.cat([evaluate(model, [s], vocabulary, RUN) for s in sentences])
    assert torch.equal(together, alone)
    assert together[:, COUNTS.index("words")].tolist() == [len(s) for s in sentences]
    assert together[:, COUNTS.index("gold")].tolist() == [len(s.roles) for s in sentences]


def made(seed, heads, right):
    """A result of 60 sentences with 10 words and 4 roles each; ``heads`` and ``right`` of them are right."""
    counts = [[10, h, 4, 4, 4, r] for h, r in zip(heads, right, strict=True)]
    return Result(replace(RUN, seed=seed), {"dev": counts, "test": None, "curve": [np.sum(counts, 0).tolist()]})


def test_measures_and_gains_against_scipy():
    generator = np.random.default_rng(0)
    draws = [(generator.integers(0, 11, 60), generator.integers(0, 5, 60)) for _ in range(6)]
    mine, other = ([made(k, *draw) for k, draw in enumerate(part)] for part in (draws[:3], draws[3:]))
    values = [[r.final["labelled F1"] for r in part] for part in (mine, other)]
    assert values[0][0] == pytest.approx(100 * draws[0][1].sum() / 240)
    found = gain(mine, list(reversed(other)))
    assert list(found) == list(MEASURES) and found["semantic F1"].by_sentence == (0.0, 0.0)
    paired = stats.ttest_rel(*values).confidence_interval()
    one = found["labelled F1"]
    assert (one.mean - one.by_seed, one.mean + one.by_seed) == pytest.approx((paired.low, paired.high))
    # Every sentence has as many roles, so that the difference is a mean over sentences, whose interval is known.
    sums = [sum(right for _, right in part) for part in (draws[:3], draws[3:])]
    each = (sums[0] - sums[1]) / 12 * 100
    half = 1.96 * each.std() / 60**0.5
    assert one.by_sentence == pytest.approx((each.mean() - half, each.mean() + half), abs=0.2 * half)
    with pytest.raises(ValueError, match="paired by seed"):
        gain(mine, other[:2])
    lonely = gain([made(0, [5], [2])], [made(0, [4], [2])])["tree attachment"]
    assert lonely.mean == 10.0 and np.isnan([lonely.by_seed, *lonely.by_sentence]).all() and not lonely.sure


def test_test_is_measured_where_a_run_says_so():
    sentences = sample_corpus(24, max_words=4, seed=0)
    corpus = Corpus(sentences[:16], sentences[16:20], sentences[20:])
    assert train(RUN, corpus)["test"] is None
    assert len(train(replace(RUN, test="those"), corpus)["test"]) == 4


def test_every_rule_gets_the_same_budget():
    options = arguments(["--seeds", "0", "1", "--signal", "ste=0.5", "structured_attention=0.25", "--step", "spigot=2"])
    runs = runs_of(options, defaults(options))
    assert len(runs) == 2 * (len(DEFAULT) + len(MARKS))
    assert {r.signal for r in runs if r.name == "ste"} == {0.5}
    assert {r.signal for r in runs if r.name == "structured_attention"} == {0.25}
    assert {r.step for r in runs if r.name == "spigot"} == {2.0}
    budgets = {(r.epochs, r.tree_weight, r.clip_norm, r.learning_rate, r.batch_size) for r in runs}
    assert len(budgets) == 1
    options = arguments(["--tries", "5", "--try-epochs", "2", "--rules", *RULES])
    tried = tried_runs(options)
    for name, choice in RULES.items():
        mine = [r for r in tried if r.name == name]
        assert len(set(mine)) == (5 if choice.sends else 1)
        assert all(r.seed == 100 and r.epochs == 2 and r.tree_fraction == 0.2 for r in mine)
        assert all(SIGNALS[0] <= r.signal <= SIGNALS[1] and STEPS[0] <= r.step <= STEPS[1] for r in mine)
        assert len({r.step for r in mine}) == (5 if choice.steps else 1)
    assert tries("spigot", 1, (0.5, 2.0)) == tries("spigot", 0, (0.5, 2.0)) == [(0.5, 2.0)]
    assert tries("ste", 3, (0.5, 2.0))[0] == (0.5, 2.0) and {step for _, step in tries("ste", 3, (0.5, 2.0))} == {2.0}
    twice = arguments(["--seeds", "0", "0", "1", "--rules", "spigot", "spigot"])
    assert len(runs_of(twice, defaults(twice))) == len(set(runs_of(twice, defaults(twice)))) == 2 * (1 + len(MARKS))


def test_the_best_on_dev_is_chosen():
    def tried(name, signal, right):
        result = made(0, [0], [right])
        return replace(result, run=replace(RUN, name=name, signal=signal))

    results = [tried("ste", 0.1, 2), tried("ste", 0.2, 3), tried("ste", 0.3, 1), tried("spigot", 0.4, 0)]
    assert chosen_of(results) == {"ste": (0.2, 1.0), "spigot": (0.4, 1.0)}


def test_corpus_from_files(tmp_path):
    options = arguments(["--data", str(tmp_path), "--train-sentences", "2"])
    with pytest.raises(SystemExit, match=r"one file \*train.sdp in .* found 0"):
        load_corpus(options)
    (tmp_path / "a.train.sdp").write_text(TOKEN * 3)
    (tmp_path / "a.dev.sdp").write_text(TOKEN)
    corpus = load_corpus(options)
    assert (len(corpus.train), len(corpus.dev), len(corpus.test)) == (2, 1, 0)
    options.test = tmp_path / "none.sdp"
    with pytest.raises(SystemExit, match=r"No such file or directory.*none\.sdp"):
        load_corpus(options)
    options.test = tmp_path / "a.dev.sdp"
    assert len(load_corpus(options).test) == 1
    (tmp_path / "a.dev.sdp").write_text(TOKEN + "1\tno\n")
    with pytest.raises(SystemExit, match=r"a\.dev\.sdp:3: expected at least 9 columns"):
        load_corpus(options)
    with pytest.raises(FormatError, match=r"a\.dev\.sdp:3: expected at least 9 columns"):
        read_sdp(tmp_path / "a.dev.sdp", 7)
    (tmp_path / "a.dev.sdp").write_text("")
    with pytest.raises(SystemExit, match="has no sentence of at most 7 words"):
        load_corpus(options)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--signal", "ste=much"], "--signal ste=much: 'much' is no number"),
        (["--step", "nothing=1"], "expected RULE=NUMBER"),
        (["--step", "ste=1"], "--step ste=1: ste has none; expected one of spigot, spigot_eg"),
        (["--signal", "pipeline=1"], "--signal pipeline=1: pipeline has none"),
        (["--tree-fractions", "0.2", "1.5"], "between 0 and 1"),
        (["--epochs", "0"], "--epochs must be at least 1, but is 0"),
        (["--learning-rate", "nan"], "--learning-rate must be above 0, but is nan"),
        (["--clip-norm", "0"], "--clip-norm must be above 0, but is 0"),
        (["--tree-weight", "-1"], "--tree-weight must be at least 0, but is -1"),
        (["--tries", "-1"], "--tries must be at least 0, but is -1"),
        (["--tries", "2", "--seeds", "0", "100"], "--try-seed must not be one of --seeds"),
        (["--rules", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_a_wrong_option_is_explained(capsys, given, message):
    with pytest.raises(SystemExit):
        arguments(given)
    assert message in capsys.readouterr().err

"""Sentiment through semantic graphs: its files, its corpora, what reaches the parser, and the whole but small."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from dependency_data import FormatError, Sentence
from semantic_parser import Vocabulary
from semantic_training import batches_alike
from semantics_to_sentiment import TRY_SEED, arguments, default_run, described, load_corpus, main, shared, tried
from sentiment_data import Corpus, graph_of, read_opinions, sample_graphs, sample_opinions
from sentiment_model import GRAPHS, MARKS, RULES, gold_graphs
from sentiment_report import Result, gain
from sentiment_training import Pretraining, _loss, labelled_f1, model_for, pretrain, train

import optlayers as ol

TINY = ["--graph-sentences", "20", "--train-sentences", "24", "--dev-sentences", "12", "--epochs", "1"]
TINY += ["--parser-epochs", "1", "--hidden", "8"]
GOOD = "# instance 1\n1\tA\ta\tDT\t1\n2\tfilm\tfilm\tNN\t1\n\n# instance 2\n1\t#\t#\t#\t0\n"
WORDS = "# instance 1\n1\tA\ta\tDT\t1\n"


def corpus(max_words=60, count=24):
    graphs, opinions = sample_graphs(count, seed=0), sample_opinions(count, seed=1)
    return Corpus(graphs[:-8], graphs[-8:], opinions[:-8], opinions[-8:], [], max_words)


def test_a_file_of_opinions_is_read(tmp_path):
    (tmp_path / "dev").write_text(GOOD)
    first, second = read_opinions(tmp_path / "dev")
    assert (first.sentence.words, first.sentence.tags, first.label) == (("A", "film"), ("DT", "NN"), 1)
    assert (second.sentence.words, second.label) == (("#",), 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"dev: expected an instance at least, found none"),
        ("# instance 1\n\n", r"dev: expected an instance at least"),
        (WORDS + "2\tfilm\tfilm\tNN\n", r"dev:3: expected 5 columns .* got 4"),
        (WORDS + "3\tfilm\tfilm\tNN\t1\n", r"dev:3: expected token 2 of the instance, got '3'"),
        (WORDS + "2\tfilm\tfilm\tNN\t2\n", r"dev:3: expected the label 0 or 1, got '2'"),
        (WORDS + "2\tfilm\tfilm\tNN\t0\n", r"dev:3: expected the label 1 of the instance's first token, got 0"),
        (WORDS + "2\t\tfilm\tNN\t1\n", r"dev:3: expected a form and a pos, got '' and 'NN'"),
        (WORDS + "film\n", r"dev:3: expected a token with tabs, # instance N or an empty line, got 'film'"),
        (WORDS + "# instance 2\n", r"dev:3: expected a token or an empty line within an instance, got '# instance 2'"),
        (WORDS + "\n2\tfilm\tfilm\tNN\t1\n", r"dev:4: expected token 1 of the instance, got '2'"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "dev").write_text(text)
    with pytest.raises(FormatError, match=message):
        read_opinions(tmp_path / "dev")


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "dev").write_bytes(b"# instance 1\n1\t\xff\xfe\tDT\tDT\t1\n")
    with pytest.raises(FormatError, match="expected UTF-8 text"):
        read_opinions(tmp_path / "dev")


def files(folder, **texts):
    token = "1\tYes\tyes\tUH\t0\troot\t+\t-\t_\n\n"
    texts = {"graphs": token * 20, "train": GOOD, "dev": GOOD} | texts
    for name, text in texts.items():
        (folder / name).write_text(text)
    return [f"--{name}={folder / name}" for name in texts]


def test_wrong_files_end_the_program_before_any_run(tmp_path, monkeypatch):
    monkeypatch.setattr("semantics_to_sentiment.run_all", None)
    for name, text, message in (
        ("dev", WORDS + "2\tfilm\n", "dev:3: expected 5 columns"),
        ("test", "", "test: expected an instance"),
        ("graphs", "", "graphs: expected a sentence of at most 60 words, found none"),
        ("graphs", "1\tYes\tyes\tUH\t0\troot\t+\t-\t_\n\n", "expected at least 10 sentences .* found 1"),
        ("graphs", "1 Yes\n", "graphs:1: expected a token"),
    ):
        with pytest.raises(SystemExit, match=message):
            main([*files(tmp_path, **{name: text}), "--output", str(tmp_path / "out")])
    given = files(tmp_path, test=GOOD)
    (tmp_path / "test").unlink()
    with pytest.raises(SystemExit, match=r"No such file.*test"):
        main([*given, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match="exists"):
        main([*files(tmp_path), "--output", str(tmp_path / "train")])


def test_limits_take_sentences_evenly_from_a_file_that_is_sorted_by_label(tmp_path):
    many = "".join(f"# instance {k}\n1\tw{k}\tw\tNN\t{int(k < 50)}\n\n" for k in range(100))
    given = files(tmp_path, train=many, dev=many)
    data = load_corpus(arguments([*given, "--train-sentences", "10", "--dev-sentences", "4"]))
    assert [o.sentence.words[0] for o in data.dev] == ["w0", "w25", "w50", "w75"]
    assert sum(o.label for o in data.train) == 5 and len(data.train) == 10
    (tmp_path / "train").write_text(many.partition("# instance 50")[0])
    with pytest.raises(
        FormatError, match="train: expected sentences of both labels to train on, found 50 with label 1"
    ):
        load_corpus(arguments(given))


def test_what_is_shared_names_files_by_what_they_hold_but_not_the_test(tmp_path):
    options = arguments(files(tmp_path, test=GOOD))
    before = shared(options, load_corpus(options))
    assert before["train"][1] == 2 and not any("test" in str(value) for value in before.values())
    (tmp_path / "train").write_text(GOOD.replace("film", "play"))
    assert shared(options, load_corpus(options))["train"] != before["train"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--train", "a", "--test", "b"], "files are given, but not --graphs and --dev"),
        (["--graphs-dev", "a"], "files are given, but not --graphs and --train and --dev"),
        (["--max-words", "0"], "--max-words must be at least 1, but is 0"),
        (["--graph-sentences", "9"], "--graph-sentences must be at least 10, but is 9"),
        (["--tries", "-1"], "--tries must be at least 0, but is -1"),
        (["--clip-norm", "nan"], "--clip-norm must be above 0, but is nan"),
        (["--seeds", "1", "1"], "--seeds must be different and not negative, but are 1 1"),
        (["--seeds", "1000", "--tries", "2"], "--seeds must not have 1000"),
        (["--rules", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_a_wrong_option_is_explained(capsys, given, message):
    with pytest.raises(SystemExit):
        arguments(given)
    assert message in capsys.readouterr().err


def test_graphs_are_vertices_of_the_polytope():
    roles = {(2, 1): "ARG0", (2, 3): "ARG1", (2, 4): "ARG1", (2, 2): "ARG2", (4, 1): "R-ARG0", (4, 3): "ARGM-NEG"}
    odd = Sentence(("a", "b", "c", "d"), ("x",) * 4, (0,) * 4, frozenset({2, 4}), roles)
    assert graph_of(odd) == [(1, 1, 0), (3, 3, 0), (1, 0, 0), (1, 2, 1), (1, 3, 4), (3, 0, 4), (3, 2, 3)]
    sentences = [odd, *sample_graphs(20, seed=3)]
    gold = gold_graphs(sentences)
    best = ol.OptLayer(GRAPHS, ol.Pipeline())(2.0 * gold - 1.0, sizes=[len(s) for s in sentences])
    assert torch.equal(best, gold)


def test_the_drawn_label_follows_from_the_graph():
    opinions = sample_opinions(200, seed=4)
    for opinion in opinions:
        sentence = opinion.sentence
        main_verb = sentence.tags.index("MAIN") + 1
        mine = {label: a for (p, a), label in sentence.roles.items() if p == main_verb}
        noun = sentence.words[mine["ARG1"] - 1]
        assert opinion.label == ((int(noun[1]) % 2 == 0) != ("ARGM-NEG" in mine))
    assert 60 < sum(o.label for o in opinions) < 140
    assert sample_opinions(200, seed=4) == opinions != sample_opinions(200, seed=5)


@pytest.mark.parametrize("name", RULES)
def test_what_reaches_the_parser(name):
    data, run = corpus(), default_run(name, arguments(TINY))
    words = Vocabulary.of(data.graphs)
    model = model_for(run, words, words, max_words=60)
    seen = []

    def look(module, inputs, scores):
        scores.retain_grad()
        seen.append(scores)

    model.parser.register_forward_hook(look)
    _loss(model, run, data.train, words, words, torch.Generator().manual_seed(0)).backward()
    gradient = seen[0].grad
    assert gradient.isfinite().all()
    assert (gradient.abs().sum() > 0) == (name != "pipeline")
    assert all(p.grad is not None for p in model.reader.parameters())


def test_a_gradient_that_is_long_is_clipped_sentence_by_sentence():
    model = model_for(replace(default_run("ste", arguments(TINY)), clip_norm=2.0), *[Vocabulary.of([])] * 2, 60)
    gradient = torch.zeros(2, 2, 2, 5)
    gradient[0, 0, 0, 0], gradient[1, 0, 0, 0] = 1.0, 8.0
    assert model._clip(gradient)[:, 0, 0, 0].tolist() == [1.0, 2.0]


def test_longer_sentences_count_and_have_no_arcs_beyond():
    data = corpus(max_words=6)
    assert max(len(o) for o in data.dev) > 6
    assert f"{len(data.dev)} dev ({sum(len(o) > 6 for o in data.dev)} longer)" in described(data)
    small = replace(data, graphs=[s for s in data.graphs if len(s) <= 6], graphs_dev=data.graphs_dev[:1])
    run = replace(default_run("sparsemap", arguments(TINY)), seed=0)
    kept = train(run, small, pretrain(Pretraining(0, 1, run.hidden, 1e-2), small)["weights"])
    assert len(kept["dev_right"]) == len(data.dev)
    assert all(p < 6 and a < 6 for graph in kept["graphs"] for p, a, _, _ in graph)


def test_pipeline_leaves_the_parser_as_it_was_and_runs_are_reproducible():
    data = corpus()
    parser = pretrain(Pretraining(3, 2, 8, 1e-2), data)
    run = replace(default_run("pipeline", arguments(TINY)), seed=3, learning_rate=0.1, signal=1.0)
    assert train(run, data, parser["weights"])["graph_f1"] == parser["f1_best"] == max(parser["f1"])
    moved = replace(run, rule="gumbel", strength=1.0, signal=10.0)
    first, second = (train(moved, data, parser["weights"]) for _ in range(2))
    assert {**first, "seconds_per_batch": 0} == {**second, "seconds_per_batch": 0}
    assert first["graphs"] != train(run, data, parser["weights"])["graphs"]


def test_labelled_f1_counts_arcs():
    class Given(torch.nn.Module):
        def forward(self, batch):
            return self.scores

    sentences = [Sentence(("a", "b", "c"), ("x",) * 3, (0,) * 3, frozenset({1}), {(1, 2): "ARG0", (1, 3): "ARG1"})]
    given = Given()
    given.scores = 2.0 * gold_graphs(sentences) - 1.0
    assert labelled_f1(given, sentences, Vocabulary.of([])) == 100.0
    given.scores[0, 0, 2, 1], given.scores[0, 0, 2, 2] = -1.0, 1.0  # one of two arcs has another role
    assert labelled_f1(given, sentences, Vocabulary.of([])) == 50.0
    given.scores = torch.full_like(given.scores, -1.0)
    assert labelled_f1(given, sentences, Vocabulary.of([])) == 0.0


def test_batches_hold_everything_once_and_similar_lengths():
    lengths = torch.randint(1, 50, (1000,)).tolist()
    batches = batches_alike(lengths, 32, torch.Generator().manual_seed(0))
    assert sorted(i for batch in batches for i in batch) == list(range(1000))
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in batches]
    assert np.mean(spread) < 5


def test_every_rule_tries_the_same_points():
    options = arguments(["--tries", "3"])
    points = [[(r.learning_rate, r.signal) for r in tried(default_run(n, options), 3)] for n in (*MARKS, *RULES)]
    assert all(mine == points[0] for mine in points) and len(set(points[0])) == 3
    assert {r.strength for r in tried(default_run("ste", options), 3)} == {None}
    steps = [r.strength for r in tried(default_run("spigot", options), 3)]
    assert len(set(steps)) == 3 and all(0.1 <= step <= 10.0 for step in steps)


def test_gains_are_paired_by_seed_and_by_sentence():
    run = default_run("ste", arguments([]))

    def results(*marks):
        return [Result(replace(run, seed=s), {"dev_right": m, "test_right": ""}, 0.0) for s, m in enumerate(marks)]

    better = gain(results("1111", "1110"), results("1011", "1010"), "dev")
    assert (better.mean, better.by_seed) == (25.0, 0.0) and better.by_sentence[0] == 0.0 < better.by_sentence[1]
    same = gain(results("10", "01"), results("10", "01"), "dev")
    assert (same.mean, same.by_seed, same.by_sentence) == (0.0, 0.0, (0.0, 0.0))
    assert str(gain(results("1"), results("0"), "dev")) == "+100.0"


def one_by_one(runs, work, **_):
    """What run_all does, here and now."""
    return [json.loads(json.dumps(work(run))) for run in runs]


def test_settings_are_chosen_on_dev_by_runs_that_are_not_reported(tmp_path, monkeypatch):
    asked = []

    def remember(runs, work, **options):
        asked.append(runs)
        return one_by_one(runs, work, **options)

    monkeypatch.setattr("semantics_to_sentiment.run_all", remember)
    results = main([*TINY, "--seeds", "4", "--tries", "2", "--rules", "spigot", "--output", str(tmp_path)])
    parsers, tries, runs = asked
    assert [p.seed for p in parsers] == [4, TRY_SEED]
    assert {r.seed for r in tries} == {TRY_SEED} and {r.test for r in tries} == {""} and len(tries) == 2 * 3
    assert {r.seed for r in runs} == {4} and {r.test for r in runs} == {"drawn"}
    assert {replace(r, seed=TRY_SEED, test="") for r in runs} <= set(tries)
    with (tmp_path / "tries.csv").open(newline="") as stream:
        best = {}
        for line in csv.DictReader(stream):
            best.setdefault(line["rule"], []).append((float(line["dev"]), float(line["learning_rate"])))
    assert {r.run.rule: r.run.learning_rate for r in results} == {
        name: next(rate for accuracy, rate in lines if accuracy == max(lines)[0]) for name, lines in best.items()
    }


def test_files_are_reported_on_without_a_test_and_without_true_graphs(tmp_path, monkeypatch):
    monkeypatch.setattr("semantics_to_sentiment.run_all", one_by_one)
    given = [*files(tmp_path), "--epochs", "1", "--parser-epochs", "1", "--hidden", "8", "--seeds", "0", "1"]
    results = main([*given, "--rules", "ste", "--output", str(tmp_path / "out")])
    assert {r.run.rule for r in results} == {"no graph", "ste"} and not any(r.kept["test_right"] for r in results)
    assert "test" not in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.usefixtures("started_ray")
def test_all_of_it(tmp_path):
    given = [*TINY, "--seeds", "0", "--jobs", "1", "--output", str(tmp_path)]
    results = main(given)
    assert {r.run.rule for r in results} == {*RULES, *MARKS}
    assert {r.run.seed for r in results} == {0} and {len(r.right("test")) for r in results} == {500}
    names = ["graphs.png", "results.png", "runs.csv", "table.md"]
    assert names == sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".png", ".csv", ".md"))
    with (tmp_path / "runs.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == len(results)
    rows = [line.split(" | ")[0] for line in (tmp_path / "table.md").read_text().splitlines() if line[:2] == "| "]
    assert rows == ["| rule", *(f"| {name}" for name in ("no graph", *RULES, "gold graph"))] * 3
    assert [r.kept for r in main(given)] == [r.kept for r in results]  # from disk
    with pytest.raises(SystemExit, match=r"holds runs with dev \['drawn', 12\], not \['drawn', 9\]; choose another"):
        main([*given, "--dev-sentences", "9"])

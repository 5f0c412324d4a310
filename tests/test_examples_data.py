"""What the main example reads, draws and measures."""

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from dependency_data import FormatError, Sentence, read_sdp, sample_corpus
from semantic_measures import Result
from semantic_parser import Batch, SemanticParser, Vocabulary
from semantic_report import gains_table, markdown, plot_fractions, plot_results, plot_trees, table, write_csv
from semantic_rules import RULES
from semantic_training import COUNTS, Run, evaluate

import optlayers as ol

SENTENCE = [
    "1\tThey\tthey\tPRP\t2\tnsubj\t-\t-\t_\tA0\tA0",
    "2\twant\twant\tVBP\t0\troot\t+\t+\twant.01\t_\t_",
    "3\t#1\t#1\tNN\t4\tnsubj\t-\t-\t_\t_\tA1",
    "4\tremoved\tremove\tVBN\t2\txcomp\t-\t+\tremove.01\tA1\t_",
]
"""Two predicates, the words 2 and 4; the third form starts with #."""


def written(folder: Path, *lines: str) -> Path:
    path = folder / "some.train.sdp"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def with_field(row: int, column: int, value: str) -> list[str]:
    fields = SENTENCE[row].split("\t")
    fields[column] = value
    return [*SENTENCE[:row], "\t".join(fields), *SENTENCE[row + 1 :]]


def test_read_sdp(tmp_path):
    one_word = "1\tYes\tyes\tUH\t0\troot\t+\t-\t_"
    path = written(tmp_path, "#SDP 2015", "#weblog-1", *SENTENCE, "", "", "#weblog-2", one_word)
    long, short = read_sdp(path, max_words=4)
    assert long == Sentence(
        words=("They", "want", "#1", "removed"),
        tags=("PRP", "VBP", "NN", "VBN"),
        heads=(2, 0, 4, 2),
        predicates=frozenset({2, 4}),
        roles={(2, 1): "A0", (2, 4): "A1", (4, 1): "A0", (4, 3): "A1"},
    )
    assert short == Sentence(("Yes",), ("UH",), (0,), frozenset(), {})  # the last line of the file ends it too
    assert read_sdp(path, max_words=3) == [short]


@pytest.mark.parametrize(
    ("lines", "line", "expected"),
    [
        (["# a comment", "no tabs", *SENTENCE], 2, "a token with tabs, a # comment or an empty line, got 'no tabs'"),
        ([SENTENCE[0], "2\twant", *SENTENCE[2:]], 2, "at least 9 columns, got 2"),
        ([*SENTENCE[:3], SENTENCE[3] + "\t_"], 4, "each of the 2 predicates of the sentence, got 12"),
        (with_field(3, 0, "5"), 4, "token 4 of the sentence, got '5'"),
        (with_field(2, 4, "x"), 3, "a head from 0 to 4 other than itself, got 'x'"),
        (with_field(2, 4, "5"), 3, "a head from 0 to 4 other than itself, got '5'"),
        (with_field(2, 4, "-1"), 3, "a head from 0 to 4 other than itself, got '-1'"),
        (with_field(2, 4, "3"), 3, "a head from 0 to 4 other than itself, got '3'"),
        (with_field(2, 7, "?"), 3, "+ or - in column 8 (pred), got '?'"),
        (with_field(2, 9, ""), 3, "a role or _ in every argument column"),
        (with_field(2, 4, "0"), 1, "one root (HEAD 0) in the sentence, got 2"),
        (with_field(3, 4, "3"), 1, "a tree, but the heads above word 3 run in a circle"),
    ],
)
def test_malformed_line_is_named(tmp_path, lines, line, expected):
    path = written(tmp_path, *lines)
    with pytest.raises(FormatError) as error:
        read_sdp(path, max_words=10)
    assert str(error.value).startswith(f"{path}:{line}: expected ")
    assert expected in str(error.value)


def test_text_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "some.train.sdp"
    path.write_bytes("1\tJosé\t".encode("latin-1"))
    with pytest.raises(FormatError, match=r"some\.train\.sdp: expected UTF-8 text"):
        read_sdp(path, max_words=10)


def test_drawn_sentences_are_trees_with_roles():
    sentences = sample_corpus(300, max_words=7, seed=3)
    assert sentences == sample_corpus(300, max_words=7, seed=3)
    assert sentences != sample_corpus(300, max_words=7, seed=4)
    for sentence in sentences:
        assert 3 <= len(sentence) <= 7 and sentence.heads.count(0) == 1
        for word in range(1, len(sentence) + 1):
            assert ancestors(sentence, word)[-1] == 0
            # Projective: between a word and its head there are only words below the head.
            head = sentence.heads[word - 1]
            between = range(min(word, head) + 1, max(word, head))
            assert head == 0 or all(head in ancestors(sentence, k) for k in between)
        for predicate, argument in sentence.roles:
            assert predicate in sentence.predicates
            assert sentence.tags[argument - 1] in ("NOUN", "VERB")


def ancestors(sentence: Sentence, word: int) -> list[int]:
    path = [word]
    while path[-1] and len(path) <= len(sentence) + 1:
        path.append(sentence.heads[path[-1] - 1])
    return path


def test_roles_of_drawn_sentences_follow_from_the_tree_and_not_from_the_tags():
    by_tags: dict[tuple[str, ...], set[str]] = {}
    by_tree: dict[tuple[tuple[str, ...], tuple[int, ...]], set[str]] = {}
    for sentence in sample_corpus(600, max_words=7, seed=0):
        roles = str(sorted(sentence.roles.items()))
        by_tags.setdefault(sentence.tags, set()).add(roles)
        by_tree.setdefault((sentence.tags, sentence.heads), set()).add(roles)
    assert all(len(roles) == 1 for roles in by_tree.values())
    assert max(len(roles) for roles in by_tags.values()) >= 3


def test_drawn_roles_mean_what_the_grammar_says():
    borrowers = 0
    for sentence in sample_corpus(300, max_words=7, seed=0):
        for verb in sentence.predicates:
            mine = {argument: label for (p, argument), label in sentence.roles.items() if p == verb}
            nouns = [k for k, h in enumerate(sentence.heads, 1) if h == verb and sentence.tags[k - 1] == "NOUN"]
            assert [mine.get(k) for k in nouns] == ["AGENT", "PATIENT", "PLACE"][: len(nouns)]
            upper = sentence.heads[verb - 1]
            agents = [a for (p, a), label in sentence.roles.items() if p == upper and label == "AGENT"]
            borrows = bool(upper) and not any(k < verb for k in nouns)
            assert [k for k, label in mine.items() if label == "BORROWED"] == (agents if borrows else [])
            borrowers += borrows
            assert upper == 0 or sentence.roles[upper, verb] == "CONTENT"
    assert borrowers > 30


def test_a_batch_holds_the_sentences(tmp_path):
    sentences = read_sdp(written(tmp_path, *SENTENCE, "", "1\tYes\tyes\tUH\t0\troot\t+\t-\t_"), max_words=4)
    vocabulary = Vocabulary.of(sentences)
    batch = Batch.of(sentences, [True, False], vocabulary)
    expected = torch.zeros(2, 5, 5)
    for head, modifier in ((2, 1), (0, 2), (4, 3), (2, 4)):
        expected[0, head, modifier] = 1.0
    expected[1, 0, 1] = 1.0
    assert torch.equal(batch.gold_trees, expected)
    assert batch.is_word.sum(dim=1).tolist() == [4, 1]
    assert (batch.roles >= 0).sum().item() == 2 * 4  # pairs: two predicates, four words
    assert torch.equal(batch.gold_roles, batch.roles[0, [2, 4]])
    assert batch.words[1].tolist() == [0, vocabulary.words.get("yes", len(vocabulary.words) + 1), 0, 0, 0]
    assert torch.equal(batch.heads, torch.tensor([[0, *sentences[0].heads], [0, 0, 0, 0, 0]]))
    names = {number: label for label, number in vocabulary.labels.items()}
    found = {(p, a): names[label] for p, a in sentences[0].roles if (label := batch.roles[0, p, a].item())}
    assert found == sentences[0].roles


def test_measures_by_hand(tmp_path):
    sentence = read_sdp(written(tmp_path, *SENTENCE), max_words=4)[0]
    vocabulary = Vocabulary.of([sentence])
    batch = Batch.of([sentence], [False], vocabulary)
    labels = batch.roles.clamp_min(0).clone()
    a0, a1 = vocabulary.labels["A0"], vocabulary.labels["A1"]
    labels[0, 2, 4] = a0  # the right pair with a wrong label
    labels[0, 4, 3] = 0  # a pair that is missed
    labels[0, 2, 2] = labels[0, 4, 2] = a1  # two pairs too many
    labels[0, 1, 1] = a1  # not counted: word 1 is no predicate
    heads = batch.gold_trees.clone()
    heads[0, :, 3] = torch.eye(5)[2]  # one wrong head of four
    model = SimpleNamespace(
        device=torch.device("cpu"),
        eval=lambda: None,
        arc_scores=lambda batch: heads,
        best_tree=lambda arcs, sizes: arcs,
        build_tree=lambda arcs, batch: arcs,
        role_scores=lambda batch, tree: torch.nn.functional.one_hot(labels, 3).float()[batch.predicates],
    )
    run = Run("spigot", 0, tree_fraction=1.0, signal=1.0, step=1.0, epochs=1)
    counts = evaluate(model, [sentence], vocabulary, run)
    # 4 gold pairs, 5 found: 3 pairs in common, 2 of them with the right label.
    names = dict(zip(COUNTS, counts[0].tolist(), strict=True))
    assert names == {"words": 4, "right heads": 3, "found": 5, "gold": 4, "both": 3, "right": 2}
    result = Result(run, {"dev": counts.tolist(), "test": None, "curve": [counts.sum(0).tolist()]})
    expected = {"tree attachment": 75.0, "semantic F1": pytest.approx(600 / 9), "labelled F1": pytest.approx(400 / 9)}
    assert result.final == result.on_dev == expected
    without = evaluate(model, [sentence], vocabulary, replace(run, name="no tree"))
    assert without[0].tolist() == [4, 0, *counts[0, 2:].tolist()]


@pytest.mark.parametrize("signal", [1.0, 0.25])
def test_gradient_at_the_tree_is_clipped_per_sentence_and_scaled(signal):
    sentences = sample_corpus(4, max_words=5, seed=0)
    vocabulary = Vocabulary.of(sentences)
    batch = Batch.of(sentences, [False] * 4, vocabulary)
    torch.manual_seed(0)
    model = SemanticParser(vocabulary, ol.StraightThrough(), clip_norm=1.0, signal=signal).eval()
    arcs = model.arc_scores(batch)
    arcs.retain_grad()
    tree = model.build_tree(arcs, batch)
    weight = torch.tensor([100.0, 10.0, 0.01, 0.0])
    direction = torch.randn(tree.shape) * (tree > 0)  # away from the padding, where a gradient is blanked out
    norm = weight * direction.flatten(1).norm(dim=1)
    (weight[:, None, None] * direction * tree).sum().backward()
    assert torch.allclose(arcs.grad.flatten(1).norm(dim=1), signal * norm.clamp_max(1.0))


def test_the_other_loss_is_not_scaled_by_the_signal():
    sentences = sample_corpus(2, max_words=5, seed=0)
    vocabulary = Vocabulary.of(sentences)
    batch = Batch.of(sentences, [False] * 2, vocabulary)
    model = SemanticParser(vocabulary, ol.Pipeline(), clip_norm=1.0, signal=0.0).eval()
    arcs = model.arc_scores(batch)
    arcs.retain_grad()
    (model.build_tree(arcs, batch).sum() + 3.0 * arcs.sum()).backward()
    assert torch.equal(arcs.grad, torch.full_like(arcs, 3.0))


def test_scores_of_a_sentence_do_not_depend_on_its_batch():
    sentences = sample_corpus(6, max_words=7, seed=0)
    vocabulary = Vocabulary.of(sentences)
    torch.manual_seed(0)
    model = SemanticParser(vocabulary, ol.StructuredAttention(), clip_norm=1.0, signal=1.0).eval()

    def scores(part: list[Sentence]) -> torch.Tensor:
        batch = Batch.of(part, [False] * len(part), vocabulary)
        found = model.role_scores(batch, model.build_tree(model.arc_scores(batch), batch))
        return found[batch.gold_roles >= 0]

    torch.testing.assert_close(scores(sentences), torch.cat([scores([s]) for s in sentences]))


@pytest.mark.parametrize(("name", "soft"), [("spigot", False), ("structured_attention", True), ("sparsemap", True)])
def test_roles_see_a_hard_or_a_soft_tree(name, soft):
    sentences = sample_corpus(5, max_words=6, seed=1)
    vocabulary = Vocabulary.of(sentences)
    batch = Batch.of(sentences, [False] * 5, vocabulary)
    torch.manual_seed(0)
    model = SemanticParser(vocabulary, RULES[name].make(1.0), clip_norm=1.0, signal=1.0).eval()
    tree = model.build_tree(model.arc_scores(batch), batch)
    heads = batch.is_word.float()
    assert torch.allclose(tree.sum(1), heads, atol=1e-6)
    assert bool(((tree > 1e-6) & (tree < 1 - 1e-6)).any()) == soft


@pytest.mark.parametrize("name", [name for name, choice in RULES.items() if choice.sends])
def test_roles_teach_the_parser_through_the_layer(name):
    one_word = Sentence(("Yes",), ("UH",), (0,), frozenset(), {})  # its tree has nothing left to decide
    sentences = [one_word, *sample_corpus(5, max_words=6, seed=1)]
    vocabulary = Vocabulary.of(sentences)
    batch = Batch.of(sentences, [False] * 6, vocabulary)
    torch.manual_seed(0)
    model = SemanticParser(vocabulary, RULES[name].make(1.0), clip_norm=1.0, signal=1.0)
    arcs = model.arc_scores(batch)
    model.role_scores(batch, model.build_tree(arcs, batch)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.arcs.weight.grad.abs().max() > 0


def test_tables_and_pictures(tmp_path):
    sentences = sample_corpus(2, max_words=5, seed=0)
    trees = [list(s.heads) for s in sentences]
    counts = [[10, 7, 10, 10, 8, 6], [10, 7, 10, 10, 8, 6]]  # 70 % of the heads, F1 of 80 and 60 %
    kept = {"curve": [[20, 10, 20, 20, 12, 8], [20, 14, 20, 20, 16, 12]], "dev": counts, "test": None}
    results = [
        Result(Run(name, seed, fraction, 0.5, 2.0, 2), {**kept, "seconds": 0.5, "trees": trees})
        for name, fractions in (("spigot", (0.2, 1.0)), ("pipeline", (0.2, 1.0)), ("no tree", (0.0,)))
        for fraction in fractions
        for seed in (0, 1)
    ]
    write_csv(results, tmp_path / "runs.csv")
    with (tmp_path / "runs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 10 * 2
    assert rows[1] | {"seed": "1"} == rows[3]
    assert (rows[1]["rule"], rows[1]["epoch"], float(rows[1]["labelled_F1"])) == ("spigot", "2", 60.0)
    text = markdown(results)
    assert text.count("| spigot | 70.0 ± 0.0 | 80.0 ± 0.0 | 60.0 ± 0.0 | 0.5, 2 | 0.5 |") == 2
    assert text.count("| no tree | – | 80.0 ± 0.0 | 60.0 ± 0.0 | – | 0.5 |") == 2
    assert text.count("| spigot − pipeline | +0.0 ± 0.0 [+0.0, +0.0] |") == 2
    assert text.count("| spigot − no tree | – |") == 2
    assert table(results, 0.2).row_count == 3 and gains_table(results, 0.2).row_count == 3
    plot_results(results, tmp_path / "results.png")
    plot_fractions(results, tmp_path / "fractions.png")
    plot_trees(results, sentences, tmp_path / "trees.png")
    pictures = ("results.png", "fractions.png", "trees.png")
    assert all((tmp_path / name).stat().st_size > 10_000 for name in pictures)

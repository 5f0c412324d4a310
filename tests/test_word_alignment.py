"""Word alignment by losses and rules: what is read, what a structure is, that every line learns; the whole example."""

import json
import random

import pytest
import torch
from alignment_data import Pair, read_pairs, sample_pairs, three_parts
from alignment_model import Batch, Measure, best_cost, lost_links, one_by_one
from alignment_report import best_on_dev
from word_alignment import (
    ALONE,
    LINES,
    LOSSES,
    NEAREST,
    Run,
    arguments,
    main,
    matching,
    objective_of,
    train,
)

ENTRY = {"id": "a", "source": "He said so", "target": "So he says .", "sureAlign": "0-1 1-2"}
TWO = Pair(("he", "left"), ("he", "went", "away", "."), frozenset({(0, 0), (1, 1), (1, 2)}))


def written(path, *entries):
    path.write_text(json.dumps(list(entries)))
    return path


def test_further_links_of_the_second_file_are_possible(tmp_path):
    sure = written(tmp_path / "sure.json", ENTRY)
    every = written(tmp_path / "all.json", {**ENTRY, "sureAlign": "0-1 1-2 2-0"})
    (pair,) = read_pairs(sure, 4, every)
    assert (pair.sure, pair.possible) == ({(0, 1), (1, 2)}, {(2, 0)})
    found = Measure.of(torch.ones(1, 3, 4), Batch.of([pair], {}))
    assert (found.f1, found.error_rate) == pytest.approx((2 * 2 / (12 + 2), 1 - (2 + 3) / (12 + 2)))
    with pytest.raises(ValueError, match=r"must hold the 1 pairs of .* in their order"):
        read_pairs(sure, 4, written(tmp_path / "other.json", {**ENTRY, "target": "so he does ."}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "must be a JSON list of pairs, but: Expecting value"),
        ('[{"source": "a"', "must be a JSON list of pairs, but: Expecting ',' delimiter"),
        ("{}", "must be a JSON list of pairs, but is {}"),
        ("[]", "must hold 1 pairs of at most 9 words, but has 0 such of 0"),
        (json.dumps([{**ENTRY, "source": " ".join("abcdefghij")}]), "but has 0 such of 1"),
        (json.dumps([ENTRY, "a b"]), "entry 1: expected an object with source, target and sureAlign, but got 'a b'"),
        (json.dumps([{"source": "a", "target": "b"}]), "entry 0: .* there is no sureAlign"),
        (json.dumps([{**ENTRY, "source": ["He"]}]), r"entry 0: source must be text, but is \['He'\]"),
        (json.dumps([{**ENTRY, "target": " "}]), "source and target need words, but have 3 and 0"),
        (json.dumps([{**ENTRY, "sureAlign": "0-1 1:2"}]), "expected links such as 0-2, but got '1:2'"),
        (json.dumps([{**ENTRY, "sureAlign": "-1-0"}]), "expected links such as 0-2, but got '-1-0'"),
        (json.dumps([{**ENTRY, "possibleAlign": "3-0"}]), r"pair a has the link 3-0, but 3 and 4 words \(from 0 on\)"),
    ],
)
def test_damaged_files_are_explained(tmp_path, text, told):
    path = tmp_path / "pairs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=told) as raised:
        read_pairs(path, 9)
    assert str(path) in str(raised.value)


def test_every_pair_is_reported_on_once_and_never_learned_from():
    pairs = sample_pairs(17, random.Random(0))
    parts = [three_parts(pairs, fold, 5) for fold in range(5)]
    key = lambda pair: pair.source  # noqa: E731
    assert sorted((p for _, _, test in parts for p in test), key=key) == sorted(pairs, key=key)
    assert sorted((p for _, dev, _ in parts for p in dev), key=key) == sorted(pairs, key=key)
    assert all(sorted((p for part in three for p in part), key=key) == sorted(pairs, key=key) for three in parts)
    learn, dev, test = three_parts(pairs, 4, 5, [TWO])
    assert test == [TWO] and sorted(learn + dev, key=key) == sorted(pairs, key=key)


def test_words_with_two_partners_are_no_structure_and_have_a_half_of_each_nearby():
    pair = Batch.of([TWO], {})
    nearest = NEAREST(pair.sure, sizes=pair.sizes)
    torch.testing.assert_close(nearest[0], torch.tensor([[1.0, 0, 0, 0], [0, 0.5, 0.5, 0]]))
    bound = Measure.of(matching(pair.sure, pair, 0.5), pair)
    assert (bound.precision, bound.recall) == pytest.approx((1, 2 / 3))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_refuse_gold_that_is_no_structure_and_take_what_is_nearest(monkeypatch, name):
    pair, loss = Batch.of([TWO], {}), LOSSES[name]
    nearest = NEAREST(pair.sure, sizes=pair.sizes)
    unchecked = loss(torch.zeros_like(pair.sure), nearest, sizes=pair.sizes, **draws_of(name))
    monkeypatch.setattr(loss, "validate", True)
    assert torch.equal(loss(torch.zeros_like(pair.sure), nearest, sizes=pair.sizes, **draws_of(name)), unchecked)
    with pytest.raises(ValueError, match="not in the polytope"):
        loss(torch.zeros_like(pair.sure), pair.sure, sizes=pair.sizes)


def draws_of(name):
    return {"generator": torch.Generator().manual_seed(0)} if name.endswith("perturbed") else {}


def test_lost_links_and_costs_by_hand():
    pair = Batch.of([TWO, Pair(("so",), ("so",), frozenset({(0, 0)}))], {})
    links = torch.zeros_like(pair.sure)
    links[0, 0, 0] = links[0, 0, 3] = 1.0  # F1 is 2 / 5 of the first pair, 0 of the second
    assert lost_links(links, pair).item() == pytest.approx(3 * (1 - 2 / 5) + 1)
    scores = pair.sure - 0.1 * torch.arange(4)
    assert best_cost(scores, pair, one_by_one)[0] == 1.0
    assert best_cost(scores, pair, matching)[0] == pytest.approx(2 * 3 / (3 + 4))
    assert not one_by_one(torch.ones_like(scores), pair, 0.0)[1, :, 1:].any()  # nothing in the padding


@pytest.mark.parametrize("line", LINES)
def test_every_line_learns_a_matching(line):
    pairs = [
        Pair(tuple("abc"), tuple("wxyz"), frozenset({(0, 2), (2, 0)})),
        Pair(tuple("ab"), ("x",), frozenset({(1, 0)})),
    ]
    batch, objective = Batch.of(pairs, {}), objective_of(line)
    scores = (0.1 * torch.randn(batch.sure.shape)).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.2)
    for _ in range(20):
        optimizer.zero_grad()
        objective(scores, batch).backward()
        optimizer.step()
    f1, _ = best_cost(scores.detach(), batch, one_by_one if line in ALONE else matching)
    assert f1 == 1.0


def test_a_run_is_reproducible_and_the_best_rate_is_that_of_dev():
    pairs = sample_pairs(24, random.Random(0))
    runs = [Run("SparseMAP loss", fold, rate, 2) for fold in range(3) for rate in (0.001, 0.1)]
    results = [train(run, pairs=pairs, held_out=[], folds=3) for run in runs]
    again = train(runs[1], pairs=pairs, held_out=[], folds=3)
    assert {**again, "seconds": 0} == {**results[1], "seconds": 0}
    (chosen,) = best_on_dev(runs, results).values()
    assert [r["dev"] for r in chosen] == [
        max(a["dev"], b["dev"]) for a, b in zip(results[::2], results[1::2], strict=True)
    ]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--folds", "2"], "--folds must be from 3 to 30"),
        (["--rates", "0"], "--rates positive"),
        (["--lines", "magic"], "invalid choice: 'magic'"),
        (["--possible", "all.json"], "--possible has further links of the pairs of --data"),
        (["--data", "nowhere.json"], "No such file or directory: 'nowhere.json'"),
        (["--test", "nowhere.json"], "No such file or directory: 'nowhere.json'"),
    ],
)
def test_wrong_options_are_explained(capsys, given, told):
    with pytest.raises(SystemExit):
        arguments(given)
    assert told in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("started_ray")
def test_the_whole_example_and_again(tmp_path):
    lines = ["no structure, logistic", "SparseMAP loss", "SPIGOT"]
    given = ["--lines", *lines, "--epochs", "3", "--rates", "0.1", "--jobs", "2", "--output", str(tmp_path)]
    found = main(given)
    assert list(found) == lines and all(len(folds) == 3 for folds in found.values())
    assert min(fold["test"]["f1"] for folds in found.values() for fold in folds) > 0.5
    assert (tmp_path / "alignments.png").stat().st_size > 10_000
    assert main(given) == found  # from what is kept

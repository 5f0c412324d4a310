"""Word alignment by entropic partial matchings: what it reads, draws and measures, and the whole example but small."""

import json
import random

import pytest
import torch
from alignment_data import FEATURES, Pair, features_of, read_pairs, sample_pairs
from alignment_model import Batch, Measure
from entropic_alignment import ALIGNMENTS, RULES, main

import optlayers as ol

PAIR = Pair(("He", "said", "so"), ("So", "he", "says", "."), frozenset({(0, 1), (1, 2)}), frozenset({(2, 0)}))


def test_pairs_are_read(tmp_path):
    entry = {"id": "a", "source": "He said so", "target": "So he says ."}
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([{**entry, "sureAlign": "0-1 1-2", "possibleAlign": "2-0"}, {**entry, "sureAlign": ""}]))
    assert read_pairs(path, 4) == [PAIR, Pair(PAIR.source, PAIR.target, frozenset())]
    assert read_pairs(path, 3, least=0) == []
    path.write_text(json.dumps([{**entry, "sureAlign": "0-4"}]))
    with pytest.raises(ValueError, match="entry 0: pair a has the link 0-4, but 3 and 4 words"):
        read_pairs(path, 4)


def test_drawn_pairs_are_linked_by_their_words():
    pairs = sample_pairs(50, random.Random(0))
    assert pairs == sample_pairs(50, random.Random(0)) and len(pairs) == 50
    same = [i for pair in pairs for i, j in pair.sure if pair.source[i] == pair.target[j]]
    linked = [j for pair in pairs for _, j in pair.sure]
    assert 0.1 < len(same) / len(linked) < 0.5
    many = [pair for pair in pairs if len(pair.sure) > len({i for i, _ in pair.sure})]
    assert len(many) > 5  # words that are said in two


def test_features_of_words():
    found = features_of(PAIR)
    assert found.shape == (3, 4, FEATURES)
    assert found[2, 0, :2].tolist() == [1.0, 1.0]  # "so" and "So"
    assert found[1, 2, 0] == 0 and 0 < found[1, 2, 2] < 1  # "said" and "says" share groups of letters
    assert found[1, 2, 6] == found[0, 1, 2] == 1.0  # whose left neighbours are the same


def test_error_rates_by_hand():
    batch = Batch.of([PAIR], {})
    links = torch.zeros(1, 3, 4)
    links[0, 0, 1] = links[0, 2, 0] = links[0, 2, 3] = 1.0  # a sure one, a possible one, a wrong one
    found = Measure.of(links, batch)
    assert (found.precision, found.recall, found.f1) == pytest.approx((1 / 3, 1 / 2, 2 / 5))
    assert found.error_rate == pytest.approx(1 - (1 + 2) / (3 + 2))


def test_rules_have_a_partner_for_a_word_at_most():
    sizes = torch.tensor([[3, 4], [5, 2]])
    scores = torch.randn(2, 5, 4)
    for rule in RULES.values():
        if rule is not None and not rule.parameters:
            soft = ol.OptLayer(ALIGNMENTS, rule)(scores, sizes=sizes)
            assert soft.sum(1).max() < 1 + 1e-6 and soft.sum(2).max() < 1 + 1e-6
            assert soft[0, 3:].abs().max() == soft[1, :, 2:].abs().max() == 0


@pytest.mark.slow
def test_structure_helps_and_temperatures_do_what_is_said(tmp_path):
    rules = ["no structure", "SparseMAP", "entropy, T = 1", "entropy, T learned"]
    outcomes = main(["--seeds", "0", "--epochs", "6", "--rules", *rules, "--output", str(tmp_path)])
    alone, sparse, soft, learned = outcomes
    assert min(o.threshold.f1 for o in (sparse, soft, learned)) > alone.threshold.f1 + 0.01
    assert min(o.matching.f1 for o in outcomes) > 0.75
    assert sparse.zeros > 0.5 and soft.zeros == 0
    assert learned.temperature != 1.0 and 0.1 < learned.temperature < 3
    assert (tmp_path / "alignments.png").exists()

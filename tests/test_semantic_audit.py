"""The audit of a parser while it learns."""

import pytest
import torch
from dependency_data import sample_corpus
from semantic_audit import arguments, audit, audited, main, role_losses
from semantic_parser import Batch, Vocabulary
from semantic_training import Run, _role_loss, fit

TINY = ["--max-words", "4", "--train-sentences", "32", "--epochs", "2", "--sentences", "6", "--samples", "8"]


def test_losses_of_sentences_are_those_of_training_and_do_not_depend_on_others():
    sentences = sample_corpus(20, max_words=6, seed=0)
    vocabulary = Vocabulary.of(sentences)
    run = Run("pipeline", 0, 0.5, 1.0, 1.0, epochs=1)
    model = next(fit(run, sentences, vocabulary))[0].eval()
    batch = Batch.of(sentences, [False] * 20, vocabulary)
    trees = batch.gold_trees
    losses = role_losses(model, batch, trees)
    assert losses.sum().item() == pytest.approx(_role_loss(model.role_scores(batch, trees), batch).item(), rel=1e-5)
    other = trees.clone()
    other[3] = 0.0
    moved = role_losses(model, batch, other)
    assert moved[3] != losses[3]
    assert torch.equal(moved[:3], losses[:3]) and torch.equal(moved[4:], losses[4:])


def test_the_audit_after_chosen_epochs(tmp_path):
    found = main([*TINY, "--after", "2", "--output", str(tmp_path)])
    assert list(found) == [2] and list(found[2].findings) == list(audited(1.0))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit_2.png", "audit_2.txt"]
    assert str(found[2]) in (tmp_path / "audit_2.txt").read_text()
    assert found[2]["spigot, step 10"].cut_off is not None


def test_training_goes_on_after_an_audit(tmp_path):
    sentences = sample_corpus(32, max_words=4, seed=0)
    vocabulary = Vocabulary.of(sentences)
    run = Run("sparsemap", 0, 0.5, 1.0, 1.0, epochs=2)
    plain = [model for model, _ in fit(run, sentences, vocabulary)][-1]
    rules = {"heads": audited(1.0)["heads, step 1"], "sparsemap": audited(1.0)["sparsemap"]}
    for model, _ in fit(run, sentences, vocabulary):
        audit(rules, model, sentences[:4], vocabulary, 8)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, dict(model.named_parameters())[name]), name


def test_all_trees_leave_no_sentence_to_audit(tmp_path):
    with pytest.raises(SystemExit, match="lower --tree-fraction"):
        main([*TINY, "--after", "1", "--tree-fraction", "1", "--output", str(tmp_path)])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--epochs", "2", "--after", "3"], "--after must be epochs from 1 to 2"),
        (["--sentences", "0"], "--sentences must be at least 1, but is 0"),
        (["--samples", "7"], "--samples must be an even number from 8 on, but is 7"),
    ],
)
def test_a_wrong_option_is_explained(capsys, given, message):
    with pytest.raises(SystemExit):
        arguments(given)
    assert message in capsys.readouterr().err

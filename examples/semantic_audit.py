"""Does SPIGOT's gradient point anywhere? The parser of syntax_to_semantics.py, audited while it learns.

A parser is trained with one rule; after some epochs the gradients of many rules are compared with how the role loss of
its decided trees really changes (``optlayers.audit``): their cosine with the gradient of the smoothed loss, how often a
step lowers the loss, and for SPIGOT, how often its step is cut off at a side of the polytope, and how much is left. As
in training, the gradient of every sentence is clipped before SPIGOT sees it, unless its name says otherwise. The
sentences are training sentences whose trees nobody showed.

    python examples/semantic_audit.py                                 a corpus that it draws itself, a minute or two
    python examples/semantic_audit.py --data DIR --max-words 20 --epochs 6 --after 1 3 6 --batch-size 64 \
        --learning-rate 0.004                                         as in docs/results.md

"Heads" is SPIGOT with the relaxation of the paper: steps are projected onto the simplex of the heads of each word, not
onto trees.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from dependency_data import Sentence
from rich.console import Console
from semantic_parser import Batch, SemanticParser, Vocabulary
from semantic_rules import RULES
from semantic_training import Run, fit, trees_seen
from syntax_to_semantics import load_corpus
from torch import Tensor

import optlayers as ol
from polytopes import arborescence, head_choice

STEPS = (0.1, 0.3, 1.0, 3.0, 10.0)
HEADS = ol.Family(head_choice)


def audited(clip_norm: float) -> dict[str, ol.AbstractRule]:
    """The rules, by the names that tables have."""
    return {
        "ste": ol.StraightThrough(),
        **{f"spigot, step {step:g}": ol.Spigot(step_size=step, clip_norm=clip_norm) for step in STEPS},
        "spigot, step 1, not clipped": ol.Spigot(step_size=1.0),
        "spigot, half the step left": ol.Spigot(step_size=ol.AdaptiveStep(target=0.5), clip_norm=clip_norm),
        "heads, step 1": ol.Spigot(step_size=1.0, clip_norm=clip_norm, relaxation=HEADS),
        "heads, step 10": ol.Spigot(step_size=10.0, clip_norm=clip_norm, relaxation=HEADS),
        "spigot_eg, step 1": ol.SpigotEG(step_size=1.0),
        "hard marginals": ol.Hard(ol.StructuredAttention()),
        "hard sparsemap": ol.Hard(ol.SparseMAP()),
        "structured_attention": ol.StructuredAttention(),
        "sparsemap": ol.SparseMAP(),
    }


def role_losses(model: SemanticParser, batch: Batch, trees: Tensor) -> Tensor:
    """The role loss of every sentence with its tree, ``(sentences,)``."""
    scores = model.role_scores(batch, trees.to(batch.gold_trees))
    pairs = F.cross_entropy(scores.flatten(0, 1), batch.gold_roles.flatten(), ignore_index=-1, reduction="none")
    sentence = torch.nonzero(batch.predicates)[:, 0]
    return scores.new_zeros(len(batch.lengths)).index_add(0, sentence, pairs.view(scores.shape[:2]).sum(1))


def audit(
    rules: dict[str, ol.AbstractRule],
    model: SemanticParser,
    sentences: list[Sentence],
    vocabulary: Vocabulary,
    samples: int,
) -> ol.GradientAudit:
    """Rules on these sentences, with the model as it is, without dropout."""
    model.eval()
    batch = Batch.of(sentences, [False] * len(sentences), vocabulary).to(model.device)
    with torch.no_grad():
        scores = model.arc_scores(batch)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        return ol.audit(
            rules,
            ol.Family(arborescence),
            lambda trees: role_losses(model, batch, trees),
            scores,
            sizes=batch.lengths,
            samples=samples,
            generator=torch.Generator().manual_seed(0),
        )
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(True)


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with *train.sdp and *dev.sdp; default: a drawn corpus")
    parser.add_argument("--max-words", type=int, default=7, help="longer sentences are left out (default 7)")
    parser.add_argument("--train-sentences", type=int, help="at most so many (default: all; 600 drawn ones)")
    parser.add_argument("--rule", choices=list(RULES), default="pipeline", help="that trains (default pipeline)")
    parser.add_argument("--tree-fraction", type=float, default=0.2, help="of trees that may be seen (default 0.2)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--after", nargs="+", type=int, default=[1, 3], help="the epochs with an audit (default 1 3)")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--clip-norm", type=float, default=1.0, help="of the gradient of a sentence (default 1)")
    parser.add_argument("--sentences", type=int, default=64, help="so many are audited (default 64)")
    parser.add_argument("--samples", type=int, default=256, help="of the noise (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("out/semantic_audit"))
    options = parser.parse_args(given)
    for name in ("max_words", "epochs", "batch_size", "sentences"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, but is {getattr(options, name)}")
    if options.samples < 8 or options.samples % 2:
        parser.error(f"--samples must be an even number from 8 on, but is {options.samples}")
    if not set(options.after) <= set(range(1, options.epochs + 1)):
        parser.error(f"--after must be epochs from 1 to {options.epochs}, but are {options.after}")
    options.test = options.dev_sentences = None
    return options


def main(given: list[str] | None = None) -> dict[int, ol.GradientAudit]:
    """Train, audit, print, write pictures and tables."""
    options = arguments(given)
    console = Console(width=160)
    corpus = load_corpus(options)
    vocabulary = Vocabulary.of(corpus.train)
    choice = RULES[options.rule]
    run = Run(options.rule, options.seed, options.tree_fraction, choice.signal, choice.step, options.epochs)
    run = replace(run, batch_size=options.batch_size, learning_rate=options.learning_rate, clip_norm=options.clip_norm)
    seen = trees_seen(run, len(corpus.train), torch.Generator().manual_seed(run.seed)).tolist()
    telling = [s for s, shown in zip(corpus.train, seen, strict=True) if not shown and s.roles]
    chosen = telling[: options.sentences]
    if not chosen:
        raise SystemExit("there is no training sentence with roles whose tree nobody shows; lower --tree-fraction")
    options.output.mkdir(parents=True, exist_ok=True)
    found: dict[int, ol.GradientAudit] = {}
    for epoch, (model, _) in enumerate(fit(run, corpus.train, vocabulary), start=1):
        if epoch not in options.after:
            continue
        found[epoch] = audit(audited(options.clip_norm), model, chosen, vocabulary, options.samples)
        console.print(f"after epoch {epoch}, {len(chosen)} sentences:", highlight=False)
        console.print(str(found[epoch]), highlight=False, markup=False, soft_wrap=True)
        (options.output / f"audit_{epoch}.txt").write_text(f"{found[epoch]}\n")
        figure = found[epoch].plot().figure
        figure.savefig(options.output / f"audit_{epoch}.png", dpi=150, bbox_inches="tight")
        plt.close(figure)
    console.print(f"wrote {', '.join(p.name for p in sorted(options.output.iterdir()))} to {options.output}")
    return found


if __name__ == "__main__":
    main()

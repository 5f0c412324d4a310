"""
Two readings of one sentence
============================

*She saw stars with telescopes.* Does ``with`` belong to the seeing or to the stars? A parser scores every arc from a
head to a word. From the same scores we ask for three things: the best tree, a mixture of few trees, and the
probability of every arc.
"""

from itertools import product

import matplotlib.pyplot as plt
import torch

import optlayers as ol
import polytopes
from optlayers import plots

words = ["she", "saw", "stars", "with", "telescopes"]
node = {word: place for place, word in enumerate(["root", *words])}

# %%
# The structure and its scores
# ----------------------------
#
# ``projective_tree`` holds all trees whose arcs do not cross. Entry (h, m) is the arc from head h to word m, and node 0
# is the root. A network would give these scores. Here they are written by hand: only the head of ``with`` is in doubt.

trees = polytopes.projective_tree(len(words))
scores = torch.zeros(6, 6, dtype=torch.float64)
for head, word, score in [
    ("root", "saw", 4.0),
    ("saw", "she", 4.0),
    ("saw", "stars", 4.0),
    ("saw", "with", 2.8),
    ("stars", "with", 2.5),
    ("with", "telescopes", 4.0),
]:
    scores[node[head], node[word]] = score

# %%
# Three answers
# -------------
#
# ``Pipeline`` decides for one tree. ``SparseMAP`` gives the point of the polytope that is nearest to the scores: it
# mixes the two readings, and every other arc is exactly 0. ``StructuredAttention`` gives marginals, to which every tree
# contributes.

best = ol.OptLayer(trees, ol.Pipeline())(scores)
mixture = ol.OptLayer(trees, ol.SparseMAP()).solve(scores)
marginals = ol.OptLayer(trees, ol.StructuredAttention())(scores)

fig, axes = plt.subplots(3, 1, figsize=(6.6, 7.6), layout="constrained")
for ax, x, title in zip(
    axes,
    [best, mixture.value, marginals],
    [
        "Pipeline: the best tree",
        "SparseMAP: a mixture of two trees",
        "StructuredAttention: the probability of each arc",
    ],
    strict=True,
):
    plots.structure(trees, x, words=words, ax=ax)
    ax.set_title(title, fontsize=11)
    ax.set_ylim(0.0, 2.9)
for ax in axes[1:]:
    legend = ax.get_legend()
    legend.remove()  # for one below them all
fig.legend(handles=legend.legend_handles, title="weight of an arc", ncols=3, loc="outside lower center", frameon=False)

# %%
# How sure is the reading?
# ------------------------
#
# The readings differ by 0.3 in one arc. The nearest point turns this into weights of 0.65 and 0.35. In probabilities
# the odds of the two readings are :math:`e^{0.3}`, and the rest goes to all other trees.

for head in ("saw", "stars"):
    arc = node[head], node["with"]
    print(f"{head:>5} -> with   mixture {mixture.value[arc]:.2f}   probability {marginals[arc]:.2f}")

# %%
# Checked by listing all trees
# ----------------------------
#
# There are 6 heads to choose from for each of 5 words. We keep the choices that are trees with a single root and
# without crossing arcs, weigh each by :math:`e^{\text{score}}`, and add them up.


def is_tree(heads: tuple[int, ...]) -> bool:
    """Whether the heads of words 1, 2, ... are a projective tree with a single root."""
    arcs = [(min(h, m), max(h, m)) for m, h in enumerate(heads, start=1)]
    if heads.count(0) != 1 or any(a < c < b < d for a, b in arcs for c, d in arcs):
        return False
    for m in range(1, len(heads) + 1):
        for _ in heads:
            m = heads[m - 1] if m else 0
        if m:
            return False  # a cycle, from which no way leads to the root
    return True


listed = torch.tensor([heads for heads in product(range(6), repeat=5) if is_tree(heads)])
chosen = torch.nn.functional.one_hot(listed, 6).to(torch.float64)  # (trees, words, heads)
weights = (chosen * scores[:, 1:].T).sum((1, 2)).softmax(0)
by_hand = torch.einsum("t,tmh->hm", weights, chosen)

print(f"{len(listed)} trees")
torch.testing.assert_close(marginals[:, 1:], by_hand)
assert torch.equal(best[:, 1:], chosen[weights.argmax()].T)
assert (mixture.value > 0).sum() == 6  # the arcs of the two readings, and no others

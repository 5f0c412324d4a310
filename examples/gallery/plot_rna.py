"""
A folding declared in booleans
==============================

A strand of RNA folds back on itself: A pairs with U, and C with G or, weakly, G with U. Pairs do not cross, hairpins
have three free bases or more, and a pair does not stand alone, but is stacked on another one. That is a structure of
its own. We declare it by boolean variables, and get all of its probabilities.
"""

from functools import cache

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch

import optlayers as ol
from optlayers import plots

strand = "GGACUUCGGUCCAAGCAUUUGC"
strength = {frozenset("CG"): 3.0, frozenset("AU"): 2.0, frozenset("GU"): 0.8}

# %%
# The declaration
# ---------------
#
# There is a boolean variable for each pair that may form. Constraints say that a base is in one pair at most, that no
# two pairs cross, and that each pair has a neighbour, right outside or right inside. ``draw`` tells ``plots.structure``
# how to show it.

size = len(strand)
pairs = [(i, j) for i in range(size) for j in range(i + 4, size) if frozenset((strand[i], strand[j])) in strength]
place = {pair: k for k, pair in enumerate(pairs)}


def matrix(x: np.ndarray) -> np.ndarray:
    """The pairs as an array (size, size)."""
    full = np.zeros((size, size))
    full[tuple(np.array(pairs).T)] = x
    return full


x = cp.Variable(len(pairs), boolean=True)
once = [sum(x[k] for k, pair in enumerate(pairs) if base in pair) <= 1 for base in range(size)]
crossing = [x[place[p]] + x[place[q]] <= 1 for p in pairs for q in pairs if p[0] < q[0] < p[1] < q[1]]
stacked = [
    x[k] <= sum(x[place[n]] for n in ((i - 1, j + 1), (i + 1, j - 1)) if n in place) for (i, j), k in place.items()
]
foldings = ol.Polytope(x, [*once, *crossing, *stacked], draw=lambda ax, x, **o: plots.arcs(matrix(x), ax=ax, **o))

# %%
# Probabilities
# -------------
#
# Stronger pairs have higher scores. ``Gibbs`` gives the distribution over all foldings: how many there are, the
# probability of every pair, samples, and the most probable foldings, here in the brackets that biologists write.

scores = torch.tensor([strength[frozenset((strand[i], strand[j]))] for i, j in pairs], dtype=torch.float64)
gibbs = ol.Gibbs(foldings, scores, temperature=1.5)
print(ol.compile_polytope(foldings).explain().partition("maximize: ")[2].partition(". project")[0])


def brackets(folding: torch.Tensor) -> str:
    """A pair as ( and ), a free base as a dot."""
    text = ["."] * size
    for k in folding.nonzero()[:, 0].tolist():
        text[pairs[k][0]], text[pairs[k][1]] = "()"
    return "".join(text)


best, log_prob = gibbs.top_k(8)
fig, ax = plt.subplots(figsize=(7.6, 3.6), layout="constrained")
ax.barh(range(8), log_prob.exp(), color="#0072B2")
ax.set_yticks(range(-1, 8), [strand, *map(brackets, best)], family="monospace")
ax.invert_yaxis()
ax.set(xlabel="probability", title="the eight most probable foldings")

# %%
# Pairs of the best folding, and the probability of every pair.

fig, axes = plt.subplots(2, 1, figsize=(7.6, 5.4), layout="constrained")
for ax, point, title in zip(axes, (gibbs.mode, gibbs.mean), ("the best folding", "all foldings together"), strict=True):
    plots.structure(foldings, point, words=list(strand), ax=ax)
    ax.set_title(title)

# %%
# Checked by listing all foldings
# -------------------------------
#
# A recursion lists all sets of pairs that do not cross, and those with a lonely pair are struck out.


@cache
def listed(i: int, j: int) -> list[frozenset[tuple[int, int]]]:
    """All sets of pairs between the bases i and j that do not cross."""
    if j - i < 4:
        return [frozenset()]
    found = listed(i + 1, j)
    for k in range(i + 4, j + 1):
        if (i, k) in place:
            found = found + [a | b | {(i, k)} for a in listed(i + 1, k - 1) for b in listed(k + 1, j)]
    return found


every = [s for s in listed(0, size - 1) if all((i - 1, j + 1) in s or (i + 1, j - 1) in s for i, j in s)]
rows = torch.tensor([[pair in folding for pair in pairs] for folding in every], dtype=torch.float64)
weights = (rows @ scores / 1.5).softmax(0)
print(f"{len(every)} foldings")
assert round(gibbs.log_count().exp().item()) == len(every)
torch.testing.assert_close(gibbs.mean, weights @ rows)
torch.testing.assert_close(log_prob.exp(), weights.sort(descending=True).values[:8])

# %%
# Samples are exact, too. In 2,000 of them, a pair occurs about as often as its marginal says.

torch.manual_seed(0)
share = gibbs.sample((2000,)).mean(0)
assert (share - gibbs.mean).abs().max() < 0.05

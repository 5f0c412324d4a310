"""
The words that explain a label
==============================

A review says *we ordered the soup, fresh and lovely, then paid*, and a reader calls it good. Which words made her say
so? A selector chooses k words, a classifier sees nothing but these, and both learn from labels alone. The number k is
a parameter of the polytope: after training it can be any other.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import optlayers as ol
import polytopes

generator = torch.Generator().manual_seed(0)
praise = ["superb", "lovely", "fresh", "brilliant", "charming"]
blame = ["awful", "stale", "rude", "dreadful", "bland"]
plain = ["the", "a", "we", "our", "two", "with", "and", "at", "on", "then", "later", "came", "sat", "looked", "ordered"]
plain += ["paid", "left", "table", "food", "waiter", "evening", "menu", "street", "wine", "window", "soup", "bread"]
vocabulary = [*praise, *blame, *plain]

# %%
# Reviews
# -------
#
# A review has ten words. Two of them praise or blame, the others are plain, and nobody marks which are which.


def reviews(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Numbers of words ``(count, 10)``, labels, and which words decide the label."""
    label = torch.randint(2, (count,), generator=generator)
    telling = torch.randint(5, (count, 2), generator=generator) + 5 * (1 - label[:, None])
    words = torch.randint(10, len(vocabulary), (count, 10), generator=generator)
    places = torch.rand(count, 10, generator=generator).argsort(1)[:, :2]
    words.scatter_(1, places, telling)
    return words, label.double(), torch.zeros(count, 10).scatter_(1, places, 1.0)


words, labels, _ = reviews(200)

# %%
# Selector and classifier
# -----------------------
#
# ``subset`` holds all choices of ``budget`` words. The selector learns a score for each word of the vocabulary, and the
# layer answers with the k best words of a review. Choices have no derivative, so that ``Hard(StructuredAttention())``
# sends back that of the marginals.

subsets = polytopes.subset(10)
choose = ol.OptLayer(subsets, ol.Hard(ol.StructuredAttention()))
importance = torch.zeros(len(vocabulary), dtype=torch.float64, requires_grad=True)
tone = torch.zeros(len(vocabulary), dtype=torch.float64, requires_grad=True)
optimizer = torch.optim.Adam([importance, tone], lr=0.1)


def predict(words: torch.Tensor, budget: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The chosen words, and the logit of praise from these alone."""
    chosen = choose(importance[words], budget=budget)
    return chosen, (chosen * tone[words]).sum(1)


losses = []
for _ in range(50):
    _, logit = predict(words, budget=2)
    loss = binary_cross_entropy_with_logits(logit, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} in the end")

# %%
# New reviews, and other budgets
# ------------------------------
#
# With a budget of two, the chosen words are those that decided. With one, the reason is shorter, and with four, plain
# words are added. Nothing is trained again. Chosen words are blue where the classifier says praise, and orange where it
# says blame.

words, labels, telling = reviews(200)
shown = labels.argsort()[[-1, 0, 1]]  # one with praise, two with blame
fig, axes = plt.subplots(3, 1, figsize=(9.5, 4.6), layout="constrained")
with torch.no_grad():
    for ax, budget in zip(axes, (1, 2, 4), strict=True):
        chosen, logit = predict(words[shown], budget)
        for row, column in torch.cartesian_prod(torch.arange(3), torch.arange(10)).tolist():
            box = {"facecolor": "#0072B2" if logit[row] > 0 else "#D55E00", "edgecolor": "none", "pad": 2.5}
            style = {"bbox": box, "color": "white"} if chosen[row, column] else {"color": "0.35"}
            ax.text(column, -row, vocabulary[words[shown[row], column]], ha="center", va="center", fontsize=9, **style)
        ax.set(xlim=(-0.6, 9.6), ylim=(-2.6, 0.6), title=f"budget {budget}")
        ax.axis("off")

    chosen, logit = predict(words, budget=2)
    first, _ = predict(words, budget=1)
exact = (chosen == telling).all(1).double().mean().item()
right = ((logit > 0) == (labels > 0.5)).double().mean().item()
print(f"{exact:.0%} of the rationales are the two words that decided; {right:.0%} of the labels are right")
assert exact > 0.95 and right > 0.95
assert (first <= telling).all()

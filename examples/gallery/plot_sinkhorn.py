"""
From a vague plan to a decision
===============================

Six bakeries deliver to six cafés, each to one. With an entropy as its regularizer, the best matching becomes a
transport plan: everybody goes a little everywhere when the temperature is high, and to one place when it is low. This
is what Sinkhorn's iteration computes.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

import optlayers as ol
import polytopes
from optlayers import plots

generator = torch.Generator().manual_seed(106)
SIZE = 6
bakeries = torch.rand(SIZE, 2, generator=generator, dtype=torch.float64)
cafes = torch.rand(SIZE, 2, generator=generator, dtype=torch.float64)
distance = torch.cdist(bakeries, cafes)

# %%
# One polytope, three temperatures
# --------------------------------
#
# ``matching`` has a row for each bakery and a column for each café. ``Entropy(T)`` rewards a plan by T times
# its entropy. The declaration stays what it is.

matching = ol.compile_polytope(polytopes.matching(SIZE))
temperatures = [0.5, 0.05, 0.005]
plans = [ol.OptLayer(matching, ol.Regularized(ol.Entropy(t)))(-distance) for t in temperatures]

fig, axes = plt.subplots(1, 3, figsize=(10.5, 4.1), layout="constrained")
for ax, plan, temperature in zip(axes, plans, temperatures, strict=True):
    for i, j in np.ndindex(SIZE, SIZE):
        ends = torch.stack([bakeries[i], cafes[j]])
        ax.plot(*ends.T, color="0.25", linewidth=2.5, alpha=plan[i, j].item(), zorder=1)
    ax.scatter(*bakeries.T, color="#D55E00", s=70, zorder=2, label="bakery")
    ax.scatter(*cafes.T, color="#0072B2", s=70, marker="s", zorder=2, label="café")
    ax.set(title=f"temperature {temperature:g}", xlim=(-0.05, 1.05), ylim=(-0.05, 1.05), aspect="equal")
    ax.set(xticks=[], yticks=[])
fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)

# %%
# The way between them
# --------------------
#
# Each line is an entry of the plan. On the right all are 1/6. On the left six of them are 1: the best matching.

fig, ax = plt.subplots(figsize=(7.6, 3.8), layout="constrained")
names = [f"bakery {i + 1}, café {j + 1}" for i, j in np.ndindex(SIZE, SIZE)]
plots.regularization_path(matching, -distance, ol.Entropy, torch.logspace(-2.5, 1, 50), words=names, ax=ax)
ax.set_title("a plan as its temperature rises")

# %%
# Checked by Sinkhorn's iteration
# -------------------------------
#
# It scales rows and columns of :math:`e^{-\text{distance} / T}` in turn until both have sums of 1.


def sinkhorn(temperature: float) -> torch.Tensor:
    """A plan whose rows and columns sum to 1, by scaling them in turn."""
    kernel = (-distance / temperature).exp()
    for _ in range(5000):
        kernel = kernel / kernel.sum(1, keepdim=True)
        kernel = kernel / kernel.sum(0, keepdim=True)
    return kernel


for plan, temperature in zip(plans[:2], temperatures[:2], strict=True):
    torch.testing.assert_close(plan, sinkhorn(temperature))

# %%
# At a low temperature, the plan is the matching that the Hungarian method finds.

_, partner = linear_sum_assignment(distance)
print("café of each bakery:", (partner + 1).tolist())
assert plans[-1].argmax(1).tolist() == partner.tolist()

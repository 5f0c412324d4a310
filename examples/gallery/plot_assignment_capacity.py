"""
Capacities that a model predicts
================================

Three vans deliver parcels. When it rains they take fewer, but nobody wrote down how many. We have the weather of past
days, what each parcel would have been worth in each van, and what every day earned in total. Can a model learn the
capacity of each van from that?
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch

import optlayers as ol
from optlayers import plots

torch.manual_seed(0)
PARCELS, VANS = 12, 3

# %%
# The declaration
# ---------------
#
# Every parcel goes into one van at most, and vans have a capacity that differs from day to day: a ``cp.Parameter``. A
# parcel is worth a different amount in each van, since vans have different rounds.

load = cp.Variable((PARCELS, VANS), nonneg=True)
capacity = cp.Parameter(VANS, name="capacity", nonneg=True)
loading = ol.Polytope(
    load,
    [cp.sum(load, axis=1) <= 1, cp.sum(load, axis=0) <= capacity],
    draw=lambda ax, x, **options: plots.links(x, ax=ax, **options),
)

# %%
# What was seen
# -------------
#
# ``OptimalValue`` is what the best loading of a day earns. Its gradient for a capacity is the price of that
# constraint: what one more place in the van would earn.

DAYS = 60
earned_by = ol.OptimalValue(loading)
rain = torch.rand(DAYS, 1)
worth = (0.5 + torch.rand(DAYS, PARCELS, VANS)) * (0.5 + 4.0 * torch.rand(DAYS, 1, VANS))  # rounds pay well or badly
dry, lost = torch.tensor([4.5, 3.5, 2.5]), torch.tensor([3.0, 1.0, 2.0])
true_capacity = dry - lost * rain
earned = earned_by(worth, capacity=true_capacity)

# %%
# Learning
# --------
#
# The model is a line for each van. The squared error of the earnings reaches it through the prices.

model = torch.nn.Linear(1, VANS)
torch.nn.init.constant_(model.bias, 3.0)
optimizer = torch.optim.LBFGS(model.parameters(), max_iter=60, line_search_fn="strong_wolfe")
losses = []


def step() -> torch.Tensor:
    """The squared error of what days earned, and its gradient."""
    optimizer.zero_grad()
    predicted = model(rain).clamp(min=0.0)
    loss = (earned_by(worth, capacity=predicted) - earned).square().mean()
    loss.backward()
    losses.append(loss.item())
    return loss


optimizer.step(step)
print(f"loss {losses[0]:.1f} at first, {losses[-1]:.0e} after {len(losses)} evaluations")

# %%
# What rain does
# --------------
#
# The lines that were learned lie on those that made the data, which the model has never seen.

names = ["north van", "east van", "south van"]
colors = ["#D55E00", "#009E73", "#0072B2"]
weather = torch.linspace(0.0, 1.0, 11)[:, None]
with torch.no_grad():
    learned = model(weather)
fig, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
for van in range(VANS):
    ax.plot(weather, learned[:, van], color=colors[van], label=names[van])
    ax.plot(weather, (dry - lost * weather)[:, van], "o", color=colors[van], markerfacecolor="none")
ax.set(xlabel="rain", ylabel="parcels that a van takes", title="lines are learned, circles are the truth", ylim=(0, 6))
ax.legend(frameon=False)

# %%
# The same parcels on a dry and on a wet day
# ------------------------------------------
#
# The best loadings for predicted capacities. These are no whole numbers, so that the last place in a van goes to a part
# of a parcel, which is drawn lighter.

fig, axes = plt.subplots(1, 2, figsize=(9.0, 4.6), layout="constrained")
decide = ol.OptLayer(loading, ol.Pipeline())
for ax, wet, title in zip(axes, (0, 10), ("no rain", "heavy rain"), strict=True):
    x = decide(worth[0], capacity=learned[wet])
    parcels = [f"parcel {k + 1}" for k in range(PARCELS)]
    plots.structure(loading, x, words=(parcels, names), ax=ax)
    ax.set_title(f"{title}: {x.sum():.1f} parcels")

# %%
# Checked by differences
# ----------------------
#
# A price says what a little more capacity earns. So does the difference of two optimal values.

places = true_capacity[:1].double().requires_grad_()
(price,) = torch.autograd.grad(earned_by(worth[:1].double(), capacity=places).sum(), places)
little, same = 1e-4 * torch.eye(VANS, dtype=torch.float64), worth[:1].double().expand(VANS, -1, -1)
more, less = (earned_by(same, capacity=places.detach() + change) for change in (little, -little))
print("prices", [round(p, 3) for p in price[0].tolist()])
torch.testing.assert_close(price[0], (more - less) / 2e-4, atol=1e-4, rtol=1e-4)
assert (learned - (dry - lost * weather)).abs().max() < 0.05

"""
A round trip, cut by cut
========================

A band plays in twelve cities and wants the shortest round trip. That every city has two roads of the trip takes twelve
equations. That the trip is in one piece takes an inequality for every set of cities, thousands of them. Few of these
matter, and a function finds them when they are needed.
"""

from itertools import combinations

import cvxpy as cp
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.sparse.csgraph import connected_components

import optlayers as ol
from optlayers import plots

CITIES = 12
rng = np.random.default_rng(239)
places = np.concatenate([c + 0.13 * rng.normal(size=(4, 2)) for c in ([0.0, 0.2], [0.9, 0.0], [0.5, 0.8])])
distance = np.linalg.norm(places[:, None] - places, axis=2)
roads = np.array(list(combinations(range(CITIES), 2)))
scores = torch.from_numpy(-distance[tuple(roads.T)])

# %%
# Two roads at every city
# -----------------------
#
# There is a boolean for each road. The equations alone allow plans that fall into pieces. A function looks for these:
# a piece of k cities may have k - 1 roads at most, as coefficients and a bound.

at_city = np.array([(roads == city).any(axis=1) for city in range(CITIES)], dtype=float)
x = cp.Variable(len(roads), boolean=True)


def full(plan: np.ndarray | torch.Tensor) -> np.ndarray:
    """The roads as an array (cities, cities)."""
    matrix = np.zeros((CITIES, CITIES))
    matrix[tuple(roads.T)] = np.asarray(plan)
    return matrix


def pieces(plan: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """What a plan in several pieces violates: fewer roads within a piece than it has cities."""
    count, piece = connected_components(full(plan) > 1e-6, directed=False)
    if count == 1:
        return []
    return [((piece[roads] == k).all(axis=1).astype(float), (piece == k).sum() - 1.0) for k in range(count)]


# %%
# Cutting by hand
# ---------------
#
# We solve, cut off the pieces, and solve again. Each plan is longer than the one before, until one is in one piece.

constraints = [at_city @ x == 2]
plans = []
while True:
    plans.append(ol.OptLayer(ol.Polytope(x, constraints), ol.Pipeline())(scores))
    cuts = pieces(plans[-1].numpy())
    if not cuts:
        break
    constraints += [coefficients @ x <= bound for coefficients, bound in cuts]

fig, axes = plt.subplots(1, len(plans), figsize=(3.6 * len(plans), 3.6), layout="constrained")
for ax, plan in zip(axes, plans, strict=True):
    torn = len(pieces(plan.numpy()))
    plots.graph(full(plan), words=[""] * CITIES, places=places, color="#D55E00" if torn else "#0072B2", ax=ax)
    ax.set_title(f"{torn or 1} piece{'s' * (torn > 1)}, length {-(plan @ scores).item():.2f}")

# %%
# Cutting on demand
# -----------------
#
# With ``separate=`` the library does this for every question that is asked: best trips, projections, losses. Answers
# are those of the polytope with all inequalities, so that the point that is nearest to some scores is a mixture of
# trips.

trips = ol.Polytope(
    x, [at_city @ x == 2], separate=pieces, draw=lambda ax, x, **options: plots.graph(full(x), ax=ax, **options)
)
compiled = ol.compile_polytope(trips)
trip = compiled.maximize(scores).value
near = compiled.project(12.0 * scores)

fig, ax = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
plots.structure(trips, near, words=[""] * CITIES, places=places, ax=ax)
ax.set_title(f"the nearest point is {ax.get_title()}", fontsize=11)

# %%
# Checked by dynamic programming
# ------------------------------
#
# Held and Karp (1962) extend the best ways through sets of cities by one city at a time.

best = {(frozenset([k]), k): distance[0, k] for k in range(1, CITIES)}
for size in range(2, CITIES):
    for chosen in map(frozenset, combinations(range(1, CITIES), size)):
        for last in chosen:
            rest = chosen - {last}
            best[chosen, last] = min(best[rest, k] + distance[k, last] for k in rest)
everywhere = frozenset(range(1, CITIES))
shortest = min(best[everywhere, last] + distance[last, 0] for last in everywhere)

print(f"{len(plans)} plans; the shortest round trip is {shortest:.4f} long")
assert torch.equal(trip, plans[-1])
assert abs(-(trip @ scores).item() - shortest) < 1e-9

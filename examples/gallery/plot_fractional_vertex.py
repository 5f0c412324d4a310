"""
A fractional vertex and the cut against it
==========================================

Guards watch the corridors of a museum, and stand where corridors meet. How few guards see them all? One constraint
for each corridor looks like all that is needed. But then half a guard at every corner is an answer, too. A report
finds such a vertex, and the inequality that is missing.
"""

from itertools import product

import cvxpy as cp
import matplotlib.pyplot as plt
import torch

import optlayers as ol
from optlayers import plots

# %%
# Three corridors
# ---------------
#
# They form a triangle, and each of them needs a guard at one of its ends at least.


def guards(corners: int) -> tuple[cp.Variable, list[cp.Constraint]]:
    """Guards at the corners of a ring of corridors."""
    x = cp.Variable(corners, name="x", nonneg=True)
    return x, [x <= 1, *(x[k] + x[(k + 1) % corners] >= 1 for k in range(corners))]


x, seen = guards(3)
triangle = ol.Polytope(x, seen)
found = ol.report(triangle, effort="quick")
vertex = found.facts["fractional_vertices"][0]["point"]
print("integral:", found.integral)
print("a vertex:", vertex)
print("missing: ", found.missing[0].line)

# %%
# Before and after
# ----------------
#
# The missing inequality is a line to paste, and a constraint to add. It cuts the orange vertex off, and what is left is
# the hull of the answers in whole guards.

exact = ol.Polytope(x, [*seen, *(inequality.constraint(x) for inequality in found.missing)])
fig, axes = plt.subplots(1, 2, figsize=(9.0, 4.4), subplot_kw={"projection": "3d"}, layout="constrained")
for ax, polytope, title in zip(axes, (triangle, exact), ("as declared", "with the cut"), strict=True):
    plots.polytope(polytope, ax=ax)
    ax.view_init(elev=18, azim=35)
    ax.set_title(title)

# %%
# Five corridors
# --------------
#
# In a ring of five corridors, half a guard at every corner is the only best point, of 2½ guards. The report finds that
# whole guards are three at least.

x, seen = guards(5)
found = ol.report(ol.Polytope(x, seen), effort="quick")
print("missing: ", [inequality.line for inequality in found.missing])
exact = ol.Polytope(x, [*seen, *(inequality.constraint(x) for inequality in found.missing)])
costs = torch.tensor([1.0, 1.01, 1.02, 1.03, 1.04], dtype=torch.float64)
before, after = (ol.OptLayer(polytope, ol.Pipeline())(-costs) for polytope in (ol.Polytope(x, seen), exact))

turn = torch.arange(6) * 2 * torch.pi / 5
fig, axes = plt.subplots(1, 2, figsize=(8.0, 4.2), layout="constrained")
for ax, point, color, title in zip(
    axes, (before, after), ("#D55E00", "#0072B2"), ("as declared", "with the cut"), strict=True
):
    ax.plot(turn.sin(), turn.cos(), color="0.8", linewidth=8, zorder=0)
    ax.scatter(turn[:5].sin(), turn[:5].cos(), s=900, color="white", edgecolors="0.5", zorder=1)
    ax.scatter(turn[:5].sin(), turn[:5].cos(), s=900, color=color, alpha=point.numpy(), linewidths=0, zorder=2)
    for corner, weight in enumerate(point.tolist()):
        style = {"color": "white" if weight > 0.9 else "0.2", "ha": "center", "va": "center", "zorder": 3}
        ax.text(turn[corner].sin(), turn[corner].cos(), f"{weight:g}", **style)
    ax.set(xlim=(-1.3, 1.3), ylim=(-1.15, 1.3), aspect="equal", title=f"{title}: {point.sum():g} guards")
    ax.axis("off")

# %%
# Checked by trying all answers
# -----------------------------
#
# There are 32 ways to place guards at five corners.

ways = torch.tensor(list(product((0.0, 1.0), repeat=5)), dtype=torch.float64)
ways = ways[(ways + ways.roll(-1, dims=1) >= 1).all(1)]
print(f"{len(ways)} ways see all corridors, the least with {ways.sum(1).min():g} guards")
torch.testing.assert_close(before, torch.full_like(before, 0.5))
torch.testing.assert_close(after, ways[(ways @ costs).argmin()])
assert ol.report(exact, effort="quick").integral

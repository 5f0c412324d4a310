"""
What terrain costs, learned from paths
======================================

A hiker crosses a landscape from the top left to the bottom right. We see photographs of landscapes and the way that she
took, but not how hard she finds meadows, forests or water. Can we find out from her paths?
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import gaussian_filter

import optlayers as ol
import polytopes

rng = np.random.default_rng(4)
torch.manual_seed(0)
SIZE, PIXELS = 10, 6
terrain = ["water", "meadow", "forest", "rock"]
effort = np.array([8.0, 1.0, 3.0, 6.0])
colour = np.array([[0.35, 0.55, 0.75], [0.72, 0.80, 0.45], [0.22, 0.45, 0.25], [0.60, 0.55, 0.50]])

# %%
# Landscapes
# ----------
#
# A smooth random height says what grows in a cell: water lies low and rocks lie high. A photograph has 6 by 6 pixels
# for each cell, with noise.


def landscapes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Kinds of terrain ``(count, 10, 10)``, and photographs ``(count, 60, 60, 3)``."""
    height = gaussian_filter(rng.normal(size=(count, SIZE, SIZE)), (0, 1.4, 1.4), mode="wrap")
    kinds = np.digitize(height / height.std(), [-0.9, 0.2, 0.9])
    photographs = np.kron(colour[kinds], np.ones((1, PIXELS, PIXELS, 1)))
    return kinds, np.clip(photographs + 0.08 * rng.normal(size=photographs.shape), 0.0, 1.0)


kinds, photographs = landscapes(41)  # the last one is kept for the end
images = torch.tensor(photographs, dtype=torch.float32).permute(0, 3, 1, 2)

# %%
# Paths
# -----
#
# ``grid_path`` has a part for each arc between neighbouring cells, to the right or down. An arc costs what the cell
# costs that it leads to, and a cost is a negative score.

paths = ol.compile_polytope(polytopes.grid_path(SIZE, SIZE))
into = torch.from_numpy(polytopes.grid_arcs(SIZE, SIZE)[:, 1])
costs = torch.tensor(effort[kinds], dtype=torch.float32).flatten(1)
taken = paths.maximize(-costs[:, into]).value

# %%
# Learning
# --------
#
# A small network looks at the pixels of each cell and gives its cost. ``SparseMAPLoss`` compares the paths that follow
# from these costs with the one that was taken. No cost is ever shown.

network = torch.nn.Sequential(
    torch.nn.Conv2d(3, 12, kernel_size=PIXELS, stride=PIXELS), torch.nn.ReLU(), torch.nn.Conv2d(12, 1, kernel_size=1)
)
loss_of = ol.SparseMAPLoss(paths)
optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
losses = []
for _ in range(40):
    predicted = network(images[:-1]).flatten(1)
    loss = loss_of(-predicted[:, into], taken[:-1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} in the end")

# %%
# A new landscape
# ---------------
#
# All paths cross the same number of cells, so that they tell nothing of a constant that is added to all costs. Our way
# may differ from hers where two ways are equally short.

with torch.no_grad():
    predicted = network(images[-1:]).flatten(1)
found = paths.maximize(-predicted[:, into]).value[0]


def cells_of(path: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows of the cells of a path, in pixels."""
    rows, columns = np.divmod(np.r_[0, into[path > 0.5].numpy()], SIZE)
    order = np.argsort(rows + columns)
    return (columns[order] + 0.5) * PIXELS - 0.5, (rows[order] + 0.5) * PIXELS - 0.5


fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11.0, 3.4), layout="constrained")
left.imshow(photographs[-1])
left.plot(*cells_of(taken[-1]), color="white", linewidth=5, label="her way")
left.plot(*cells_of(found), color="#D55E00", linewidth=2, label="our way")
left.legend(loc="lower left", fontsize=8, facecolor="0.6")
left.set_title("a new photograph")
for ax, values, title in ((middle, costs[-1], "what cells cost her"), (right, predicted[0], "what we learned")):
    fig.colorbar(ax.imshow(values.view(SIZE, SIZE), cmap="cividis"), ax=ax, shrink=0.75)
    ax.set_title(title)
for ax in (left, middle, right):
    ax.set(xticks=[], yticks=[])

correlation = np.corrcoef(costs[-1], predicted[0])[0, 1]
hers, ours = ((costs[-1, into] * path).sum().item() for path in (taken[-1], found))
print(f"her way costs {hers:g}, ours {ours:g}; learned costs correlate by {correlation:.2f}")
by_kind = [predicted[0][torch.from_numpy(kinds[-1].ravel() == kind)].mean().item() for kind in range(4)]
print("from cheap to dear:", ", ".join(terrain[kind] for kind in np.argsort(by_kind)))
assert ours <= 1.1 * hers
assert np.argsort(by_kind).tolist() == np.argsort(effort).tolist()

"""
Learning to rank by soft ranks
==============================

Eight wines are sold in each auction, and we know a few numbers about every wine. Their prices run from next to nothing
to a fortune, so that a model of prices follows the few dearest. Who is dearer than whom is a better question. But ranks
are constant nearly everywhere, and have no gradient to learn by. Soft ranks do.
"""

import matplotlib.pyplot as plt
import torch
from scipy.stats import spearmanr

import optlayers as ol
import polytopes

torch.manual_seed(0)

# %%
# Soft ranks
# ----------
#
# The ``permutahedron`` is the hull of all rankings. Its best vertex for some scores is their ranking, and its nearest
# point to them is a soft ranking: scores that are close share a rank. Dividing the scores by a smaller number makes the
# ranks harder. Here one of four scores moves past the others.

ranking = ol.compile_polytope(polytopes.permutahedron(4))
moving = torch.linspace(-1.0, 4.0, 301, dtype=torch.float64)
scores = torch.stack([moving, *(torch.full_like(moving, other) for other in (0.0, 1.5, 3.0))], dim=1)

fig, ax = plt.subplots(figsize=(7.0, 3.6), layout="constrained")
for softness, color in ((1.0, "#56B4E9"), (0.3, "#0072B2")):
    soft = ranking.project(scores / softness).value[:, 0]
    ax.plot(moving, soft, color=color, label=f"soft rank, scores / {softness:g}")
ax.plot(moving, ranking.maximize(scores).value[:, 0], color="#D55E00", linestyle="--", label="rank")
ax.set(xlabel="its score, among others of 0, 1.5 and 3", ylabel="rank of the moving score", yticks=[1, 2, 3, 4])
ax.legend(frameon=False)

# %%
# A loss for rankings
# -------------------
#
# Spearman's rank correlation of n things is :math:`1 - 6 d / (n^3 - n)`, where d is the squared distance of two
# rankings. With a soft ranking in place of one of them, d has a gradient.

auctions, wines = 60, 8
weights = torch.tensor([2.0, -1.0, 0.5, 0.0, 1.0])
about = torch.randn(auctions + 100, wines, len(weights))
prices = (about @ weights + 0.2 * torch.randn(auctions + 100, wines)).exp()
rank = ol.OptLayer(polytopes.permutahedron(wines), ol.Pipeline())
soft_rank = ol.OptLayer(polytopes.permutahedron(wines), ol.SparseMAP())
ranks = rank(prices)


def spearman(model: torch.Tensor) -> float:
    """The mean rank correlation in the auctions that nobody learned from."""
    distance = (rank(about[auctions:] @ model) - ranks[auctions:]).square().sum(1)
    return 1.0 - 6.0 * distance.mean().item() / (wines**3 - wines)


model = torch.zeros(len(weights), requires_grad=True)
optimizer = torch.optim.Adam([model], lr=0.1)
losses, correlations = [], []
for _ in range(40):
    loss = (soft_rank(about[:auctions] @ model) - ranks[:auctions]).square().sum(1).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    correlations.append(spearman(model.detach()))

# %%
# Ranks against prices
# --------------------
#
# A linear model that is fitted to prices by least squares is the rival. A ranking is the same for prices, for their
# logarithms and for any other increasing function of them, so that the rank loss need not know which one is linear.

features, targets = about[:auctions].flatten(0, 1), prices[:auctions].reshape(-1, 1)
by_price = torch.linalg.lstsq(features, targets).solution[:, 0]
rival = spearman(by_price)

fig, (first, second) = plt.subplots(1, 2, figsize=(9.0, 3.4), layout="constrained")
first.plot(losses, color="#0072B2")
first.set(xlabel="step", ylabel="squared distance of rankings", title="the loss", ylim=(0, None))
second.plot(correlations, color="#0072B2", label="learned from ranks")
second.axhline(rival, color="#D55E00", linestyle="--", label="least squares on prices")
second.set(xlabel="step", ylabel="Spearman's correlation", title="new auctions", ylim=(None, 1.0))
second.legend(frameon=False, loc="lower right")

print(f"rank correlation in new auctions: {correlations[-1]:.3f} from ranks, {rival:.3f} from prices")
by_scipy = [
    spearmanr(x @ model.detach(), y).statistic for x, y in zip(about[auctions:], prices[auctions:], strict=True)
]
assert abs(sum(by_scipy) / 100 - correlations[-1]) < 1e-5
assert losses[-1] < 0.2 * losses[0]
assert correlations[-1] > 0.95 > rival

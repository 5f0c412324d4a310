"""
The risk that an investor sees
==============================

An investor spreads her money over five funds: she maximizes expected return minus a multiple of risk. First we draw
what she can reach, the efficient frontier, as one batch. Then we watch her decisions and learn from them which
covariance she has in mind.
"""

import cvxpy as cp
import matplotlib.pyplot as plt
import torch

import optlayers as ol

torch.manual_seed(1)
funds = ["bonds", "utilities", "banks", "tech", "gold"]
expected = torch.tensor([0.02, 0.05, 0.085, 0.10, 0.04], dtype=torch.float64)
factors = torch.tensor(
    [[0.03, 0.06, 0.16, 0.22, -0.04], [0.02, 0.08, 0.05, -0.08, 0.02], [0.01, -0.02, 0.03, 0.02, 0.14]],
    dtype=torch.float64,
)
covariance = factors.T @ factors + torch.diag(torch.tensor([0.03, 0.07, 0.08, 0.12, 0.08], dtype=torch.float64) ** 2)

# %%
# The declaration
# ---------------
#
# Shares sum to 1 and none is negative. The regularizer is a convex expression of cvxpy, and the covariance in it is a
# parameter.

shares = cp.Variable(5, nonneg=True)
risk = cp.Parameter((5, 5), PSD=True, name="risk")
invest = ol.OptLayer(ol.Polytope(shares, [cp.sum(shares) == 1]), ol.Regularized(0.5 * cp.quad_form(shares, risk)))

# %%
# The efficient frontier
# ----------------------
#
# To be twice as averse to risk is to expect half the returns, so that these are divided by the aversion. Sixty
# aversions are one batch.

aversion = torch.logspace(2.3, -0.6, 60, dtype=torch.float64)[:, None]
frontier = invest(expected / aversion, risk=covariance)
deviation = torch.einsum("bi,ij,bj->b", frontier, covariance, frontier).sqrt()

colors = ["#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00"]
fig, (left, right) = plt.subplots(1, 2, figsize=(10.0, 4.0), layout="constrained")
left.plot(deviation, frontier @ expected, color="0.2", linewidth=2)
for fund, name in enumerate(funds):
    left.scatter(covariance[fund, fund].sqrt(), expected[fund], color=colors[fund], s=60, zorder=3)
    left.annotate(name, (covariance[fund, fund].sqrt(), expected[fund]), (6, -12), textcoords="offset points")
left.set(xlabel="risk (standard deviation)", ylabel="expected return", title="the efficient frontier", xlim=(0.0, 0.32))
left.set_ylim(0.01, 0.11)
right.stackplot(aversion[:, 0], frontier.T, labels=funds, colors=colors)
right.set(xscale="log", xlabel="aversion to risk", ylabel="share", ylim=(0, 1), title="what lies on it")
right.set_xlim(aversion.min(), aversion.max())
right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, reverse=True)

# %%
# Learning the covariance from decisions
# --------------------------------------
#
# The forecasts differ from month to month, and so do her portfolios. The shares have a gradient for the covariance,
# which is learned as a square root, so that it stays positive semidefinite.

forecasts = (expected + 0.03 * torch.randn(100, 5, dtype=torch.float64)) / 3.0
observed = invest(forecasts, risk=covariance)
root = (0.1 * torch.eye(5, dtype=torch.float64)).requires_grad_()
optimizer = torch.optim.LBFGS([root], max_iter=60, line_search_fn="strong_wolfe", tolerance_change=1e-12)
losses = []


def step() -> torch.Tensor:
    """The squared error of the shares, and its gradient."""
    optimizer.zero_grad()
    loss = (invest(forecasts, risk=root.T @ root) - observed).square().sum(1).mean()
    loss.backward()
    losses.append(loss.item())
    return loss


optimizer.step(step)
print(f"loss {losses[0]:.3f} at first, {losses[-1]:.1e} after {len(losses)} evaluations")

# %%
# What can be known
# -----------------
#
# As shares sum to 1, a number that is added to all entries of the covariance changes no decision. The risk of holding
# one fund against another, :math:`\Sigma_{ii} + \Sigma_{jj} - 2 \Sigma_{ij}`, does not depend on it. This is what we
# compare.


def against(matrix: torch.Tensor) -> torch.Tensor:
    """The standard deviation of one fund against another, for all pairs."""
    variance = matrix.diagonal()
    return (variance[:, None] + variance - 2.0 * matrix)[torch.triu(torch.ones(5, 5), 1) > 0].clamp(min=0.0).sqrt()


learned = (root.T @ root).detach()
fig, ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
ax.plot([0.0, 0.4], [0.0, 0.4], color="0.7", zorder=0)
ax.scatter(against(covariance), against(0.01 * torch.eye(5).double()), color="#D55E00", label="at first", marker="s")
ax.scatter(against(covariance), against(learned), color="#0072B2", label="learned")
ax.set(xlabel="risk of one fund against another", ylabel="what the model thinks", title="ten pairs of funds")
ax.set(xlim=(0.0, 0.4), ylim=(0.0, 0.4))
ax.legend(frameon=False)

error = (against(learned) / against(covariance) - 1.0).abs().max().item()
print(f"the largest error of a pair is {error:.1%}")
assert losses[-1] < 1e-3 * losses[0]
assert error < 0.05

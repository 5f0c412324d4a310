"""
The dishonest casino
====================

A casino rolls a fair die, but now and then slips in a loaded one, which shows a six half of the time. From the rolls
alone, when was the die loaded? It is the textbook example of Durbin, Eddy, Krogh and Mitchison (1998). We learn a
conditional random field for it, with scores for rolls and for transitions, and compare these with the truth.
"""

import math
from functools import partial

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import one_hot

import optlayers as ol
import polytopes

generator = torch.Generator().manual_seed(3)
SWITCH = torch.tensor([[0.95, 0.05], [0.10, 0.90]])  # from fair or loaded to fair or loaded
ROLL = torch.tensor([[1 / 6] * 6, [0.1] * 5 + [0.5]])

# %%
# Evenings at the casino
# ----------------------
#
# Evenings have 40, 60 or 80 rolls. What is behind the end of a short evening is padding. The last evening, of 80
# rolls, is kept for later.

sizes = torch.tensor([40, 60, 80] * 41)
state = torch.zeros(len(sizes), dtype=torch.long)
states = []
for _ in range(80):
    state = torch.multinomial(SWITCH[state], 1, generator=generator)[:, 0]
    states.append(state)
hidden = torch.stack(states, dim=1)  # (evenings, rolls)
rolls = torch.multinomial(ROLL[hidden.flatten()], 1, generator=generator).view_as(hidden)
known = one_hot(hidden, 2) * (torch.arange(80) < sizes[:, None])[..., None]

# %%
# The model
# ---------
#
# ``linear_chain`` has a part for each step and state, and takes further scores ``transition`` for pairs of neighbours.
# A ``Family`` makes one polytope for each length, and ``CRFLoss`` is minus the log-probability of the known states. Its
# gradient is the difference between marginals and truth.

chains = ol.Family(partial(polytopes.linear_chain, states=2))
crf = ol.CRFLoss(chains)
emission = torch.zeros(6, 2, requires_grad=True)  # from a roll to the scores of both states
switch = torch.zeros(2, 2, requires_grad=True)
nothing = torch.zeros(80, 2)


def step() -> torch.Tensor:
    """The loss over all evenings but the last, and its gradient."""
    optimizer.zero_grad()
    transition = polytopes.edge_scores(nothing, switch)
    loss = crf(emission[rolls[:-1]], known[:-1], sizes=sizes[:-1], transition=transition)
    loss.backward()
    losses.append(loss.item())
    return loss


optimizer = torch.optim.LBFGS([emission, switch], max_iter=20, line_search_fn="strong_wolfe")
losses: list[float] = []
optimizer.step(step)
print(f"loss {losses[0]:.1f} at first, {losses[-1]:.1f} after {len(losses)} evaluations")

# %%
# A new evening
# -------------
#
# The marginals of a chain say how likely the die is loaded at each roll. It is grey where the die really was loaded.

truth, thrown = hidden[-1], rolls[-1]
transition = polytopes.edge_scores(nothing, switch.detach())
gibbs = ol.Gibbs(chains(80), emission[thrown].detach(), transition=transition)

fig, (top, bottom) = plt.subplots(2, 1, figsize=(9.0, 4.6), sharex=True, layout="constrained")
for ax in (top, bottom):
    grey = {"color": "0.86", "linewidth": 0, "transform": ax.get_xaxis_transform()}
    ax.fill_between(range(80), 0, 1, where=truth.numpy() == 1, step="mid", **grey)
top.scatter(range(80), thrown + 1, s=16, c=["#D55E00" if face == 5 else "#0072B2" for face in thrown.tolist()])
top.set(ylabel="roll", yticks=range(1, 7), title="what the guests see, with sixes in orange")
bottom.plot(gibbs.mean[:, 1], color="#0072B2")
bottom.set(ylabel="probability", xlabel="number of the roll", ylim=(-0.02, 1.02), title="the die is loaded")

# %%
# What transitions say
# --------------------
#
# Many scores stand for the same distribution, but some combinations are the same in all of them. For transitions that
# is the log-odds of staying, which the dice of the casino give as
# :math:`\log \frac{0.95 \cdot 0.90}{0.05 \cdot 0.10} = 5.14`, and for a six against a one :math:`\log 5 = 1.61` more
# for the loaded die.

stay = (switch[0, 0] + switch[1, 1] - switch[0, 1] - switch[1, 0]).item()
six = (emission[5, 1] - emission[5, 0] - emission[0, 1] + emission[0, 0]).item()
print(f"staying: {stay:.2f}, truly {math.log(171):.2f}   six: {six:.2f}, truly {math.log(5):.2f}")
right = (gibbs.mode[:, 1] == truth).float().mean().item()
print(f"{right:.0%} of the new rolls get the right die")
assert abs(stay - math.log(171)) < 0.3 and abs(six - math.log(5)) < 0.3
assert right > 0.8

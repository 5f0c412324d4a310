"""
Sound shifts from pairs of words
================================

English *water* is German *Wasser*, and *day* is *Tag*. Which letter of one language became which letter of the other?
Nobody tells us which letters correspond. We only know which words belong together, and learn scores for pairs of
letters such that words align better with their partner than with other words.
"""

import matplotlib.pyplot as plt
import torch

import optlayers as ol
import polytopes
from optlayers import plots

torch.manual_seed(0)
pairs = """water wasser, better besser, foot fuss, eat essen, hate hass, nut nuss, white weiss, ten zehn, two zwei,
heart herz, salt salz, tooth zahn, time zeit, to zu, day tag, deep tief, door tor, bed bett, god gott, red rot,
dance tanz, side seite, ride reiten, deed tat, blood blut, good gut, open offen, ship schiff, hope hoffen, help helfen,
ripe reif, sharp scharf, soap seife, ape affe, grip griff, up auf, make machen, book buch, milk milch, week woche"""
english, german = zip(*(pair.split() for pair in pairs.split(",")), strict=True)
letters = [" ", *sorted(set("".join(english + german)))]

# %%
# The structure
# -------------
#
# A cell (i, j) of ``monotone_alignment`` says that i letters of one word and j of the other have been read. A diagonal
# move pairs two letters, a move right or down skips one. Words have different lengths, so that the polytope is a
# ``Family`` of two sizes, and ``sizes=`` says which member each pair of words takes.

alignments = ol.Family(polytopes.monotone_alignment)
longest = max(map(len, english + german))


def coded(words: tuple[str, ...]) -> torch.Tensor:
    """The number of each letter, 0 behind the end of a word."""
    return torch.tensor([[letters.index(letter) for letter in word.ljust(longest)] for word in words])


def move_scores(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Scores of the moves right, diagonally and down into each cell."""
    scores = skip.expand(len(first), longest + 1, longest + 1, 3).clone()
    scores[:, 1:, 1:, 1] = match[first[:, :, None], second[:, None, :]]
    scores[:, 0, 0, 1] = 0.0  # where every path begins
    return scores


# %%
# Learning
# --------
#
# ``Gibbs(...).log_partition`` adds up all alignments of two words: how well these fit together. For each English word,
# the right partner competes with four others, and the loss is the cross-entropy of that choice.

match = torch.zeros(len(letters), len(letters), requires_grad=True)
skip = torch.tensor(-1.0, requires_grad=True)
optimizer = torch.optim.Adam([match, skip], lr=0.2)
left, right, count = coded(english), coded(german), len(english)
lengths = torch.tensor([[len(e) + 1 for e in english], [len(g) + 1 for g in german]])
losses = []
for _ in range(30):
    shifts = [0, *(1 + torch.randperm(count - 1)[:4]).tolist()]  # the partners themselves, then four wrong words each
    rivals = torch.cat([torch.arange(count).roll(shift) for shift in shifts])
    sizes = torch.stack([lengths[0].repeat(5), lengths[1][rivals]], dim=1)
    fit = ol.Gibbs(alignments, move_scores(left.repeat(5, 1), right[rivals]), sizes=sizes).log_partition
    loss = -fit.view(5, count).log_softmax(0)[0].mean() + 0.01 * match.square().sum() / count
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} in the end")

# %%
# What was learned
# ----------------
#
# The best alignment of one of the pairs, and what became of four consonants: marginals of diagonal moves say how often
# two letters are expected to be a pair, and each row of the table is shares of these pairs. English ``d`` went to
# German ``t``, ``p`` to ``f``, ``t`` to ``s`` and ``z``, and ``k`` to ``ch``. This is the High German consonant shift,
# which Jacob Grimm described in 1822.

scores = move_scores(left, right).detach()
paired = ol.Gibbs(alignments, scores, sizes=lengths.T).mean[:, 1:, 1:, 1]
shares = torch.zeros(len(letters), len(letters))
shares.index_put_((left[:, :, None].expand_as(paired), right[:, None, :].expand_as(paired)), paired, accumulate=True)
shares /= shares.sum(1, keepdim=True).clamp(min=1e-9)

word = english.index("water")
path = ol.OptLayer(alignments, ol.Pipeline())(scores[[word]], sizes=lengths.T[[word]])[0]
rows, columns = ["", *english[word]], ["", *german[word]]
consonants = list("dptk"), list("dtpfszkch")
table = shares[[[letters.index(e)] for e in consonants[0]], [letters.index(g) for g in consonants[1]]]

fig, (first, second) = plt.subplots(1, 2, figsize=(10.0, 4.0), layout="constrained")
plots.moves(path[: len(rows), : len(columns)], words=(rows, columns), ax=first)
first.set(title="the best alignment of water and wasser", xlabel="German", ylabel="English")
plots.heat(table.round(decimals=2), words=consonants, ax=second)
second.set(title="what a consonant became", xlabel="German", ylabel="English")

# %%
# Each consonant mostly became what the sound shift says.

for letter, shifted in {"d": "t", "p": "f", "t": "sz", "k": "ch"}.items():
    share = shares[letters.index(letter), [letters.index(other) for other in shifted]].sum()
    print(f"{letter} -> {' or '.join(shifted)}: {share:.0%}")
    assert share > 0.5

"""What a Gibbs distribution is, by a sum over structures in plain Python, for tests to compare with."""

import math

import torch
from catalogue import Entry

KINDS = ("random", "zero", "tied", "masked", "large")


def pairs_of(entry: Entry) -> list[list[float]]:
    """All structures, flat; of chains with the transitions of each, which are what else has scores."""
    if not entry.polytope.scored:
        return [vertex.flatten().tolist() for vertex in entry.vertices]
    found = []
    for tags in entry.vertices:
        steps, states = tags.shape
        path = tags.argmax(1).tolist()
        moves = [0.0] * (steps * states * states)
        for step, state in enumerate(path):
            moves[(step * states + (path[step - 1] if step else 0)) * states + state] = 1.0
        found.append([*tags.flatten().tolist(), *moves])
    return found


def scores_of(kind: str, pairs: list[list[float]], batch: int, seed: int = 0) -> torch.Tensor:
    """Scores ``(batch, size)`` of what is scored; where some are masked, each instance keeps a structure."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, len(pairs[0]), generator=generator, dtype=torch.float64)
    if kind == "zero":
        return torch.zeros_like(scores)
    if kind == "tied":
        return scores.round()
    if kind == "large":
        return 1e4 * scores
    if kind == "masked":
        for row in range(batch):
            kept = torch.tensor(pairs[row % len(pairs)]) != 0
            hidden = (torch.rand(len(kept), generator=generator) < 0.3) & ~kept
            scores[row, hidden] = -torch.inf
    return scores


class Exact:
    """The distribution of one instance: ``structures`` that it can be, and their log-probabilities."""

    def __init__(self, pairs: list[list[float]], scores: list[float], temperature: float = 1.0) -> None:
        def weight(pair: list[float]) -> float:
            used = [(x, s) for x, s in zip(pair, scores, strict=True) if x != 0]
            if any(s == -math.inf for _, s in used):
                return -math.inf
            return math.fsum(x * s for x, s in used) / temperature

        weights = [weight(pair) for pair in pairs]
        self.structures = [pair for pair, w in zip(pairs, weights, strict=True) if w > -math.inf]
        self.weights = [w for w in weights if w > -math.inf]
        top = max(self.weights)
        self.log_partition = top + math.log(math.fsum(math.exp(w - top) for w in self.weights))
        self.log_probs = [w - self.log_partition for w in self.weights]
        self.chances = [math.exp(one) for one in self.log_probs]
        size = range(len(pairs[0]))
        rows = list(zip(self.structures, self.chances, strict=True))
        self.mean = [math.fsum(p * x[i] for x, p in rows) for i in size]
        self.variance = [math.fsum(p * (x[i] - self.mean[i]) ** 2 for x, p in rows) for i in size]
        self.entropy = -math.fsum(p * one for p, one in zip(self.chances, self.log_probs, strict=True) if p > 0)

    def cross_entropy(self, other: "Exact") -> float:
        """Minus the mean of the other's log-probability."""
        theirs = {tuple(x): one for x, one in zip(other.structures, other.log_probs, strict=True)}
        rows = [(p, theirs.get(tuple(x), -math.inf)) for x, p in zip(self.structures, self.chances, strict=True)]
        return math.inf if any(one == -math.inf for _, one in rows) else -math.fsum(p * one for p, one in rows)

    def best(self, k: int) -> list[tuple[float, list[float]]]:
        """The k best, of equal ones the smaller first."""
        return [(-w, x) for w, x in sorted(zip([-w for w in self.weights], self.structures, strict=True))[:k]]

"""Round trips: the symmetric travelling salesman."""

import cvxpy as cp
import numpy as np

from optlayers import Polytope, plots
from polytopes._drawn import drawn_by
from polytopes._sizes import at_least_one

__all__ = ["subtours", "tour"]

VIOLATED = 1e-6
"""A cut that is crossed by less than two edges less this is a violated one."""


def tour(cities: int) -> Polytope:
    r"""Round trips through all ``cities``: shape ``(cities, cities)``, for 3 cities or more.

    Entry (i, j), i < j, is 1 when the trip goes from city i to city j or back; the diagonal and what is below it are 0.
    There are :math:`(n-1)!/2` round trips. They are boolean points with two edges at every city,

    .. math:: \sum_{j < i} x_{ji} + \sum_{j > i} x_{ij} = 2,

    that do not fall apart into several trips. That takes a constraint for every set S of cities, that two edges leave
    it, :math:`\sum_{i \in S, j \notin S} x_{ij} \ge 2` (Dantzig, Fulkerson and Johnson, 1954). They are too many to
    list, and are brought on demand (``separate`` of :class:`optlayers.Polytope`): those of the connected components
    where there are several, else that of a minimum cut (Stoer and Wagner, 1997). The best trip is a linear program with
    these and, where that has a fractional vertex, branch and bound; marginals are by enumeration, up to 8 cities.

    References
    ----------
    Dantzig, Fulkerson and Johnson (1954), Solution of a large-scale traveling-salesman problem. Stoer and Wagner
    (1997), A simple min-cut algorithm, Journal of the ACM. Padberg and Rinaldi (1991), A branch-and-cut algorithm for
    the resolution of large-scale symmetric traveling salesman problems, SIAM Review.

    >>> import optlayers as ol, torch
    >>> place = torch.tensor([0.0, 3.0, 1.0, 4.0, 2.0, 5.0]).mul(2 * torch.pi / 6)  # six cities on a circle
    >>> place = torch.stack([place.cos(), place.sin()], dim=1)
    >>> best = ol.OptLayer(tour(6), ol.Pipeline())(-torch.cdist(place, place))
    >>> best.nonzero().tolist()
    [[0, 2], [0, 5], [1, 3], [1, 4], [2, 4], [3, 5]]
    """
    at_least_one(cities=cities)
    if cities < 3:
        raise ValueError(f"a round trip has at least 3 cities, but got {cities}")
    x = cp.Variable((cities, cities), boolean=True)
    lower = np.tril(np.ones((cities, cities)))
    constraints = [cp.multiply(lower, x) == 0, cp.sum(x, axis=0) + cp.sum(x, axis=1) == 2]
    return Polytope(x, constraints, separate=subtours, draw=drawn_by(plots.graph))


def subtours(edges: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """The sets of cities that less than two edges leave: connected components, or a minimum cut."""
    cities = len(edges)
    weights = np.triu(edges, 1)
    weights = weights + weights.T
    sets = _components(weights > VIOLATED)
    if len(sets) == 1:
        if (weights == np.round(weights)).all() and (weights.sum(axis=0) == 2.0).all():
            return []  # a round trip
        value, inside = _minimum_cut(weights)
        sets = [inside] if value < 2.0 - VIOLATED else []
    cuts = []
    for inside in sets[: 1 if len(sets) == 2 else None]:
        crossing = np.zeros((cities, cities))
        crossing[np.ix_(inside, ~inside)] = crossing[np.ix_(~inside, inside)] = -1.0
        cuts.append((np.triu(crossing), -2.0))
    return cuts


def _components(joined: np.ndarray) -> list[np.ndarray]:
    """The connected components of a graph, as sets of nodes."""
    sets, left = [], np.ones(len(joined), dtype=bool)
    while left.any():
        inside = np.zeros(len(joined), dtype=bool)
        further = inside.copy()
        further[left.argmax()] = True
        while further.any():
            inside |= further
            further = joined[further].any(axis=0) & ~inside
        sets.append(inside)
        left &= ~inside
    return sets


def _minimum_cut(weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The least weight of edges between a set of nodes and the others, and the set (Stoer and Wagner, 1997)."""
    weights, nodes = weights.copy(), len(weights)
    merged = np.eye(nodes, dtype=bool)
    alive = np.ones(nodes, dtype=bool)
    best, inside = np.inf, merged[0]
    for left in range(nodes, 1, -1):
        reached, waiting = np.zeros(nodes), alive.copy()
        previous = last = -1
        for _ in range(left):
            previous, last = last, int(np.where(waiting, reached, -1.0).argmax())
            waiting[last] = False
            cut = float(reached[last])
            reached += weights[last]
        if cut < best - VIOLATED:
            best, inside = cut, merged[last].copy()
        merged[previous] |= merged[last]
        weights[previous] += weights[last]
        weights[:, previous] += weights[:, last]
        weights[previous, previous] = 0.0
        weights[last] = weights[:, last] = 0.0
        alive[last] = False
    return best, inside

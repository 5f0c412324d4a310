"""Passes over a decision diagram (:mod:`optlayers.integer.diagram`), one instance after the other.

All points of an integer declaration are the paths of a graph from node 0 to its last node. Arc ``a`` of node ``u``
gives the entry ``column[u]`` the number ``value[a]``, which scores that times the score of the entry. From the last
node to the first go best values and sums; from the first to the last go probabilities. Entries that have no column are
``fixed``.

Where arcs give 0 and 1 alone, ``pair`` has the two children of every node in one number, and passes are those of
:mod:`optlayers.solvers.kernels.binary_paths`. Else it is empty.

Sums over paths are those of plain exponentials where no number of the instance can leave their range, and logarithms of
sums elsewhere. A part of score -inf is 0.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.binary_paths import (
    SAFE,
    by_one,
    by_zero,
    fill_best,
    fill_means,
    fill_sums,
    fill_turned,
    workspace,
)
from optlayers.solvers.kernels.lanes import LANES, fill, jit, part

__all__ = ["best", "covariances", "k_best", "marginals", "sample", "sums"]

END = -1
"""The column of the last node; where there are no paths it is another number."""


@part
def _step(score, value):  # type: ignore[no-untyped-def]
    """What an arc scores."""
    if value == 0:
        return 0.0
    return -np.inf if score == -np.inf else score * value


@part
def _best_totals(scores, column, start, value, child, pair):  # type: ignore[no-untyped-def]
    """The best scores of paths from every node on; one more number stands for a node that is not there."""
    nodes = len(column)
    total = np.empty(nodes + 1)
    total[nodes - 1], total[nodes] = 0.0 if column[nodes - 1] == END else -np.inf, -np.inf
    if len(pair) > 0:
        fill_best(scores, column, pair, total)
        return total
    for u in range(nodes - 2, -1, -1):
        score, top = scores[column[u]], -np.inf
        for a in range(start[u], start[u + 1]):
            top = max(top, _step(score, value[a]) + total[child[a]])
        total[u] = top
    return total


@jit("(float64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], float64[::1], int64[::1], int64[::1])")
def best(scores, column, start, value, child, pair, fixed, first, second):  # type: ignore[no-untyped-def]
    """A best point, NaN where there is none.

    Of several the one with the largest sum of ``first``, and then of ``second``, times its entries; of those the one
    that comes first.
    """
    point = fixed.copy()
    nodes = len(column)
    total = _best_totals(scores, column, start, value, child, pair)
    if total[0] == -np.inf:
        point[:] = np.nan
        return point
    u, tied = 0, False
    while u < nodes - 1 and not tied:
        score, chosen = scores[column[u]], -1
        for a in range(start[u], start[u + 1]):
            if _step(score, value[a]) + total[child[a]] == total[u]:
                tied = tied or chosen >= 0
                chosen = a
        point[column[u]] = value[chosen]
        u = child[chosen]
    if not tied:
        return point
    return _decided(scores, column, start, value, child, fixed, first, second, total)


@part
def _decided(scores, column, start, value, child, fixed, first, second, total):  # type: ignore[no-untyped-def]
    nodes = len(column)
    one, other, choice = np.empty(nodes, np.int64), np.empty(nodes, np.int64), np.empty(nodes, np.int64)
    passed, order = np.zeros(nodes, np.bool_), np.empty(nodes, np.int64)  # by best paths; others are never looked at
    one[nodes - 1] = other[nodes - 1] = 0
    passed[0], count = True, 0
    for u in range(nodes - 1):
        if passed[u]:
            order[count] = u
            count += 1
            score = scores[column[u]]
            for a in range(start[u], start[u + 1]):
                if _step(score, value[a]) + total[child[a]] == total[u]:
                    passed[child[a]] = True
    for u in order[:count][::-1]:
        j, chosen = column[u], -1
        a1, a2 = 0, 0
        for a in range(start[u], start[u + 1]):
            if _step(scores[j], value[a]) + total[child[a]] != total[u]:
                continue
            b1, b2 = one[child[a]] + value[a] * first[j], other[child[a]] + value[a] * second[j]
            if chosen < 0 or b1 > a1 or (b1 == a1 and b2 > a2):
                chosen, a1, a2 = a, b1, b2
        one[u], other[u], choice[u] = a1, a2, chosen
    point = fixed.copy()
    u = 0
    while u < nodes - 1:
        point[column[u]] = value[choice[u]]
        u = child[choice[u]]
    return point


@part
def _is_ordinary(scores, reach, spread, column, start, value, child, pair, sizes, total):  # type: ignore[no-untyped-def]
    """Whether sums of exponentials of paths stay in the range of numbers.

    ``reach`` are the largest entries, ``spread`` is the logarithm of the number of paths; ``sizes`` and ``total`` are
    written to.
    """
    size = spread
    for j in range(len(scores)):
        if reach[j] > 0 and scores[j] != -np.inf:
            size += reach[j] * abs(scores[j])
    if size < SAFE:
        return True
    nodes = len(column)
    total[nodes - 1], total[nodes] = spread, -np.inf
    if len(pair) > 0:
        for j in range(len(scores)):
            sizes[j] = -np.inf if scores[j] == -np.inf else abs(scores[j])
        fill_best(sizes, column, pair, total)
        return total[0] < SAFE
    for u in range(nodes - 2, -1, -1):  # no path is as large as all entries together
        score, size = scores[column[u]], 0.0
        for a in range(start[u], start[u + 1]):
            if value[a] == 0:
                size = max(size, total[child[a]])
            elif score != -np.inf:
                size = max(size, abs(score * value[a]) + total[child[a]])
        total[u] = size
    return total[0] < SAFE


@part
def _weight(score, value, exponential):  # type: ignore[no-untyped-def]
    """The exponential of what an arc scores."""
    if value == 0:
        return 1.0
    if value == 1:
        return exponential
    return np.exp(_step(score, value))


@part
def _sum_paths(scores, exponentials, ordinary, column, start, value, child, pair, top, total):  # type: ignore[no-untyped-def]
    """Sums of the exponentials of all paths from every node on.

    Where these are not ``ordinary``, ``top`` are the best paths, and ``total`` the logarithms of sums of what all paths
    are below these: numbers between 0 and the logarithm of the count, however large scores are.
    """
    nodes = len(column)
    last = column[nodes - 1] == END
    if ordinary and len(pair) > 0:
        total[nodes - 1], total[nodes] = 1.0 if last else 0.0, 0.0
        for u in range(nodes - 2, -1, -1):
            weight = exponentials[np.uint64(column[u])]
            total[u] = total[by_zero(pair[u])] + weight * total[by_one(pair[u])]
        return
    if ordinary:
        total[nodes - 1] = 1.0 if last else 0.0
        for u in range(nodes - 2, -1, -1):
            j, together = column[u], 0.0
            for a in range(start[u], start[u + 1]):
                together += _weight(scores[j], value[a], exponentials[j]) * total[child[a]]
            total[u] = together
        return
    top[nodes - 1], total[nodes - 1] = 0.0 if last else -np.inf, 0.0
    for u in range(nodes - 2, -1, -1):
        j, best = column[u], -np.inf
        for a in range(start[u], start[u + 1]):
            best = max(best, _step(scores[j], value[a]) + top[child[a]])
        top[u], total[u] = best, 0.0
        if best == -np.inf:
            continue
        together = 0.0
        for a in range(start[u], start[u + 1]):
            together += np.exp(_step(scores[j], value[a]) + top[child[a]] - best + total[child[a]])
        total[u] = np.log(together)


@part
def _prepared(  # type: ignore[no-untyped-def]
    scores, reach, spread, column, start, value, child, pair, exponentials, top, total
):
    """Sums of all paths from every node on, and whether they are plain: else they are logarithms, below the best."""
    ordinary = _is_ordinary(scores, reach, spread, column, start, value, child, pair, exponentials, total)
    if ordinary:
        for j in range(len(scores)):
            if reach[j] > 0:
                exponentials[j] = np.exp(scores[j])
    _sum_paths(scores, exponentials, ordinary, column, start, value, child, pair, top, total)
    return ordinary


@part
def _by_lanes(  # type: ignore[no-untyped-def]
    scores, reach, spread, column, start, value, child, pair, sizes, total, which
):
    """The instances that go side by side, in front, those that do not behind them, and how many the first ones are."""
    sorted_ones, count, rest = np.empty_like(which), 0, len(which)
    for k in which:
        together = len(pair) > 0
        if together:
            together = _is_ordinary(scores[k], reach, spread, column, start, value, child, pair, sizes, total)
        if together:
            sorted_ones[count] = k
            count += 1
        else:
            rest -= 1
            sorted_ones[rest] = k
    return sorted_ones, count


@part
def _chance(ordinary, score, value, exponential, best, own, further, following):  # type: ignore[no-untyped-def]
    """The probability of an arc, given that its node is passed; of numbers alone, which is quick.

    ``own`` is what :func:`_own` makes of the sum of its node and ``best`` its best path; ``following`` and ``further``
    are the sum and the best path of the node that it leads to.
    """
    if ordinary:
        return own * _weight(score, value, exponential) * following
    return np.exp(_step(score, value) + further - best + following - own)


@part
def _nothing(ordinary, best, total):  # type: ignore[no-untyped-def]
    """Whether no path leads on from a node."""
    return total == 0.0 if ordinary else best == -np.inf


@part
def _own(ordinary, total):  # type: ignore[no-untyped-def]
    return 1.0 / total if ordinary else total


@part
def _most_arcs(start):  # type: ignore[no-untyped-def]
    """Of one node."""
    most = 1
    for u in range(len(start) - 1):
        most = max(most, start[u + 1] - start[u])
    return most


@jit(
    "(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], float64[::1], float64, float64[:, ::1], int64[::1], "
    "float64[::1])"
)
def sums(column, start, value, child, pair, reach, spread, scores, which, out):  # type: ignore[no-untyped-def]
    """Logarithms of the sums over all paths; -inf where there are none."""
    nodes, size = len(column), scores.shape[1]
    total, exponentials, top = np.empty(nodes + 1), np.empty(size), np.zeros(nodes)
    ones, count = _by_lanes(scores, reach, spread, column, start, value, child, pair, exponentials, total, which)
    of_nodes, of_entries = workspace(nodes if count else 0, size, 1)
    for first in range(0, count, LANES):
        some = ones[first : min(first + LANES, count)]
        fill_sums(column, pair, reach, scores, some, of_entries[0], of_nodes[0])
        for lane in range(len(some)):
            out[some[lane]] = np.log(of_nodes[0, lane])
    for k in ones[count:]:
        ordinary = _prepared(scores[k], reach, spread, column, start, value, child, pair, exponentials, top, total)
        out[k] = np.log(total[0]) if ordinary else top[0] + total[0]


@jit(
    "(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], "
    "float64[::1], float64, float64[::1], float64[:, ::1], int64[::1], "
    "float64[:, ::1])"
)
def marginals(  # type: ignore[no-untyped-def]
    column, start, value, child, pair, reach, spread, fixed, scores, which, out
):
    """The means of all entries; 0 where there are no paths."""
    nodes, size = len(column), scores.shape[1]
    total, exponentials, top = np.empty(nodes + 1), np.empty(size), np.zeros(nodes)
    ones, count = _by_lanes(scores, reach, spread, column, start, value, child, pair, exponentials, total, which)
    of_nodes, of_entries = workspace(nodes if count else 0, size, 2)
    for first in range(0, count, LANES):
        some = ones[first : min(first + LANES, count)]
        fill_sums(column, pair, reach, scores, some, of_entries[0], of_nodes[0])
        fill(of_entries[1], 0.0)
        fill_means(column, pair, of_entries[0], of_nodes[0], of_nodes[1], of_entries[1])
        for lane in range(len(some)):
            there = of_nodes[0, lane] > 0.0
            for j in range(size):
                out[some[lane], j] = fixed[j] + of_entries[1, LANES * j + lane] if there else 0.0
    flow = np.empty(nodes)
    for k in ones[count:]:
        mean = out[k]
        ordinary = _prepared(scores[k], reach, spread, column, start, value, child, pair, exponentials, top, total)
        if _nothing(ordinary, top[0], total[0]):
            mean[:] = 0.0
            continue
        mean[:] = fixed
        flow[:] = 0.0
        flow[0] = 1.0
        for u in range(nodes - 1):
            if flow[u] == 0.0:
                continue
            j, own = column[u], _own(ordinary, total[u])
            for a in range(start[u], start[u + 1]):
                share = flow[u] * _chance(
                    ordinary, scores[k, j], value[a], exponentials[j], top[u], own, top[child[a]], total[child[a]]
                )
                flow[child[a]] += share
                mean[j] += value[a] * share


@jit(
    "(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], "
    "float64[::1], float64, float64[:, ::1], float64[:, ::1], int64[::1], "
    "float64[:, ::1])"
)
def covariances(  # type: ignore[no-untyped-def]
    column, start, value, child, pair, reach, spread, scores, direction, which, out
):
    """The covariance of entries times a direction; 0 where there are no paths."""
    nodes, size = len(column), scores.shape[1]
    total, exponentials, top = np.empty(nodes + 1), np.empty(size), np.zeros(nodes)
    ones, count = _by_lanes(scores, reach, spread, column, start, value, child, pair, exponentials, total, which)
    of_nodes, of_entries = workspace(nodes if count else 0, size, 4)
    for first in range(0, count, LANES):
        some, room = ones[first : min(first + LANES, count)], of_nodes
        fill_sums(column, pair, reach, scores, some, of_entries[0], room[0])
        for j in range(size):
            for lane in range(LANES):
                given = direction[some[min(lane, len(some) - 1)], j]
                of_entries[1, LANES * j + lane] = given if reach[j] > 0 else 0.0
        weight, slope = of_entries[0], of_entries[1]
        fill_turned(column, pair, weight, slope, room[0], room[1], room[2], room[3], slope)
        for lane in range(len(some)):
            for j in range(size):
                out[some[lane], j] = slope[LANES * j + lane] if reach[j] > 0 else 0.0
    flow, along, behind = np.empty(nodes), np.empty(nodes), np.empty(nodes)
    chance = np.empty(len(value))
    for k in ones[count:]:
        turned = out[k]
        turned[:] = 0.0
        ordinary = _prepared(scores[k], reach, spread, column, start, value, child, pair, exponentials, top, total)
        if _nothing(ordinary, top[0], total[0]):
            continue
        behind[nodes - 1] = 0.0  # the mean of the direction over what follows a node
        for u in range(nodes - 2, -1, -1):
            mean, d = 0.0, direction[k, column[u]]
            if _nothing(ordinary, top[u], total[u]):
                behind[u] = 0.0
                continue
            j, own = column[u], _own(ordinary, total[u])
            for a in range(start[u], start[u + 1]):
                chance[a] = _chance(
                    ordinary, scores[k, j], value[a], exponentials[j], top[u], own, top[child[a]], total[child[a]]
                )
                if chance[a] > 0.0:
                    mean += chance[a] * (value[a] * d + behind[child[a]])
            behind[u] = mean
        flow[:] = 0.0
        along[:] = 0.0  # the direction along what comes before a node, times its probability, less the mean of all
        flow[0] = 1.0
        along[0] = -behind[0]
        for u in range(nodes - 1):
            if flow[u] == 0.0:
                continue
            d = direction[k, column[u]]
            for a in range(start[u], start[u + 1]):
                if chance[a] == 0.0:
                    continue
                share = flow[u] * chance[a]
                here = along[u] * chance[a] + share * value[a] * d
                flow[child[a]] += share
                along[child[a]] += here
                turned[column[u]] += value[a] * (here + share * behind[child[a]])


@part
def _uniform(state):  # type: ignore[no-untyped-def]
    """The next state, and a number of [0, 1) of it: SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom
    number generators, 2014)."""
    state += np.uint64(0x9E3779B97F4A7C15)
    bits = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits ^= bits >> np.uint64(31)
    return state, np.float64(bits >> np.uint64(11)) * 2.0**-53


@jit(
    "(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], "
    "float64[::1], float64, float64[::1], float64[:, ::1], float64[:, ::1], "
    "int64[::1], float64[:, :, ::1])"
)
def sample(  # type: ignore[no-untyped-def]
    column, start, value, child, pair, reach, spread, fixed, scores, numbers, which, out
):
    """Points drawn by their exponentials, ``(samples, batch, size)``, from ``numbers`` ``(samples, batch)`` of [0, 1).

    They are 0 where there are none. A number is the seed of what is drawn from node to node.
    """
    nodes = len(column)
    total, exponentials, top = np.empty(nodes + 1), np.empty(scores.shape[1]), np.zeros(nodes)
    for k in which:
        ordinary = _prepared(scores[k], reach, spread, column, start, value, child, pair, exponentials, top, total)
        nothing = _nothing(ordinary, top[0], total[0])
        for one in range(len(out)):
            point = out[one, k]
            if nothing:
                point[:] = 0.0
                continue
            point[:] = fixed
            u, state = 0, np.uint64(numbers[one, k] * 2.0**53)
            while u < nodes - 1:
                state, left = _uniform(state)
                chosen = -1
                j, own = column[u], _own(ordinary, total[u])
                for a in range(start[u], start[u + 1]):
                    chance = _chance(
                        ordinary, scores[k, j], value[a], exponentials[j], top[u], own, top[child[a]], total[child[a]]
                    )
                    if chance == 0.0:
                        continue
                    chosen = a  # the last one that is possible, where rounding leaves a rest
                    if left < chance:
                        break
                    left -= chance
                point[j] = value[chosen]
                u = child[chosen]


@jit(
    "(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], "
    "float64[::1], int64[::1], int64[::1], float64[:, ::1], int64, int64[::1], "
    "float64[:, :, ::1], float64[:, ::1], int64[::1])"
)
def k_best(  # type: ignore[no-untyped-def]
    column, start, value, child, pair, fixed, first, second, scores, most, which, points, totals, counts
):
    """The best points, ``(batch, most, size)``, best first, with their scores, and how many there are up to ``most``.

    Ties are decided as by :func:`best`, and at last by which path comes first.
    """
    nodes = len(column)
    score = np.empty((nodes, most))
    one, other = np.zeros((nodes, most), np.int64), np.zeros((nodes, most), np.int64)
    arc, rank = np.zeros((nodes, most), np.int64), np.zeros((nodes, most), np.int64)
    found = np.zeros(nodes, np.int64)
    place = np.zeros(_most_arcs(start), np.int64)
    for k in which:
        found[nodes - 1] = 1 if column[nodes - 1] == END else 0
        score[nodes - 1, 0] = 0.0
        one[nodes - 1, 0] = other[nodes - 1, 0] = 0
        for u in range(nodes - 2, -1, -1):
            j, arcs = column[u], start[u + 1] - start[u]
            place[:arcs] = 0
            found[u] = 0
            while found[u] < most:
                chosen, top = -1, -np.inf
                b1, b2 = 0, 0
                for t in range(arcs):
                    a = start[u] + t
                    if place[t] >= found[child[a]]:
                        continue
                    reached = _step(scores[k, j], value[a]) + score[child[a], place[t]]
                    if reached == -np.inf:
                        continue
                    c1 = one[child[a], place[t]] + value[a] * first[j]
                    c2 = other[child[a], place[t]] + value[a] * second[j]
                    if chosen < 0 or reached > top or (reached == top and (c1 > b1 or (c1 == b1 and c2 > b2))):
                        chosen, top = t, reached
                        b1, b2 = c1, c2
                if chosen < 0:
                    break
                n = found[u]
                score[u, n], one[u, n], other[u, n] = top, b1, b2
                arc[u, n], rank[u, n] = start[u] + chosen, place[chosen]
                place[chosen] += 1
                found[u] += 1
        counts[k] = found[0]
        for n in range(found[0]):
            point = points[k, n]
            point[:] = fixed
            totals[k, n] = score[0, n]
            u, r = 0, n
            while u < nodes - 1:
                a, r = arc[u, r], rank[u, r]
                point[column[u]] = value[a]
                u = child[a]

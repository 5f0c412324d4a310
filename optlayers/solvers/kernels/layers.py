"""The layers of a decision diagram (:mod:`optlayers.integer.diagram`): built from the first column on, joined from the
last.

A state has the activities of the rows that are open, from their first column to their last. A column changes those of
its own rows alone, so keys of states, which are sums over rows, are kept up with it.
"""

from __future__ import annotations

import numpy as np

from optlayers.solvers.kernels.lanes import jit, part

__all__ = ["BUILT", "MANY_STATES", "NOTHING_LEFT", "WIDE", "build", "join"]

BUILT, NOTHING_LEFT, WIDE, MANY_STATES = 0, 1, 2, 3
"""What has come of building: layers; no completion; a layer of too many choices; too many states."""


@part
def _mixed(row, activity):  # type: ignore[no-untyped-def]
    """What an activity adds to the key of a state: 0 for 0, else bits that look random (SplitMix64)."""
    if activity == 0:
        return np.uint64(0)
    bits = np.uint64(activity) + np.uint64(row + 1) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@part
def _grown(array, needed):  # type: ignore[no-untyped-def]
    """An array that is long enough, with the numbers of one that was not."""
    if needed <= len(array):
        return array
    longer = np.empty(max(needed, 2 * len(array)), array.dtype)
    longer[: len(array)] = array
    return longer


@part
def _settled(activity, enough, sure, no_low, no_high):  # type: ignore[no-untyped-def]
    """The number that stands for an activity: where no completion can go wrong, one for all."""
    if no_low:
        activity = max(activity, enough)
    if no_high:
        activity = min(activity, sure)
    if not no_low and not no_high and sure <= activity <= enough:
        activity = sure
    return activity


@jit(
    "(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64, int64, "
    "int64)"
)
def build(order, start, row, entry, low, high, least, most, limit, numbers, no_limit):  # type: ignore[no-untyped-def]
    """States that some choice of values leads to, column after column.

    Columns are given by where each of them begins, by rows, and by entries other than 0.

    Returns
    -------
    What has come of it, the place of the last column, and how wide it is there; where each layer begins in ``child``;
    and ``child``: for every state and every value the number of the next state, -1 for none.
    """
    columns, rows = len(order), len(low)
    begin = np.zeros(columns + 1, np.int64)
    child = np.empty(1024, np.int32)
    first, last = np.full(rows, columns), np.full(rows, -1)
    to_come_low, to_come_high = np.zeros(rows, np.int64), np.zeros(rows, np.int64)
    for place in range(columns):
        j = order[place]
        for t in range(start[j], start[j + 1]):
            one, other = entry[t] * least[j], entry[t] * most[j]
            to_come_low[row[t]] += min(one, other)
            to_come_high[row[t]] += max(one, other)
            first[row[t]], last[row[t]] = min(first[row[t]], place), place
    for i in range(rows):
        if to_come_low[i] > high[i] or to_come_high[i] < low[i]:
            return NOTHING_LEFT, 0, 0, begin, child
    states, keys = np.zeros(1, np.int64), np.zeros(1, np.uint64)  # of the layer, one behind the other
    further, further_keys = np.zeros(1, np.int64), np.zeros(1, np.uint64)
    table, stamp = np.zeros(1024, np.int64), np.full(1024, -1)
    moved = np.empty(rows, np.int64)
    is_open, where = np.empty(rows, np.int64), np.empty(rows, np.int64)  # open rows, and the places of rows among them
    source = np.empty(rows, np.int64)  # where the activity of an open row was in the state before, -1 for nowhere
    count, nodes, length = 1, 1, 0
    for place in range(columns):
        j = order[place]
        begins, ends, values = start[j], start[j + 1], most[j] - least[j] + 1
        before, opened = length, length
        for t in range(begins, ends):
            i = row[t]
            if first[i] == place:
                is_open[opened], where[i] = i, opened
                opened += 1
            one, other = entry[t] * least[j], entry[t] * most[j]
            to_come_low[i] -= min(one, other)
            to_come_high[i] -= max(one, other)
        wide = count * values
        if wide > 2 * limit or wide * max(1, opened) > numbers:
            return WIDE, place, wide, begin, child
        length, straight = 0, True  # of states from here on; whether activities stay where they are
        for at in range(opened):
            i = is_open[at]
            if last[i] > place:
                is_open[length], source[length] = i, at if at < before else -1
                straight = straight and length == at and at < before
                length += 1
        child = _grown(child, begin[place] + wide)
        if len(table) < 2 * wide:
            larger = len(table)
            while larger < 2 * wide:
                larger *= 2
            table, stamp = np.zeros(larger, np.int64), np.full(larger, -1)
        mask = len(table) - 1
        made = 0
        for s in range(count):
            for v in range(values):
                arc = begin[place] + s * values + v
                child[arc] = -1
                key, possible = keys[s], True
                for t in range(begins, ends):
                    i = row[t]
                    at = where[i]
                    activity = states[s * before + at] if at < before else 0
                    after = activity + entry[t] * (least[j] + v)
                    # Above the first one it is too much already, below the other it can no more become enough.
                    if after > high[i] - to_come_low[i] or after < low[i] - to_come_high[i]:
                        possible = False
                        break
                    enough, sure = high[i] - to_come_high[i], low[i] - to_come_low[i]
                    after = _settled(after, enough, sure, low[i] <= -no_limit, high[i] >= no_limit)
                    after = 0 if last[i] == place else after
                    moved[t - begins] = after
                    key += _mixed(i, after) - _mixed(i, activity)
                if not possible:
                    continue
                new = made * length
                further, further_keys = _grown(further, new + length), _grown(further_keys, made + 1)
                if straight:
                    for t in range(length):
                        further[new + t] = states[s * before + t]
                else:
                    for t in range(length):
                        further[new + t] = states[s * before + source[t]] if source[t] >= 0 else 0
                further_keys[made] = key
                for t in range(begins, ends):
                    if last[row[t]] > place:
                        # Places move on where rows before them are closed.
                        at = min(where[row[t]], length - 1)
                        while is_open[at] != row[t]:
                            at -= 1
                        further[new + at] = moved[t - begins]
                slot = np.int64(key & np.uint64(mask))
                while stamp[slot] == place:
                    known = table[slot]
                    if further_keys[known] == key:
                        same = True
                        for t in range(length):
                            same = same and further[known * length + t] == further[new + t]
                        if same:
                            break
                    slot = (slot + 1) & mask
                if stamp[slot] != place:
                    stamp[slot], table[slot] = place, made
                    made += 1
                child[arc] = table[slot]
        if made == 0:
            return NOTHING_LEFT, place, 0, begin, child
        begin[place + 1] = begin[place] + wide
        nodes += made
        if nodes > limit:
            return MANY_STATES, place, made, begin, child
        for at in range(length):
            where[is_open[at]] = at
        states, further = further, states
        keys, further_keys = further_keys, keys
        count = made
    return BUILT, columns, count, begin, child


@jit("(int64[::1], int64[::1], int64[::1], int32[::1], int64)")
def join(begin, values, least, child, states):  # type: ignore[no-untyped-def]
    """Nodes of layers, from the last to the first: those with the same arcs are one, those that nothing completes go,
    and those whose only arc gives 0 are not there.

    ``values`` are how many values each layer has, ``least`` the smallest of them; there are so many ``states`` behind
    the last layer, all of them complete.

    Returns
    -------
    For every node its layer, -1 for the last node, and where its arcs begin; for every arc its value and its child;
    the most nodes of a layer. Without any point there is no node.
    """
    layers = len(values)
    layer_of = np.empty(1024, np.int64)  # of nodes, in the order in which they are made: from the last one
    first_arc = np.empty(1024, np.int64)
    value, target = np.empty(1024, np.int64), np.empty(1024, np.int64)
    layer_of[0], first_arc[0] = -1, 0
    total, arcs, width = 1, 0, 1
    number = np.zeros(states, np.int64)  # the nodes of states, -1 for none
    table, stamp = np.zeros(1024, np.int64), np.full(1024, -1)
    for layer in range(layers - 1, -1, -1):
        choices = values[layer]
        count = (begin[layer + 1] - begin[layer]) // choices
        mine = np.empty(count, np.int64)
        if len(table) < 2 * count:
            length = len(table)
            while length < 2 * count:
                length *= 2
            table, stamp = np.zeros(length, np.int64), np.full(length, -1)
        mask = len(table) - 1
        before = total
        for s in range(count):
            value, target = _grown(value, arcs + choices), _grown(target, arcs + choices)
            end, key = arcs, np.uint64(0)
            for v in range(choices):
                next_state = child[begin[layer] + s * choices + v]
                node = -1 if next_state < 0 else number[next_state]
                if node < 0:
                    continue
                value[end], target[end] = least[layer] + v, node
                end += 1
                key += _mixed(v, node + 1)
            if end == arcs:
                mine[s] = -1
                continue
            if end == arcs + 1 and value[arcs] == 0:
                mine[s] = target[arcs]
                continue
            at = np.int64(key & np.uint64(mask))
            while stamp[at] == layer:
                known = table[at]
                low = first_arc[known]
                high = first_arc[known + 1] if known + 1 < total else arcs
                same = high - low == end - arcs
                if same:
                    for t in range(end - arcs):
                        same = same and value[low + t] == value[arcs + t] and target[low + t] == target[arcs + t]
                if same:
                    break
                at = (at + 1) & mask
            if stamp[at] != layer:
                stamp[at], table[at] = layer, total
                layer_of, first_arc = _grown(layer_of, total + 1), _grown(first_arc, total + 1)
                layer_of[total], first_arc[total] = layer, arcs
                total += 1
                arcs = end
            mine[s] = table[at]
        number = mine
        width = max(width, total - before)
    if number[0] < 0:
        return np.empty(0, np.int64), np.zeros(1, np.int64), np.empty(0, np.int64), np.empty(0, np.int64), 0
    # What was made last comes first.
    out_layer, start = np.empty(total, np.int64), np.zeros(total + 1, np.int64)
    out_value, out_child = np.empty(arcs, np.int64), np.empty(arcs, np.int64)
    written = 0
    for u in range(total):
        node = total - 1 - u
        out_layer[u] = layer_of[node]
        end = first_arc[node + 1] if node + 1 < total else arcs
        for a in range(first_arc[node], end):
            out_value[written], out_child[written] = value[a], total - 1 - target[a]
            written += 1
        start[u + 1] = written
    return out_layer, start, out_value, out_child, width

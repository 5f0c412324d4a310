"""All structures of a size, one after the other, in plain Python."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np


def unit_vectors(size: int) -> Iterator[np.ndarray]:
    yield from np.eye(size)


def bits(*shape: int) -> Iterator[np.ndarray]:
    for values in itertools.product((0.0, 1.0), repeat=int(np.prod(shape))):
        yield np.array(values).reshape(shape)


def paths(steps: int, states: int) -> Iterator[np.ndarray]:
    for path in itertools.product(range(states), repeat=steps):
        edges = np.zeros((steps, states, states))
        for step, state in enumerate(path):
            edges[step, path[step - 1] if step else 0, state] = 1.0
        yield edges


def tags(steps: int, states: int) -> Iterator[np.ndarray]:
    yield from (np.eye(states)[list(path)] for path in itertools.product(range(states), repeat=steps))


def arc_paths(nodes: int, arcs: np.ndarray) -> Iterator[np.ndarray]:
    def onwards(node: int, used: tuple[int, ...]) -> Iterator[np.ndarray]:
        if node == nodes - 1:
            x = np.zeros(len(arcs))
            x[list(used)] = 1.0
            yield x
        for arc, (tail, head) in enumerate(arcs):
            if tail == node:
                yield from onwards(head, (*used, arc))

    yield from onwards(0, ())


def rankings(size: int) -> Iterator[np.ndarray]:
    for ranks in itertools.permutations(range(1, size + 1)):
        yield np.array(ranks, dtype=np.float64)


def trees(words: int, single_root: bool) -> Iterator[np.ndarray]:
    for heads in itertools.product(range(words + 1), repeat=words):
        if single_root and heads.count(0) != 1:
            continue
        if all(_reaches_root(heads, word) for word in range(1, words + 1)):
            tree = np.zeros((words + 1, words + 1))
            tree[list(heads), np.arange(1, words + 1)] = 1.0
            yield tree


def head_choices(words: int) -> Iterator[np.ndarray]:
    """Also with cycles."""
    for heads in itertools.product(range(words + 1), repeat=words):
        if all(head != word for word, head in enumerate(heads, start=1)):
            choice = np.zeros((words + 1, words + 1))
            choice[list(heads), np.arange(1, words + 1)] = 1.0
            yield choice


def projective_trees(words: int, single_root: bool) -> Iterator[np.ndarray]:
    """Trees without crossing arcs, the root in front."""
    for tree in trees(words, single_root):
        spans = [(min(arc), max(arc)) for arc in np.argwhere(tree).tolist()]
        if not any(a < c < b < d for (a, b), (c, d) in itertools.permutations(spans, 2)):
            yield tree


def _reaches_root(heads: tuple[int, ...], word: int) -> bool:
    for _ in range(len(heads) + 1):
        if word == 0:
            return True
        word = heads[word - 1]
    return False


def partial_matchings(rows: int, columns: int) -> Iterator[np.ndarray]:
    """Each row with a column of its own, or with none."""
    for partner in itertools.product([None, *range(columns)], repeat=rows):
        taken = [j for j in partner if j is not None]
        if len(set(taken)) == len(taken):
            x = np.zeros((rows, columns))
            x[[i for i, j in enumerate(partner) if j is not None], taken] = 1.0
            yield x


def full_matchings(rows: int, columns: int) -> Iterator[np.ndarray]:
    yield from (x for x in partial_matchings(rows, columns) if x.sum() == min(rows, columns))


def segmentations(steps: int, labels: int, longest: int) -> Iterator[np.ndarray]:
    """All ways to cut between tokens, with all labels."""
    for cuts in itertools.product((False, True), repeat=steps - 1):
        bounds = [0, *(t for t, cut in enumerate(cuts, start=1) if cut), steps]
        lengths = np.diff(bounds)
        if lengths.max() <= longest:
            for chosen in itertools.product(range(labels), repeat=len(lengths)):
                x = np.zeros((steps, longest, labels))
                x[bounds[:-1], lengths - 1, list(chosen)] = 1.0
                yield x


def alignments(rows: int, columns: int) -> Iterator[np.ndarray]:
    """All words of moves that lead from the first cell to the last."""
    for length in range(rows + columns - 1):
        yield from (x for x, end in _walks(rows, columns, (0, 0), length) if end == (rows - 1, columns - 1))


def local_alignments(rows: int, columns: int) -> Iterator[np.ndarray]:
    """None, and all words of moves from all cells that do not leave the grid."""
    yield np.zeros((rows, columns, 3))
    for start in np.ndindex(rows, columns):
        for length in range(rows + columns - 1):
            yield from (x for x, _ in _walks(rows, columns, start, length))


def _walks(
    rows: int, columns: int, start: tuple[int, ...], length: int
) -> Iterator[tuple[np.ndarray, tuple[int, ...]]]:
    for moves in itertools.product(range(3), repeat=length):
        x = np.zeros((rows, columns, 3))
        i, j = start
        x[i, j, 1] = 1.0
        for m in moves:
            i, j = i + (m > 0), j + (m < 2)
            if i >= rows or j >= columns:
                break
            x[i, j, m] = 1.0
        else:
            yield x, (i, j)


def positions_in_time(steps: int, positions: int, skips: bool) -> Iterator[np.ndarray]:
    most = 2 if skips else 1
    for path in itertools.product(range(positions), repeat=steps):
        moves = np.diff([-1, *path, positions])
        if moves.min() >= 0 and moves.max() <= most and moves[0] > 0 and moves[-1] > 0:
            x = np.zeros((steps, positions, most + 1))
            x[np.arange(steps), path, moves[:-1]] = 1.0
            yield x


def upper_pairs(size: int, chosen: Sequence[tuple[int, int]]) -> np.ndarray:
    x = np.zeros((size, size))
    for i, j in chosen:
        x[i, j] = 1.0
    return x


def bracketings(words: int) -> Iterator[np.ndarray]:
    """All choices of words - 1 spans of which no two overlap without one being within the other."""
    for spans in itertools.combinations(itertools.combinations(range(words), 2), words - 1):
        if not any(a < c <= b < d for (a, b), (c, d) in itertools.permutations(spans, 2)):
            yield upper_pairs(words, spans)


def noncrossing_pairs(size: int, gap: int, perfect: bool) -> Iterator[np.ndarray]:
    """All choices of pairs in which nobody is twice and no two cross."""
    far = [(i, j) for i, j in itertools.combinations(range(size), 2) if j - i >= gap]
    for count in [size // 2] if perfect else range(size // 2 + 1):
        for pairs in itertools.combinations(far, count):
            alone = len({point for pair in pairs for point in pair}) == 2 * count
            if alone and not any(a < c < b < d for (a, b), (c, d) in itertools.permutations(pairs, 2)):
                yield upper_pairs(size, pairs)


def spanning_trees(nodes: int) -> Iterator[np.ndarray]:
    """All choices of nodes - 1 edges over which everyone reaches everyone."""
    for edges in itertools.combinations(itertools.combinations(range(nodes), 2), nodes - 1):
        x = upper_pairs(nodes, edges)
        if (np.linalg.matrix_power(np.eye(nodes) + x + x.T, nodes) > 0).all():
            yield x


def round_trips(cities: int) -> Iterator[np.ndarray]:
    """All choices of edges with two at every city over which everyone reaches everyone."""
    for edges in itertools.combinations(itertools.combinations(range(cities), 2), cities):
        x = upper_pairs(cities, edges)
        both = x + x.T
        if (both.sum(0) == 2).all() and (np.linalg.matrix_power(np.eye(cities) + both, cities) > 0).all():
            yield x


def sets_held(weights: Sequence[int], capacity: int) -> Iterator[np.ndarray]:
    yield from (x for x in bits(len(weights)) if x @ weights <= capacity)


def b_matchings(rows: Sequence[int], columns: Sequence[int]) -> Iterator[np.ndarray]:
    for x in bits(len(rows), len(columns)):
        if (x.sum(1) <= rows).all() and (x.sum(0) <= columns).all():
            yield x


def semantic_graphs(words: int, core: int, others: int) -> Iterator[np.ndarray]:
    def of(predicate: int) -> Iterator[np.ndarray]:
        yield np.zeros((words, core + others))
        arguments = [a for a in range(words) if a != predicate]
        for filled in itertools.product(range(-1, core + others), repeat=len(arguments)):
            if all(filled.count(role) <= 1 for role in range(core)):
                x = np.zeros((words, core + others))
                x[predicate, 0] = 1.0
                for argument, role in zip(arguments, filled, strict=True):
                    x[argument, role] = float(role >= 0)
                yield x

    for graph in itertools.product(*(list(of(predicate)) for predicate in range(words))):
        yield np.stack(graph)

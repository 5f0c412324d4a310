"""The heads of the words of a tree, and which words do not hang from the root."""

import numpy as np

from polytopes._compiled import compiled

__all__ = ["heads_of", "unrooted"]


@compiled
def heads_of(tree):  # type: ignore[no-untyped-def]
    """The head of every word, ``(nodes,)``, of a 0/1 matrix with one head per word; that of the root is the root."""
    nodes = len(tree)
    head = np.zeros(nodes, np.uint64)
    for h in range(1, nodes):
        for m in range(1, nodes):  # along rows of memory, without branches
            head[m] += np.uint64(h) if tree[h, m] > 0.5 else np.uint64(0)
    for m in range(1, nodes):
        head[m] = min(head[m], np.uint64(nodes - 1))  # a word of two heads must not lead out of memory
    return head


@compiled
def unrooted(head):  # type: ignore[no-untyped-def]
    """How many words do not hang from the root, directly or not. ``head`` is overwritten.

    By pointer jumping (Wyllie, 1979): a round makes every pointer at least twice as long, and has no branch that a
    processor could mispredict, as a walk from word to word has.
    """
    length = 1
    while length < len(head):
        for m in range(len(head)):
            head[m] = head[head[m]]
        length *= 2
    count = 0
    for m in range(len(head)):
        count += 1 if head[m] > 0 else 0
    return count

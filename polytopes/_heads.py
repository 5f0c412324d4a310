"""The heads of the words of a tree, and which words do not hang from the root."""

import numpy as np

from polytopes._compiled import compiled

__all__ = ["read_heads", "unrooted"]


@compiled
def read_heads(tree, head):  # type: ignore[no-untyped-def]
    """Write the heads of words, in a 0/1 matrix, to ``head``, ``(nodes,)`` of uint64; that of the root is the root."""
    nodes = len(tree)
    head[:] = 0
    for h in range(1, nodes):
        for m in range(1, nodes):  # along rows of memory, without branches
            head[m] = np.uint64(h) if tree[h, m] > 0.5 else head[m]


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

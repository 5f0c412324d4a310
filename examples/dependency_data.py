"""Sentences with a dependency tree and semantic roles: read from .sdp files, or drawn from a little grammar."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FormatError", "Sentence", "read_sdp", "sample_corpus"]


@dataclass(frozen=True)
class Sentence:
    """Words 1 … n; ``heads[i]`` is the head of word i + 1, 0 for the root.

    ``roles`` maps (predicate, argument), both counted from 1, to a label. ``predicates`` holds every predicate, also
    those without arguments.
    """

    words: tuple[str, ...]
    tags: tuple[str, ...]
    heads: tuple[int, ...]
    predicates: frozenset[int]
    roles: dict[tuple[int, int], str]

    def __len__(self) -> int:
        return len(self.words)


class FormatError(ValueError):
    """A line that is not in the SDP format; the message names the file, the line and what was expected."""


def read_sdp(path: Path, max_words: int) -> list[Sentence]:
    """Sentences of at most ``max_words`` words from a file in the SemEval-2015 SDP layout with a tree.

    A token line has the columns ``id form lemma pos HEAD DEPREL top pred frame arg1 … argK``, separated by tabs, with
    one argument column per predicate of the sentence. A line that starts with # and has no tab is
    a comment; an empty line ends a sentence.

    Raises
    ------
    FormatError : at the first line that is different.
    """
    sentences = []
    with path.open(encoding="utf-8") as lines:
        try:
            for block in _blocks(path, lines):
                sentence = _sentence(path, block)
                if len(sentence) <= max_words:
                    sentences.append(sentence)
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: expected UTF-8 text, but {error}") from error
    return sentences


def _blocks(path: Path, lines: Iterator[str]) -> Iterator[list[tuple[int, list[str]]]]:
    block: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\n")
        if "\t" in line:
            block.append((number, line.split("\t")))
        elif line and not line.startswith("#"):
            raise FormatError(
                f"{path}:{number}: expected a token with tabs, a # comment or an empty line, got {line!r}"
            )
        elif not line and block:
            yield block
            block = []
    if block:
        yield block


def _sentence(path: Path, block: list[tuple[int, list[str]]]) -> Sentence:
    # First the columns that every line has: how many more there are depends on all of the sentence.
    for position, (number, fields) in enumerate(block, start=1):
        _check_token(f"{path}:{number}", position, fields, len(block))
    heads = tuple(int(fields[4]) for _, fields in block)
    _check_tree(f"{path}:{block[0][0]}", heads)
    predicates = [k for k, (_, fields) in enumerate(block, start=1) if fields[7] == "+"]
    roles: dict[tuple[int, int], str] = {}
    for position, (number, fields) in enumerate(block, start=1):
        if len(fields) != 9 + len(predicates):
            raise FormatError(
                f"{path}:{number}: expected 9 columns and one for each of the {len(predicates)} predicates of the "
                f"sentence, got {len(fields)}"
            )
        for predicate, label in zip(predicates, fields[9:], strict=True):
            if not label:
                raise FormatError(f"{path}:{number}: expected a role or _ in every argument column, got an empty one")
            if label != "_":
                roles[predicate, position] = label
    return Sentence(
        tuple(fields[1] for _, fields in block),
        tuple(fields[3] for _, fields in block),
        heads,
        frozenset(predicates),
        roles,
    )


def _check_token(where: str, position: int, fields: list[str], words: int) -> None:
    if len(fields) < 9:
        raise FormatError(f"{where}: expected at least 9 columns, got {len(fields)}")
    if fields[0] != str(position):
        raise FormatError(f"{where}: expected token {position} of the sentence, got {fields[0]!r}")
    if not fields[4].isdecimal() or int(fields[4]) > words or int(fields[4]) == position:
        raise FormatError(f"{where}: expected a head from 0 to {words} other than itself, got {fields[4]!r}")
    if fields[7] not in ("+", "-"):
        raise FormatError(f"{where}: expected + or - in column 8 (pred), got {fields[7]!r}")


def _check_tree(where: str, heads: tuple[int, ...]) -> None:
    if heads.count(0) != 1:
        raise FormatError(f"{where}: expected one root (HEAD 0) in the sentence, got {heads.count(0)}")
    for word in range(1, len(heads) + 1):
        above = word
        for _ in heads:
            above = heads[above - 1] if above else 0
        if above:
            raise FormatError(f"{where}: expected a tree, but the heads above word {word} run in a circle")


GENDERS = ("ka", "lo", "mi")
"""A verb and its nouns share an ending, mostly; so trees can be read off words rather than off neighbourhood."""
NOISE = 0.1
"""How often an ending does not agree."""


def sample_corpus(count: int, max_words: int, seed: int) -> list[Sentence]:
    """Sentences of a small projective dependency grammar with semantic roles.

    A verb takes one to three nouns and sometimes a clause, on either side; a noun takes an adjective at times. The
    first noun of a verb is its AGENT, the second its PATIENT, the third a PLACE; a clause is the CONTENT of its verb.
    A clause without a noun on its left borrows the agent of the verb above it. So roles need the tree: which verb a
    noun belongs to, how many nouns of the same verb stand before it, and who is above.
    """
    generator = random.Random(seed)
    sentences: list[Sentence] = []
    while len(sentences) < count:
        tree = _verb(generator, depth=0)
        sentence = _linearize(tree)
        if 3 <= len(sentence) <= max_words:
            sentences.append(sentence)
    return sentences


@dataclass
class _Node:
    word: str
    tag: str
    left: list[_Node]
    right: list[_Node]


def _verb(generator: random.Random, depth: int) -> _Node:
    gender = generator.choice(GENDERS)
    node = _Node(f"v{generator.randrange(40)}{gender}", "VERB", [], [])
    dependents = [_noun(generator, gender) for _ in range(generator.choice((1, 2, 2, 3)))]
    if depth == 0 and generator.random() < 0.6:
        dependents.append(_verb(generator, depth + 1))
    generator.shuffle(dependents)
    for dependent in dependents:
        (node.left if generator.random() < 0.5 else node.right).append(dependent)
    return node


def _noun(generator: random.Random, gender: str) -> _Node:
    if generator.random() < NOISE:
        gender = generator.choice(GENDERS)
    node = _Node(f"n{generator.randrange(60)}{gender}", "NOUN", [], [])
    if generator.random() < 0.2:
        side = node.left if generator.random() < 0.8 else node.right
        side.append(_Node(f"a{generator.randrange(30)}", "ADJ", [], []))
    return node


def _linearize(root: _Node) -> Sentence:
    order: list[_Node] = []
    above: dict[int, _Node | None] = {}

    def walk(node: _Node, head: _Node | None) -> None:
        above[id(node)] = head
        for child in node.left:
            walk(child, node)
        order.append(node)
        for child in node.right:
            walk(child, node)

    walk(root, None)
    place = {id(node): k for k, node in enumerate(order, start=1)}
    heads = tuple(0 if (head := above[id(n)]) is None else place[id(head)] for n in order)
    verbs = [k for k, node in enumerate(order, start=1) if node.tag == "VERB"]
    return Sentence(
        tuple(n.word for n in order),
        tuple(n.tag for n in order),
        heads,
        frozenset(verbs),
        _roles(order, heads, verbs),
    )


def _roles(order: list[_Node], heads: tuple[int, ...], verbs: list[int]) -> dict[tuple[int, int], str]:
    def children(verb: int, tag: str) -> list[int]:
        return [k for k, n in enumerate(order, start=1) if heads[k - 1] == verb and n.tag == tag]

    roles: dict[tuple[int, int], str] = {}
    for verb in sorted(verbs, key=lambda v: heads[v - 1] != 0):
        for noun, label in zip(children(verb, "NOUN"), ("AGENT", "PATIENT", "PLACE"), strict=False):
            roles[verb, noun] = label
        for clause in children(verb, "VERB"):
            roles[verb, clause] = "CONTENT"
        upper = heads[verb - 1]
        if upper and not any(k < verb for k in children(verb, "NOUN")):
            borrowed = [k for (p, k), label in roles.items() if p == upper and label == "AGENT"]
            roles.update({(verb, k): "BORROWED" for k in borrowed})
    return roles

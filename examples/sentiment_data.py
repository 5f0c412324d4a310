"""Sentences with an opinion and sentences with a semantic graph: read from files, or drawn from a little grammar."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dependency_data import FormatError, Sentence, read_sdp

__all__ = [
    "CORE",
    "OTHERS",
    "ROLES",
    "Corpus",
    "Opinion",
    "graph_of",
    "read_graphs",
    "read_opinions",
    "sample_graphs",
    "sample_opinions",
]

CORE = ("ARG0", "ARG1", "ARG2")
"""Roles that a predicate fills once; 64 % of the arcs of PropBank over the English Web Treebank."""
OTHERS = ("NEG", "OTHER")
"""Roles that it fills as often as it likes: negation, and all that is left (other modifiers, ARG3, R-ARG0, …)."""
ROLES = (*CORE, *OTHERS)


@dataclass(frozen=True)
class Opinion:
    """A sentence and whether it is positive (1) or negative (0).

    Read from a file, the sentence has no tree and no roles: its heads are 0 throughout.
    """

    sentence: Sentence
    label: int

    def __len__(self) -> int:
        return len(self.sentence)


@dataclass(frozen=True)
class Corpus:
    """Sentences with graphs to learn parsing and to measure it, opinions to learn and to report on.

    ``test`` is empty where nothing is to be reported on it. ``max_words`` bounds graphs: a longer sentence has a graph
    over its first words only.
    """

    graphs: list[Sentence]
    graphs_dev: list[Sentence]
    train: list[Opinion]
    dev: list[Opinion]
    test: list[Opinion]
    max_words: int

    @property
    def drawn(self) -> list[Sentence]:
        """The dev sentences whose graphs are drawn: the first three with something to see, and room for it.

        Something to see are two words whose part of speech is mostly that of a predicate. Where there are fewer such
        sentences, the first others follow.
        """
        tags = Counter(tag for s in self.graphs for tag in s.tags)
        predicates = Counter(s.tags[p - 1] for s in self.graphs for p in s.predicates)
        verbs = {tag for tag, count in predicates.items() if 2 * count > tags[tag]}

        def dull(sentence: Sentence) -> bool:
            return not 5 <= len(sentence) <= 11 or sum(tag in verbs for tag in sentence.tags) < 2

        return sorted((o.sentence for o in self.dev), key=dull)[:3]


def graph_of(sentence: Sentence) -> list[tuple[int, int, int]]:
    """The parts (predicate, argument, role) of a sentence's graph, words counted from 0, roles as in ROLES.

    A predicate p is the part (p, p, 0). Roles that ROLES lacks become OTHER, and so does a second filler of a core
    role, which the polytope does not allow; an arc from a word to itself has no place in it, and is left out.
    """
    parts = [(p - 1, p - 1, 0) for p in sorted(sentence.predicates)]
    filled: set[tuple[int, int]] = set()
    for (p, a), label in sorted(sentence.roles.items()):
        name = label.removeprefix("ARGM-")
        if p == a:
            continue
        role = ROLES.index(name) if name in ROLES else ROLES.index("OTHER")
        if role < len(CORE) and (p, role) in filled:
            role = ROLES.index("OTHER")
        filled.add((p, role))
        parts.append((p - 1, a - 1, role))
    return parts


def read_graphs(path: Path, max_words: int) -> list[Sentence]:
    """Sentences of at most ``max_words`` words of an .sdp file, see :func:`dependency_data.read_sdp`.

    Raises
    ------
    FormatError : for a line that is different, and where there is no such sentence.
    """
    sentences = read_sdp(path, max_words)
    if not sentences:
        raise FormatError(f"{path}: expected a sentence of at most {max_words} words, found none")
    return sentences


def read_opinions(path: Path) -> list[Opinion]:
    """All instances of a file in the layout of the Stanford Sentiment Treebank that is used here.

    A line ``# instance N`` begins an instance, a token line has the columns ``id form lemma pos label``, separated by
    tabs, and an empty line ends the instance. The label is 0 or 1, the same for all tokens of an instance.

    Raises
    ------
    FormatError : at the first line that is different, and for a file without instances.
    """
    opinions = []
    with path.open(encoding="utf-8") as lines:
        try:
            for block in _blocks(path, lines):
                opinions.append(_opinion(path, block))
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: expected UTF-8 text, but {error}") from error
    if not opinions:
        raise FormatError(f"{path}: expected an instance at least, found none")
    return opinions


def _blocks(path: Path, lines: Iterator[str]) -> Iterator[list[tuple[int, list[str]]]]:
    """The token lines of each instance, with their numbers."""
    block: list[tuple[int, list[str]]] = []
    for number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if "\t" in line:  # a form may itself start with #
            block.append((number, line.split("\t")))
        elif line.startswith("#") and not block:
            continue
        elif line.startswith("#"):
            raise FormatError(f"{path}:{number}: expected a token or an empty line within an instance, got {line!r}")
        elif line:
            raise FormatError(
                f"{path}:{number}: expected a token with tabs, # instance N or an empty line, got {line!r}"
            )
        elif block:
            yield block
            block = []
    if block:
        yield block


def _opinion(path: Path, block: list[tuple[int, list[str]]]) -> Opinion:
    first = block[0][1][-1]
    for position, (number, fields) in enumerate(block, start=1):
        where = f"{path}:{number}"
        if len(fields) != 5:
            raise FormatError(f"{where}: expected 5 columns (id, form, lemma, pos, label), got {len(fields)}")
        if fields[0] != str(position):
            raise FormatError(f"{where}: expected token {position} of the instance, got {fields[0]!r}")
        if not fields[1] or not fields[3]:
            raise FormatError(f"{where}: expected a form and a pos, got {fields[1]!r} and {fields[3]!r}")
        if fields[4] not in ("0", "1"):
            raise FormatError(f"{where}: expected the label 0 or 1, got {fields[4]!r}")
        if fields[4] != first:
            raise FormatError(f"{where}: expected the label {first} of the instance's first token, got {fields[4]}")
    words, tags = (tuple(fields[k] for _, fields in block) for k in (1, 3))
    return Opinion(Sentence(words, tags, (0,) * len(block), frozenset(), {}), int(first))


GENDERS = ("ka", "lo", "mi", "su")
"""A verb and its dependents share an ending, mostly; word order is free, so endings alone say who belongs to whom."""
NOISE = 0.03
"""How often an ending does not agree."""
NOUNS, VERBS, TIMES = 8, 4, 2


def sample_graphs(count: int, seed: int) -> list[Sentence]:
    """Sentences of one or two clauses, with their semantic graphs."""
    generator = random.Random(seed)
    return [_sentence(generator, clauses=generator.choice((1, 2))).sentence for _ in range(count)]


def sample_opinions(count: int, seed: int) -> list[Opinion]:
    """Sentences of two or three clauses whose patients say what to think of them.

    A clause is a verb with an agent (ARG0), mostly a patient (ARG1), at times a negation (ARGM-NEG) and a time
    (ARGM-TMP). Half of the nouns are good, half are bad. The sentence is as good as the patient of its main verb, the
    contrary if that verb is negated; the other clauses have patients and negations, too, which mean nothing. So the
    label needs the graph: which patient and which negation belong to the main verb.
    """
    generator = random.Random(seed)
    return [_sentence(generator, clauses=generator.choice((2, 3))) for _ in range(count)]


def _sentence(generator: random.Random, clauses: int) -> Opinion:
    label = 0
    tokens: list[tuple[str, str, int, str]] = []  # word, tag, clause, role
    for clause, gender in enumerate(generator.sample(GENDERS, clauses)):
        main = clause == 0
        patient, negated = generator.randrange(NOUNS), generator.random() < 0.2
        if main:
            label = int((patient % 2 == 0) != negated)
        tokens.append((f"v{generator.randrange(VERBS)}{gender}", "MAIN" if main else "SIDE", clause, ""))
        tokens.append((_agreeing(generator, f"n{generator.randrange(NOUNS)}", gender), "NOM", clause, "ARG0"))
        if main or generator.random() < 0.8:
            tokens.append((_agreeing(generator, f"n{patient}", gender), "ACC", clause, "ARG1"))
        if negated:
            tokens.append((_agreeing(generator, "not", gender), "NEG", clause, "ARGM-NEG"))
        if generator.random() < 0.2:
            when = f"t{generator.randrange(TIMES)}"
            tokens.append((_agreeing(generator, when, gender), "TIME", clause, "ARGM-TMP"))
    generator.shuffle(tokens)
    return Opinion(_graph(tokens), label)


def _agreeing(generator: random.Random, stem: str, gender: str) -> str:
    return stem + (generator.choice(GENDERS) if generator.random() < NOISE else gender)


def _graph(tokens: Sequence[tuple[str, str, int, str]]) -> Sentence:
    verb = {clause: k for k, (_, _, clause, role) in enumerate(tokens, start=1) if not role}
    return Sentence(
        tuple(word for word, *_ in tokens),
        tuple(tag for _, tag, *_ in tokens),
        tuple(verb[clause] if role else 0 for _, _, clause, role in tokens),
        frozenset(verb.values()),
        {(verb[clause], k): role for k, (_, _, clause, role) in enumerate(tokens, start=1) if role},
    )

"""What a report says, and how it is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, final

__all__ = [
    "CHOSEN",
    "DECLARED",
    "ENUMERATED",
    "EXHAUSTIVE",
    "LEFT_OUT",
    "MEASURED",
    "PREDICTED",
    "PROOF",
    "ROUNDING",
    "TRIED",
    "Section",
    "Statement",
    "sampled",
]

PROOF = "proof"
"""By arithmetic without rounding."""
EXHAUSTIVE = "exhaustive"
"""Everything there is was listed, by linear programs that leave room for rounding, and looked at."""
ROUNDING = "to rounding"
"""By a certified computation in floating point, which is no proof."""
ENUMERATED = f"enumerated, {ROUNDING}"
"""All of them were listed, by best points in floating point."""
LEFT_OUT = "left out"
"""Nobody looked, for want of time or because there is too much of it."""
CHOSEN = "as compiled"
MEASURED = "measured"
PREDICTED = "predicted"
"""From what was measured at other sizes, as a power of the number of parts."""
TRIED = "tried"
"""It was called, and answered or did not."""
DECLARED = "declared"
"""By the word of the declaration."""


def sampled(count: int, what: str = "objectives") -> str:
    """By looking at some of many."""
    return f"sampled, {count} {what}"


@final
@dataclass(frozen=True)
class Statement:
    """A sentence of a report, and how it is known: a proof, an exhaustive search, samples, or less."""

    text: str
    known: str

    def __str__(self) -> str:
        first, *lines = self.text.split("\n")  # what is to be pasted stands below, alone
        return "\n".join([f"{first} [{self.known}]", *lines])


@final
@dataclass(frozen=True)
class Section:
    """The statements of one idea, and what they say as plain data."""

    title: str
    statements: tuple[Statement, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def to_rounding(self) -> Section:
        """Without proofs, for numbers that are known to rounding only."""
        told = tuple(replace(one, known=_to_rounding(one.known)) for one in self.statements)
        facts = dict(self.facts)
        if "known" in facts:
            facts["known"] = _to_rounding(facts["known"])
        return replace(self, statements=told, facts=facts)


def _to_rounding(known: str) -> str:
    if known == PROOF:
        return ROUNDING
    return f"{known}, {ROUNDING}" if known == EXHAUSTIVE else known

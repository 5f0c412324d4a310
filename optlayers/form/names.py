"""How messages call the entries of variables: by the names that a user gave these, and their indices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from optlayers.polytope import Polytope
from optlayers.variables import name_given

__all__ = ["NO_NAMES", "ColumnNames", "entry_name", "scored_name"]

AUXILIARY = "an auxiliary variable"


def entry_name(name: str, shape: tuple[int, ...], flat: int) -> str:
    """An entry of a variable, by its place in C order; a number has no indices."""
    return f"{name}{[int(i) for i in np.unravel_index(flat, shape)]}" if shape else name


def scored_name(polytope: Polytope, flat: int, called: str | None = None) -> str:
    """An entry of the scored vector: of the scored variable, which may be ``called`` by another name than its own, or
    of a scored auxiliary one."""
    variable = polytope.variable
    if flat < variable.size:
        return entry_name(called or name_given(variable) or "variable", polytope.shape, flat)
    flat -= variable.size
    for auxiliary in polytope.scored:
        if flat < auxiliary.size:
            return entry_name(auxiliary.name(), tuple(auxiliary.shape), flat)
        flat -= auxiliary.size
    raise IndexError("an entry beyond the scored vector")


@final
@dataclass(frozen=True)
class ColumnNames:
    """The variables that the columns of compiled rows are entries of: for each that a user named the first column, how
    many there are, the name and the shape."""

    variables: tuple[tuple[int, int, str, tuple[int, ...]], ...] = ()

    def of(self, column: int) -> str:
        """How messages call an auxiliary column, those of a variable in column-major order."""
        for first, size, name, shape in self.variables:
            if not first <= column < first + size:
                continue
            if size < int(np.prod(shape)):  # one column for several entries, as of symmetric variables
                return f"an entry of {name}"
            return entry_name(name, shape, int(np.arange(size).reshape(shape).flatten(order="F")[column - first]))
        return AUXILIARY


NO_NAMES = ColumnNames()

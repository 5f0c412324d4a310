"""Whether structures stay in the unit cube, which some losses need to be what they say."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.common.caches import Cache
from optlayers.compilation.prepared import AbstractPrepared
from optlayers.losses.prediction import best_vertices
from optlayers.losses.question import Question

__all__ = ["WHOLE", "Cube"]

WHOLE = 1e-6
"""So far from 0 and 1 may be what counts as such."""
ROWS = 1024
"""So many directions are tried at a time."""


@final
class Cube:
    """How far the parts of polytopes reach: each is tried once, and remembered."""

    def __init__(self) -> None:
        self.extreme: Cache[tuple[bool, AbstractPrepared], str] = Cache()

    def leaves(self, compiled: AbstractPrepared, *, below: bool) -> str:
        """A part that exceeds 1, or is below 0 if that matters, in words; empty where there is none.

        Polytopes with parameters reach differently far for every instance, and are left out.
        """
        if compiled.projection_form.parameter_count:
            return ""
        for small in (False, True)[: 1 + below]:
            why = self.extreme.get((small, compiled), lambda key: _extreme_part(key[1], key[0]))
            if why:
                return why
        return ""


def exceeds(question: Question, structure: Float64[Tensor, "batch structure_size"]) -> str:
    """A part of a structure of 0 and 1 that can exceed 1 where all parts but those of the structure are forbidden, by
    the parameters of its instance, in words; "" for none. It takes a best vertex per part and instance."""
    hidden = torch.nn.functional.pad(structure == 0, (0, question.scores.shape[1] - structure.shape[1]))
    for part in range(structure.shape[1] if structure.numel() else 0):
        if not bool((structure[:, part] != 0).any()):
            continue
        direction = torch.zeros_like(question.scores.detach())
        direction[:, part] = 1.0
        vertices = question.ask(best_vertices, direction.masked_fill(hidden, 0.0), hidden).solution.value
        beyond = vertices[:, part] > 1 + WHOLE
        if bool(beyond.any()):
            k = int(torch.nonzero(beyond)[0, 0])
            reach = vertices[k, part].item()
            return f"part {question.entry(part)} {question.instance(k)} can be as large as {reach:g}"
    return ""


def _extreme_part(compiled: AbstractPrepared, small: bool) -> str:
    """A part that leaves the unit cube to one side, in words."""
    entries, sign = compiled.entries, -1.0 if small else 1.0
    for start in range(0, entries.structure_size, ROWS):
        parts = torch.arange(start, min(start + ROWS, entries.structure_size), device="cpu")
        directions = torch.zeros(len(parts), entries.size, dtype=torch.float64, device="cpu")
        rows, nothing = torch.arange(len(parts), device="cpu"), torch.zeros(len(parts), 0, dtype=torch.float64)
        directions[rows, parts] = sign
        bound = compiled.bind_on_host(nothing, None, np.zeros(0))
        extreme = bound.maximize(directions).check().value[rows, parts]
        bad = extreme < -WHOLE if small else extreme > 1 + WHOLE
        if bool(bad.any()):
            first = int(torch.nonzero(bad)[0])
            index = [int(i) for i in np.unravel_index(int(parts[first]), entries.shape)]
            return f"part {index} of this polytope can be as {'small' if small else 'large'} as {extreme[first]:g}"
    return ""

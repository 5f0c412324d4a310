"""Whether structures stay in the unit cube, which some losses need to be what they say."""

from __future__ import annotations

from typing import final

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from optlayers.caches import Cache
from optlayers.compiled import CompiledPolytope
from optlayers.layer import OptLayer
from optlayers.losses.question import Question, per_instance
from optlayers.losses.targets import of_instance

__all__ = ["WHOLE", "Cube"]

WHOLE = 1e-6
"""So far from 0 and 1 may be what counts as such."""
ROWS = 1024
"""So many directions are tried at a time."""


@final
class Cube:
    """How far the parts of a layer's polytopes reach: each is tried once for every size, and remembered."""

    def __init__(self, layer: OptLayer) -> None:
        self.layer = layer
        self.found: Cache[tuple[bool, tuple[int, ...]], str] = Cache()

    def leaves(self, question: Question, *, below: bool) -> str:
        """A part that exceeds 1, or is below 0 if that matters, in words; empty where there is none.

        Polytopes with parameters reach differently far for every instance, and are left out.
        """
        for size in self._sizes(question):
            compiled = self.layer.compiled(*size)
            if compiled.projection_form.parameter_count:
                continue
            for small in (False, True)[: 1 + below]:
                found = self.found.get((small, size), lambda key: _extreme_part(self.layer.compiled(*key[1]), key[0]))
                if found:
                    return found
        return ""

    def exceeds(self, question: Question, structure: Float64[Tensor, "*batch_and_shape"]) -> str:
        """A part of a structure of 0 and 1 that can exceed 1 where all parts but those of the structure are forbidden,
        by these parameters, in words; "" for none. It takes a best vertex per part and instance."""
        asked = question.without_auxiliary_scores()
        flat = per_instance(structure, question.batch)
        for part in range(flat.shape[-1] if flat.numel() else 0):
            if not bool((flat[..., part] != 0).any()):
                continue
            direction = torch.zeros_like(flat)
            direction[..., part] = 1.0
            direction = direction.reshape(structure.shape).masked_fill(structure == 0, -torch.inf)
            found = asked.ask(self.layer, direction).structure
            beyond = per_instance(found, question.batch)[..., part] > 1 + WHOLE
            if bool(beyond.any()):
                where = tuple(torch.nonzero(beyond)[0].tolist()) if question.batch else ()
                index = [int(i) for i in np.unravel_index(part, structure.shape[len(where) :])]
                reach = per_instance(found, question.batch)[(*where, part)].item()
                return f"part {index} {of_instance(where)} can be as large as {reach:g}"
        return ""

    def _sizes(self, question: Question) -> list[tuple[int, ...]]:
        if question.sizes is None:
            return [()]
        table = question.sizes.reshape(-1, question.sizes.shape[-1])
        return [tuple(size) for size in torch.unique(table, dim=0).tolist() if 0 not in size]


def _extreme_part(compiled: CompiledPolytope, small: bool) -> str:
    """A part that leaves the unit cube to one side, in words."""
    form = compiled.projection_form
    size, sign = form.structure_size, -1.0 if small else 1.0
    unscored = {spec.name: torch.zeros(spec.shape, dtype=torch.float64, device="cpu") for spec in form.auxiliaries}
    for start in range(0, size, ROWS):
        parts = torch.arange(start, min(start + ROWS, size), device="cpu")
        directions = torch.zeros(len(parts), size, dtype=torch.float64, device="cpu")
        rows = torch.arange(len(parts), device="cpu")
        directions[rows, parts] = sign
        vertices = compiled.maximize(directions.reshape(len(parts), *compiled.shape), **unscored).check().value
        extreme = vertices.reshape(len(parts), size)[rows, parts]
        bad = extreme < -WHOLE if small else extreme > 1 + WHOLE
        if bool(bad.any()):
            first = int(torch.nonzero(bad)[0])
            index = [int(i) for i in np.unravel_index(int(parts[first]), compiled.shape)]
            return f"part {index} of this polytope can be as {'small' if small else 'large'} as {extreme[first]:g}"
    return ""

"""Losses, and what their contract is told of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

import optlayers as ol
from catalogue.declared import BY_CONSTRAINTS
from catalogue.entries import Entry


@dataclass(frozen=True)
class LossCase:
    """A loss, and what :func:`optlayers.testing.check_loss` is told of it."""

    make: Any
    told: dict[str, Any] = field(default_factory=dict)
    binary: bool = False
    """Whether it is for parts between 0 and 1 alone."""
    by_constraints: bool = False
    """Whether it is for polytopes that constraints describe."""
    of: type[ol.AbstractLoss] | None = None
    """The loss within, where another module makes it one of targets."""

    def __repr__(self) -> str:
        return self.kind.__name__

    @property
    def kind(self) -> type[ol.AbstractLoss]:
        """The class of the loss."""
        if self.of is not None:
            return self.of
        return self.make.func if isinstance(self.make, partial) else self.make

    @property
    def knows_structures(self) -> bool:
        """Whether targets are structures."""
        return self.told.get("target", "structures") == "structures"

    @property
    def draws(self) -> bool:
        """Whether the loss draws random numbers."""
        return issubclass(self.kind, ol.PerturbedFenchelYoungLoss)

    def takes(self, entry: Entry) -> bool:
        """Whether the loss is for a polytope."""
        if self.by_constraints and not any(entry is other for other in BY_CONSTRAINTS):
            return False
        return not (self.binary and entry.name.startswith("ranking"))


class Value(torch.nn.Module):
    """:class:`optlayers.OptimalValue` as a loss whose targets count for nothing."""

    def __init__(self, polytope: Any, reduction: Any = "mean") -> None:
        super().__init__()
        self.value = ol.OptimalValue(polytope, reduction=reduction)

    def forward(self, scores: torch.Tensor, target: torch.Tensor, **named: Any) -> torch.Tensor:
        """The value of the scores."""
        return self.value(scores, **named)


LOSSES = [
    LossCase(ol.StructuredPerceptronLoss),
    LossCase(ol.StructuredHingeLoss, binary=True),
    LossCase(ol.SparseMAPLoss),
    LossCase(ol.CRFLoss),
    LossCase(partial(ol.PerturbedFenchelYoungLoss, samples=2), {"nonnegative": False, "zero": False}),
    LossCase(ol.SPOPlusLoss, {"target": "scores"}),
    LossCase(partial(ol.FenchelYoungLoss, regularizer=ol.Entropy()), binary=True, by_constraints=True),
]
"""Those that compare structures, or scores, with targets."""
VALUES = [LossCase(Value, {"nonnegative": False, "zero": False}, of=ol.OptimalValue)]
"""Those that compare with nothing."""

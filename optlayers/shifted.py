r"""A polytope whose constraints can be shifted: what multipliers are the prices of, and what makes an empty one hold.

Every constraint ``left <= right`` becomes ``left <= right + shift`` and every ``left == right`` becomes
``left == right + shift``, where the shift is a parameter of the same shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import cvxpy as cp
from cvxpy.constraints.nonpos import Inequality
from cvxpy.constraints.zero import Equality
from torch import Tensor

from optlayers.common.caches import WeakCache
from optlayers.form.standard import DeclarationError
from optlayers.polytope import Polytope

__all__ = ["RELAXATION", "ByConstraint", "Shifted", "label_of", "shifted"]

INTEGERS = (
    "variables that are integers leave a polytope whose constraints are not known, and no multipliers of these: "
    "polytope.relaxed() has them"
)
RELAXATION = (
    "the constraints are a relaxation of the polytope, so that their multipliers are those of other points: "
    "polytope.without_oracle() has them where an oracle is all there is besides, and a declaration without separate="
)

_known: WeakCache[Polytope, Shifted] = WeakCache()


@final
@dataclass(frozen=True, eq=False)
class Shifted:
    """The polytope with shifts, and the shift of every constraint of the declaration, by its place."""

    polytope: Polytope
    shifts: tuple[cp.Parameter, ...]


def shifted(polytope: Polytope) -> Shifted:
    """The polytope whose constraints can be shifted; there is one for a polytope.

    Raises
    ------
    DeclarationError : integer variables, or a constraint between cones.
    """
    return _known.get(polytope, _shifted)


def _shifted(polytope: Polytope) -> Shifted:
    if polytope.has_integers:
        raise DeclarationError(INTEGERS)
    taken = {leaf.name() for leaf in (*polytope.parameters, *polytope.variables)}
    shifts, constraints = [], []
    for position, constraint in enumerate(polytope.constraints):
        if not isinstance(constraint, (Equality, Inequality)):
            raise DeclarationError(
                f"{label_of(constraint, position)} is a {type(constraint).__name__}: multipliers are those of "
                "constraints with <=, >= and =="
            )
        name = f"shift_of_constraint_{position}"
        while name in taken:
            name += "_"
        shift = cp.Parameter(constraint.shape, name=name)
        left, right = constraint.args
        moved = left == right + shift if isinstance(constraint, Equality) else left <= right + shift
        moved.set_label(label_of(constraint, position))
        shifts.append(shift)
        constraints.append(moved)
    moved = Polytope(polytope.variable, constraints, scored=polytope.scored)
    moved.at_an_edge = True
    return Shifted(moved, tuple(shifts))


def label_of(constraint: cp.Constraint, position: int) -> str:
    """How messages call a constraint."""
    label = getattr(constraint, "label", None)
    return label or f"constraint {position} ({constraint})"


@final
class ByConstraint(Mapping[cp.Constraint, Tensor]):
    """A tensor for every constraint of a declaration: by the constraint, by its place, or by its label.

    Attributes
    ----------
    constraints : those of the declaration, in order.
    """

    def __init__(self, constraints: Sequence[cp.Constraint], tensors: Sequence[Tensor]) -> None:
        self.constraints = tuple(constraints)
        self._tensors = tuple(tensors)

    def __getitem__(self, key: cp.Constraint | int | str) -> Tensor:
        if isinstance(key, int) and not isinstance(key, bool):
            return self._tensors[key]
        for constraint, tensor in zip(self.constraints, self._tensors, strict=True):
            if constraint is key or (isinstance(key, str) and getattr(constraint, "label", None) == key):
                return tensor
        raise KeyError(
            f"{key} is no constraint of the declaration: give one of polytope.constraints, its place, or its label "
            "(constraint.set_label)"
        )

    def __iter__(self) -> Iterator[cp.Constraint]:
        return iter(self.constraints)

    def __len__(self) -> int:
        return len(self.constraints)

    def __repr__(self) -> str:
        lines = [
            f"  {label_of(constraint, k)}: {tensor}"
            for k, (constraint, tensor) in enumerate(zip(self.constraints, self._tensors, strict=True))
        ]
        return "\n".join(["ByConstraint(", *lines, ")"])

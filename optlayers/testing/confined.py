"""A polytope with one more constraint, which makes instances infeasible by the value of a parameter."""

from __future__ import annotations

import cvxpy as cp
import torch
from torch import Tensor

from optlayers.polytope import Polytope

__all__ = ["ROOM", "confined"]

ROOM = "room_of_the_contract"
"""The parameter: what the structure may sum to at most."""


def confined(polytope: Polytope, least: float) -> Polytope:
    """The structures of a polytope whose sum a parameter leaves room for.

    ``least`` is the smallest sum of all: with less room the log-partition function, too, says that there is none.
    """
    room = cp.Parameter(name=ROOM)
    rows = [*polytope.constraints, cp.sum(polytope.variable) <= room]
    function = polytope.log_partition
    narrower = Polytope(polytope.variable, rows, scored=polytope.scored)
    if function is None:
        return narrower
    place = [p.name() for p in narrower.parameters].index(ROOM) - len(narrower.parameters)

    def log_partition(*given: Tensor) -> Tensor:
        others = list(given)
        rooms = others.pop(place)
        return function(*others).masked_fill(rooms < least, -torch.inf)

    return Polytope(polytope.variable, rows, scored=polytope.scored, log_partition=log_partition)

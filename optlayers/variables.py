"""What is asked of the variables of a declaration: their names, which entries are integer, and copies that are not."""

from __future__ import annotations

import re

import cvxpy as cp
import numpy as np

__all__ = ["copied_constraint", "described", "is_integer", "name_given", "relaxed_variable"]

NUMBERED = re.compile(r"var\d+")
"""Names that cvxpy makes."""


def name_given(variable: cp.Variable | cp.Parameter) -> str | None:
    """The name that a user gave a variable or parameter; None where it is the one that cvxpy made, also for a copy."""
    name = str(variable.name())
    return None if NUMBERED.fullmatch(name) else name


def described(variable: cp.Variable) -> str:
    """How messages call a variable: by its name, else by its shape."""
    return name_given(variable) or f"a variable of shape {tuple(variable.shape)} without a name"


def is_integer(variable: cp.Variable) -> np.ndarray:
    """Which entries of a variable are declared to be integer, boolean ones included."""
    flags = np.zeros(variable.shape, dtype=bool)
    for attribute, places in (("boolean", variable.boolean_idx), ("integer", variable.integer_idx)):
        if variable.attributes[attribute] is True:
            flags[...] = True
        elif variable.attributes[attribute]:
            flags[tuple(np.asarray(axis) for axis in places)] = True
    return flags


def relaxed_variable(variable: cp.Variable) -> cp.Variable:
    """A variable of the same name and attributes that is not integer; booleans keep their bounds."""
    given = variable.attributes["bounds"]
    booleans = np.zeros(variable.shape, dtype=bool)
    if variable.attributes["boolean"] is True:
        booleans[...] = True
    elif variable.attributes["boolean"]:
        booleans[tuple(np.asarray(axis) for axis in variable.boolean_idx)] = True
    kept = {
        name: value
        for name, value in variable.attributes.items()
        if name not in ("boolean", "integer", "bounds") and value is not False and value is not None
    }
    if booleans.any():
        if booleans.all() and given is None:
            return cp.Variable(variable.shape, name=variable.name(), **kept, bounds=[0.0, 1.0])
        low, high = np.where(booleans, 0.0, -np.inf), np.where(booleans, 1.0, np.inf)
        if given is not None:
            if any(isinstance(bound, cp.Expression) for bound in given):
                raise ValueError(
                    f"the bounds of {described(variable)}, which is boolean, have parameters: give them as constraints"
                )
            low = np.maximum(low, -np.inf if given[0] is None else given[0])
            high = np.minimum(high, np.inf if given[1] is None else given[1])
        kept["bounds"] = [low, high]
    elif given is not None:
        kept["bounds"] = given
    return cp.Variable(variable.shape, name=variable.name(), **kept)


def copied_constraint(constraint: cp.Constraint, instead: dict[int, cp.Variable]) -> cp.Constraint:
    """A constraint over other variables, with the number and the label of the first one."""
    copy = constraint.tree_copy(dict(instead))
    label = getattr(constraint, "label", None)
    if label is not None:
        copy.set_label(label)
    return copy

"""Whether a layer or a loss over a declaration can be pickled."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

from optlayers.compiled_oracle import name_of
from optlayers.polytope import Polytope

__all__ = ["check_pickled", "is_pickled"]

PICKLING = (AttributeError, pickle.PicklingError, TypeError)
"""What pickle raises where it cannot."""


def check_pickled(value: Any, name: str, lost: str) -> None:
    """Raise AssertionError where pickle does not take a value, with what is ``lost`` by it."""
    try:
        pickle.dumps(value)
    except PICKLING as error:
        raise AssertionError(f"{name} cannot be pickled, so {lost} cannot be saved: {error}") from error


def is_pickled(polytope: Polytope, contract: str, what: str) -> bool:
    """Whether pickle takes the functions of a declaration; a warning says which one it does not take.

    ``what`` is not pickled then by a ``contract``.
    """
    functions: dict[str, Any] = {
        "oracle": polytope.oracle,
        "log_partition": polytope.log_partition,
        "membership function": polytope.membership,
        "function that separates": polytope.separate,
    }
    for name, function in functions.items():
        try:
            pickle.dumps(function)
        except PICKLING as error:
            warnings.warn(
                f"{contract} has not pickled the {what}, for {name} {name_of(function)} cannot be pickled ({error}): "
                f"{PLURAL[what]} over this polytope cannot be saved as a whole, or sent to another process, until it "
                "is a function that a module defines",
                stacklevel=3,
            )
            return False
    return True


PLURAL = {"layer": "layers", "loss": "losses"}

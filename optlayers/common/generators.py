"""Where random numbers come from, and how to go back to it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

__all__ = ["remember"]


def remember(generator: torch.Generator | None, home: torch.device) -> Callable[[], None]:
    """A function that takes a generator back to where it is now; torch's own for None, on the device of the scores."""
    if generator is None and home.type == "cpu":
        return partial(torch.set_rng_state, torch.get_rng_state())
    if generator is None:
        states = torch.get_device_module(home)
        return partial(states.set_rng_state, states.get_rng_state(home), home)
    drawn_from, state = generator, generator.get_state()

    def take_back() -> None:
        drawn_from.set_state(state)

    return take_back

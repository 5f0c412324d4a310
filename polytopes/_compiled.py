"""How the oracles of the catalogue are compiled."""

from pathlib import Path

from optlayers.common.kernel_cache import cached_njit

__all__ = ["compiled"]

compiled = cached_njit(Path(__file__).parent, nogil=True, error_model="numpy")
"""Once per machine, free of the interpreter, so that threads share a batch."""

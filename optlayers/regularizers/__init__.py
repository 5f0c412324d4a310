"""Regularizers, a file each."""

from optlayers.regularizers.barrier import Barrier
from optlayers.regularizers.base import AbstractRegularizer
from optlayers.regularizers.declared import Declared
from optlayers.regularizers.entropy import Entropy
from optlayers.regularizers.euclidean import Euclidean
from optlayers.regularizers.tsallis import Tsallis

__all__ = ["AbstractRegularizer", "Barrier", "Declared", "Entropy", "Euclidean", "Tsallis"]

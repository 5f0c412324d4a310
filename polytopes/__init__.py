"""A catalogue of polytopes, each declared in a few lines of cvxpy."""

from polytopes.arborescence import arborescence
from polytopes.cube import cube
from polytopes.matching import matching, partial_matching, rectangular_matching
from polytopes.projective_tree import projective_tree
from polytopes.sequence import edge_scores, sequence, states_of
from polytopes.simplex import simplex
from polytopes.subset import subset

__all__ = [
    "arborescence",
    "cube",
    "edge_scores",
    "matching",
    "partial_matching",
    "projective_tree",
    "rectangular_matching",
    "sequence",
    "simplex",
    "states_of",
    "subset",
]

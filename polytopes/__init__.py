"""A catalogue of polytopes, each declared in a few lines of cvxpy."""

from polytopes.arborescence import arborescence
from polytopes.cube import cube
from polytopes.dag_path import dag_path, grid_arcs, grid_path
from polytopes.head_choice import head_choice
from polytopes.linear_chain import linear_chain
from polytopes.matching import matching, partial_matching, rectangular_matching
from polytopes.permutahedron import permutahedron
from polytopes.projective_tree import projective_tree
from polytopes.sequence import edge_scores, sequence, states_of
from polytopes.simplex import simplex
from polytopes.subset import subset

__all__ = [
    "arborescence",
    "cube",
    "dag_path",
    "edge_scores",
    "grid_arcs",
    "grid_path",
    "head_choice",
    "linear_chain",
    "matching",
    "partial_matching",
    "permutahedron",
    "projective_tree",
    "rectangular_matching",
    "sequence",
    "simplex",
    "states_of",
    "subset",
]

"""A catalogue of polytopes, each declared in a few lines of cvxpy."""

from polytopes.alignment import ctc_alignment, monotone_alignment
from polytopes.arborescence import arborescence
from polytopes.b_matching import b_matching
from polytopes.constituency_tree import constituency_tree
from polytopes.cube import cube
from polytopes.dag_path import dag_path, grid_arcs, grid_path
from polytopes.head_choice import head_choice
from polytopes.knapsack import knapsack
from polytopes.linear_chain import linear_chain
from polytopes.matching import matching, partial_matching, rectangular_matching
from polytopes.noncrossing_matching import noncrossing_matching
from polytopes.permutahedron import permutahedron
from polytopes.projective_tree import projective_tree
from polytopes.semantic_graph import semantic_graph
from polytopes.semi_markov import semi_markov
from polytopes.sequence import edge_scores, sequence, states_of
from polytopes.simplex import simplex
from polytopes.spanning_tree import spanning_tree
from polytopes.subset import subset
from polytopes.tour import tour

__all__ = [
    "arborescence",
    "b_matching",
    "constituency_tree",
    "ctc_alignment",
    "cube",
    "dag_path",
    "edge_scores",
    "grid_arcs",
    "grid_path",
    "head_choice",
    "knapsack",
    "linear_chain",
    "matching",
    "monotone_alignment",
    "noncrossing_matching",
    "partial_matching",
    "permutahedron",
    "projective_tree",
    "rectangular_matching",
    "semantic_graph",
    "semi_markov",
    "sequence",
    "simplex",
    "spanning_tree",
    "states_of",
    "subset",
    "tour",
]

"""Contracts that a declaration, a solver, a rule and a loss keep; run them on your own, as our tests run them on ours.

Each function raises ``AssertionError`` with what was broken.
"""

from optlayers.testing.geometry import contains, distance, is_vertex
from optlayers.testing.log_partition import check_log_partition
from optlayers.testing.loss import check_loss
from optlayers.testing.oracle import check_oracle
from optlayers.testing.polytope import PolytopeCheck, check_polytope
from optlayers.testing.rule import check_rule
from optlayers.testing.separation import check_separation
from optlayers.testing.solver import check_solver

__all__ = [
    "PolytopeCheck",
    "check_log_partition",
    "check_loss",
    "check_oracle",
    "check_polytope",
    "check_rule",
    "check_separation",
    "check_solver",
    "contains",
    "distance",
    "is_vertex",
]

"""What a declaration says, and how it is known: its dimension, whether it is integral, what it lacks, what it costs."""

from optlayers.reporting.missing import MissingInequality
from optlayers.reporting.polytope_report import PolytopeReport
from optlayers.reporting.study import report

__all__ = ["MissingInequality", "PolytopeReport", "report"]

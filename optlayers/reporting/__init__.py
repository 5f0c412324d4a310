"""What a declaration says, and how it is known: its dimension, whether it is integral, what it lacks, what it costs."""

from optlayers.reporting.asked import report
from optlayers.reporting.missing import MissingInequality
from optlayers.reporting.polytope_report import PolytopeReport

__all__ = ["MissingInequality", "PolytopeReport", "report"]

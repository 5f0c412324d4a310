"""What rules and losses speak to: polytopes with the numbers of a batch filled in."""

from optlayers.bound.base import AbstractBoundPolytope, Marginals, Tangent

__all__ = ["AbstractBoundPolytope", "Marginals", "Tangent"]

"""All vertices of a polytope, hulls of points, and their facets."""

"""A polytope made ready: its arrays, its solvers, both in words, and the prices of its constraints."""

"""Sums over structures, draws from them, and the best ones."""

"""The Gibbs distribution: sums over its structures, these themselves, and what it is over."""

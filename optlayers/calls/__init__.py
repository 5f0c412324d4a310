"""The call of a layer, the instances of one polytope in it, and its verdicts."""

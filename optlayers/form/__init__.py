"""From a declaration to arrays: what is checked, what cvxpy makes of it, what presolve leaves, the standard form."""

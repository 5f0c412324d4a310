"""Regularized problems in batched dense torch, on any device."""

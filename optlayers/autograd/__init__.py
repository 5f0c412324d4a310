"""Calls as PyTorch differentiates and transforms them."""

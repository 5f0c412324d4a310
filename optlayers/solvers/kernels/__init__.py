"""Compiled loops and batched algebra over plain arrays; they know neither forms nor statuses."""

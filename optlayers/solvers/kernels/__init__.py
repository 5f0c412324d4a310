"""Compiled loops over plain arrays; they know neither forms nor statuses."""

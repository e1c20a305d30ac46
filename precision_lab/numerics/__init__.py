"""Numerics: how a value is rounded; formats, modes, sums and products."""

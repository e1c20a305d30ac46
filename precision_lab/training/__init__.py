"""Training: what rounding does while a model learns."""

"""Floor 3: where it happens in training."""

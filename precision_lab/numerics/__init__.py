"""Floor 1: how a value is rounded."""

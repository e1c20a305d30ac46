"""Floor 2: what was lost."""

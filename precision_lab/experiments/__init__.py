"""Floor 4: what we asked, one module per experiment: run(config) -> frozen result."""

"""Experiments: a module each, from ``run(config)`` to a frozen result."""

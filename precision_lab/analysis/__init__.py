"""Analysis: what rounding loses."""

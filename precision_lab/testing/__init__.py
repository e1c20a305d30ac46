"""For people who test their own rounding and sums: strategies for Hypothesis, checks of casts and dot products."""

"""From the best formulas of a search to the answer, in float64 on the host."""

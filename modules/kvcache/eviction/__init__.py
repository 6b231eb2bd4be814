"""Which tokens of a prompt stay in the cache: one budget, many ways to choose."""

"""Statistics and one-shot pruning, block by block."""

"""One-shot pruning of linear layers: patterns, scores, solvers, and the block-by-block driver."""

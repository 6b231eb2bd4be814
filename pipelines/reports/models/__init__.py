"""Reports on pruned models: SDS, Týr, learnable permutation."""

"""The report on learnable permutation."""

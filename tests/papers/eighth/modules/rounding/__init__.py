"""Rounding of weights: the eighth paper of a test."""

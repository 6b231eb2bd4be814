"""Structural pruning: whole attention heads and feed-forward neurons, and the models that are left."""

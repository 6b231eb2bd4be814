"""Structural pruning: whole heads and feed-forward neurons, and the models that are left."""

"""Perplexity, tasks, divergence and speed of models."""

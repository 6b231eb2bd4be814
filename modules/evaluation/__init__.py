"""Perplexity, tasks and intervals."""

"""Kinds of stored results, a file for each family."""

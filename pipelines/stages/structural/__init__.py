"""Supernet, search and export of structural pruning."""

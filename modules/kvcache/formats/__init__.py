"""Formats of stored keys and values, a file each."""

"""The CoSpec report."""

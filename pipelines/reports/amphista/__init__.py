"""The Amphista report."""

"""The Týr reports."""

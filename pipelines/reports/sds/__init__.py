"""The SDS reports."""

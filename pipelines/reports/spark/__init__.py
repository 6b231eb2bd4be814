"""The SparK report."""

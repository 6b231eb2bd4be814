"""Benchmarks, costs and records of decoding."""

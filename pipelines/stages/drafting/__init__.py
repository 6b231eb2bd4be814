"""Traces and the draft that learns from them."""

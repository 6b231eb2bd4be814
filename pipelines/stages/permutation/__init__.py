"""Stages that search, learn, fold and use orders of channels."""

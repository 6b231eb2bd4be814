"""Passes over a few tokens, as fast as this machine can: runner, slots, attention, steps."""

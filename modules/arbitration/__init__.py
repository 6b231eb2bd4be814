"""Arbitration: a learned choice between a draft's and a target's token where they differ."""

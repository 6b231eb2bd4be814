"""Arbitration between draft and target: pairs, tries, policies, verdicts."""

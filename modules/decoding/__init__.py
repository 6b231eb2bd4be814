"""Speculative decoding: a runner, a proposer, a verifier and the session that joins them."""

"""Rules that decide which drafted tokens are kept; each sees logits only, never a model."""

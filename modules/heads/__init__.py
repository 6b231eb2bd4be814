"""Heads on a frozen target's last hidden state that guess several tokens at once."""

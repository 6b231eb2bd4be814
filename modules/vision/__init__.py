"""Pictures: a small data set that needs no network, and a classifier trained on it."""

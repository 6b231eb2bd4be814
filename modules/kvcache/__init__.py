"""Key-value caches that hold less: channels pruned per token, tokens evicted, numbers rounded."""

"""Loading causal language models and finding their parts."""

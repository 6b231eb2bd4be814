"""SDS: sparse-dense-sparse pruning (arXiv 2408.10473)."""

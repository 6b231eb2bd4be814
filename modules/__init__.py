"""The methods: usable from a notebook with torch alone; no Hydra, no W&B, no pipelines."""

"""Small models that draft for a large one: their training text, their shape, their training."""

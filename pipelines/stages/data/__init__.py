"""Models, texts, windows, prompts and tasks that come in."""

"""Text sources and token windows."""

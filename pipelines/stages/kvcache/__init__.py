"""What compressed caches keep, and how fast they are read."""

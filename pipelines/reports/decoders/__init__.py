"""Reports on decoders: FLy, Amphista, CoSpec."""

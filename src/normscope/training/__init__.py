"""One run: its config, its checkpoint, its result."""

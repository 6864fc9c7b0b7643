"""Pictures: each takes a Dataset and an optional Axes, and returns the Axes. No torch here."""

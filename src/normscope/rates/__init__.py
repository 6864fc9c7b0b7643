"""The largest and the best learning rates: the search, its trials, and where they start."""

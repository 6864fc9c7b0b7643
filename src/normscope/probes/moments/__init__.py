"""Mean and variance of each channel: exact, fast, or from a batch norm that takes them anyway."""

"""Many runs: the grid, the store, and the locks on it."""

"""Somebody's own model and batch: building, unwrapping, mini-batches, loss, layers, and leaving no trace."""

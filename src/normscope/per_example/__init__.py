"""Squared norms of the gradients of single examples, found in one pass over the batch."""

from normscope.per_example.passes import PerExample, gradient, per_example, trainable

__all__ = ["PerExample", "gradient", "per_example", "trainable"]

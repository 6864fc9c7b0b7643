"""For a user's own pytest: `assert_can_learn(model, batches)`."""

from normscope.testing.learning import assert_can_learn

__all__ = ["assert_can_learn"]

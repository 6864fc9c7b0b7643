"""Numbers that hang on a model and are no tensors: random generators of its own, numpy arrays."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

HELD = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState, np.ndarray)


def way_back(thing: Any) -> Callable[[], object] | None:
    """What puts one of `HELD` back to what it is now; None for what has no state, or cannot be written to."""
    if isinstance(thing, np.ndarray):
        if not thing.flags.writeable or isinstance(thing, np.memmap):  # which is a file's
            return None
        kept = thing.copy()
        return lambda: np.copyto(thing, kept)
    if isinstance(thing, random.SystemRandom):
        return None
    if isinstance(thing, random.Random):
        drawn = thing.getstate()
        return lambda: thing.setstate(drawn)
    if isinstance(thing, np.random.Generator):
        bits, at = thing.bit_generator, thing.bit_generator.state
        return lambda: setattr(bits, "state", at)
    found = thing.get_state()
    return lambda: thing.set_state(found)

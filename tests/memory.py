"""How much memory torch gives out, counted and not sampled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that torch has given out at once while `work` ran."""
    return int(np.cumsum(changes(work)).max())


def kept_bytes(work: Callable[[], object]) -> int:
    """The memory that torch has given out while `work` ran and not got back by its end."""
    return sum(changes(work))


def changes(work: Callable[[], object]) -> list[int]:
    """Bytes given out (positive) and got back, in the order of time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events: Any = profiler.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    sizes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return [size for _, size in sizes]

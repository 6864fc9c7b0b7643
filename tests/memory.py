"""How much memory torch gives out, counted and not sampled."""

from collections.abc import Callable

import numpy as np
import torch


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that torch has given out at once while `work` ran."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = profiler.profiler.kineto_results.events()  # pyright: ignore[reportOptionalMemberAccess]
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return int(np.cumsum([change for _, change in changes]).max())

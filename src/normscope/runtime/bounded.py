"""A piece of work that ends when its time is over, wherever it stands."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType


@dataclass
class InTime:
    """Whether the work came to its end."""

    kept: bool = True


class _TimeIsOver(KeyboardInterrupt):
    """As Ctrl-C, which nobody's handler takes for a fault of the work."""


@contextmanager
def bounded(seconds: float | None) -> Iterator[InTime]:
    """Leave the block when `seconds` are over (None: never) by an alarm, and say so; what is inside cleans up as for
    Ctrl-C. Only a process's main thread can be alarmed: elsewhere the block runs to its end."""
    state = InTime()
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield state
        return
    if seconds <= 0:
        seconds = 1e-3

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _TimeIsOver

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield state
    except _TimeIsOver:
        state.kept = False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

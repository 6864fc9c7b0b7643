"""Interrupts wait while a model is put back: Ctrl-C, an alarm, whatever signal runs a handler that may raise.

Python runs such a handler between any two steps of the main thread, so no `finally` is safe from it by itself.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from types import CodeType, FrameType
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_SIGNALS = tuple(int(signum) for signum in signal.Signals)

_WAYS_OUT: set[CodeType] = set()
"""Of the `__exit__` methods at whose very first step an interrupt already has to wait."""


class Interrupts:
    """Stands in for the handlers of all signals that run Python code, from `hold` to `release`.

    While `at_once` is true a signal's own handler is called as ever, but on the way out of the `with` statement;
    otherwise the signal waits. In other threads than the main one, which Python never interrupts, it does nothing.
    """

    def __init__(self) -> None:
        self.at_once = False
        self._handlers: dict[int, Any] = {}
        self._held: list[int] = []
        self._waiting: list[int] = []
        self._stand_in = self._arrive  # one object, to be told from what others set meanwhile

    def hold(self) -> None:
        """Take the place of the handlers."""
        if not _in_main_thread():
            return
        for signum in _SIGNALS:
            handler = signal.getsignal(signum)
            if callable(handler):
                self._handlers[signum] = handler
                self._held.append(signum)
                signal.signal(signum, self._stand_in)

    def deliver(self) -> None:
        """Call the handlers of what has waited, each of which may raise."""
        try:
            if self._waiting:
                signum = self._waiting.pop(0)
                # No frame: there is none to show, and handlers further out must not take this for their own way out.
                self._handlers[signum](signum, None)
        finally:
            if self._waiting:
                self.deliver()

    def release(self) -> None:
        """Put the handlers back, unless somebody has set others, and call those of what has waited."""
        try:
            self._put_back()
        finally:
            self.at_once = True  # where it could not be put back: in another thread
            self.deliver()

    def _put_back(self) -> None:
        try:
            while self._held and _in_main_thread():
                signum = self._held[-1]
                if signal.getsignal(signum) is self._stand_in:
                    signal.signal(signum, self._handlers[signum])
                self._held.pop()
        finally:
            if self._held and _in_main_thread():
                self._put_back()  # a handler that is back already has raised

    def _arrive(self, signum: int, frame: FrameType | None) -> None:
        if self.at_once and not _is_on_its_way_out(frame):
            self._handlers[signum](signum, frame)
        else:
            self._waiting.append(signum)


def waits_on_exit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark an `__exit__` method: no interrupt comes between a body and it, as long as its object's `is_open` is true.

    The object has to hold, or to lead to, `Interrupts` that are released by the time that it is left.
    """
    _WAYS_OUT.add(function.__code__)
    return function


def restoring(function: Callable[P, Iterator[T]]) -> Callable[P, AbstractContextManager[T]]:
    """`contextlib.contextmanager` for a generator that yields inside `with untouched(...)`: where that of contextlib is
    interrupted before it goes on with the generator, the model stays as it is."""

    @wraps(function)
    def manager(*args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[T]:
        return _Restoring(function(*args, **kwargs))

    return manager


class _Restoring(AbstractContextManager[T]):
    def __init__(self, generator: Iterator[T]) -> None:
        self._generator: Any = generator
        self._manager = contextmanager(lambda: generator)()

    @property
    def is_open(self) -> bool:
        """Whether the generator waits at its yield."""
        return self._generator.gi_suspended

    def __enter__(self) -> T:
        try:
            return next(self._generator)
        except BaseException:
            self._generator.close()  # an interrupt behind its yield leaves it open
            raise

    @waits_on_exit
    def __exit__(self, *error: Any) -> bool | None:
        return self._manager.__exit__(*error)


def _is_on_its_way_out(frame: FrameType | None) -> bool:
    """Whether the step that is interrupted is one of a marked `__exit__`, or of what it calls before all else."""
    for _ in range(4):
        if frame is None:
            return False
        if frame.f_code in _WAYS_OUT:
            return bool(frame.f_locals["self"].is_open)
        frame = frame.f_back
    return False


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()

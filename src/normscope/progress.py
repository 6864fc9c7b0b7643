"""Progress on anything longer than two seconds: a bar with time left on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Lock, Timer

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PATIENCE_SECONDS = 2.0
"""Nothing is shown before this long: what is quick needs no bar."""

LINE_SECONDS = 15.0
"""Without a terminal, one plain line at most this often."""


class Bar:
    """What a measurement tells of its advance; shows nothing by itself."""

    def advance(self, doing: str = "", by: float = 1) -> None:
        """`by` more units are done; `doing` says in a few words what comes or came."""


class _TerminalBar(Bar):
    def __init__(self, name: str, total: float, console: Console) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[doing]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(name, total=total, doing="")

    def show(self) -> None:
        self._progress.start()

    def advance(self, doing: str = "", by: float = 1) -> None:
        self._progress.update(self._task, advance=by, doing=doing)

    def close(self) -> None:
        self._progress.stop()


class _Lines(Bar):
    def __init__(self, name: str, total: float) -> None:
        self._name, self._total, self._done = name, total, 0.0
        self._begun = time.monotonic()
        self._next = self._begun + PATIENCE_SECONDS

    def show(self) -> None:
        if not self._done:
            print(f"{self._name}: begun", file=sys.stderr, flush=True)

    def advance(self, doing: str = "", by: float = 1) -> None:
        self._done += by
        now = time.monotonic()
        if now >= self._next and self._done:
            self._next = now + LINE_SECONDS
            left = (now - self._begun) / self._done * max(self._total - self._done, 0)
            share = min(100, round(100 * self._done / max(self._total, 1e-9)))
            line = f"{self._name}: {share}%, {timedelta(seconds=round(left))} left"
            print(f"{line}, {doing}" if doing else line, file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


_showing = Lock()
"""One bar at a time: what runs inside a measurement that shows its own progress stays silent."""


@contextmanager
def progress(name: str, total: float) -> Iterator[Bar]:
    """A bar for `total` units of work called `name`, on the error stream; silent inside another bar's work.

    >>> with progress("figure3", total=10) as bar:
    ...     bar.advance("seed 0, with BN")
    """
    if not _showing.acquire(blocking=False):
        yield Bar()
        return
    console = Console(stderr=True)
    bar = _TerminalBar(name, total, console) if console.is_terminal else _Lines(name, total)
    timer = Timer(PATIENCE_SECONDS, bar.show)
    timer.daemon = True
    timer.start()
    try:
        yield bar
    finally:
        timer.cancel()
        timer.join()
        bar.close()
        _showing.release()

"""Progress on anything longer than two seconds: a bar with time left on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
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
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[doing]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(name, total=total, doing="")
        self._begun = time.monotonic()
        self._shown = False

    def advance(self, doing: str = "", by: float = 1) -> None:
        self._progress.update(self._task, advance=by, doing=doing)
        if not self._shown and time.monotonic() - self._begun > PATIENCE_SECONDS:
            self._shown = True
            self._progress.start()

    def close(self) -> None:
        if self._shown:
            self._progress.stop()


class _Lines(Bar):
    def __init__(self, name: str, total: float) -> None:
        self._name, self._total, self._done = name, total, 0.0
        self._begun = time.monotonic()
        self._next = self._begun + PATIENCE_SECONDS

    def advance(self, doing: str = "", by: float = 1) -> None:
        self._done += by
        now = time.monotonic()
        if now >= self._next:
            self._next = now + LINE_SECONDS
            left = (now - self._begun) / max(self._done, 1e-9) * max(self._total - self._done, 0)
            share = min(100, round(100 * self._done / max(self._total, 1e-9)))
            line = f"{self._name}: {share}%, {timedelta(seconds=round(left))} left"
            print(f"{line}, {doing}" if doing else line, file=sys.stderr, flush=True)


@contextmanager
def progress(name: str, total: float) -> Iterator[Bar]:
    """A bar for `total` units of work called `name`, on the error stream.

    >>> with progress("figure3", total=10) as bar:
    ...     bar.advance("seed 0, with BN")
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(name, total)
        return
    bar = _TerminalBar(name, total, console)
    try:
        yield bar
    finally:
        bar.close()

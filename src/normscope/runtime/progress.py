"""Progress on anything longer than two seconds: a bar with time left on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Lock, Timer

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

from normscope.runtime.quiet import is_quiet

PATIENCE_SECONDS = 2.0
"""Nothing is shown before this long: what is quick needs no bar."""

LINE_SECONDS = 15.0
"""Without a terminal, one plain line at most this often."""


class Bar:
    """What a measurement tells of its advance; shows nothing by itself."""

    def advance(self, doing: str = "", by: float = 1) -> None:
        """`by` more units are done; `doing` says in a few words what comes or came."""

    def skip(self, by: float) -> None:
        """`by` units need not be done, or were done before: they say nothing about the time left."""
        self.advance(by=by)

    @contextmanager
    def part(self, doing: str, by: float = 1) -> Iterator[None]:
        """`by` units of work called `doing`; what it shows of its own progress moves this bar."""
        global _inside
        before, _inside = _inside, _Part(self, doing, by)
        self.advance(doing, by=0)
        try:
            yield
        finally:
            self.advance(doing, by=_inside.left)
            _inside = before


class _Part(Bar):
    """A share of another bar."""

    def __init__(self, whole: Bar, doing: str, units: float) -> None:
        self._whole, self._doing, self.left = whole, doing, units
        self.scale = 0.0

    def advance(self, doing: str = "", by: float = 1) -> None:
        by = min(by * self.scale, self.left)
        self.left -= by
        self._whole.advance(f"{self._doing}: {doing}" if doing else self._doing, by=by)


_inside: _Part | None = None


class Relayed(Bar):
    """A bar that another process shows: every advance goes to `send(doing, by)`, and nothing is shown in this process
    from now on."""

    def __init__(self, send: Callable[[str, float], None]) -> None:
        self._send = send
        _showing.acquire(blocking=False)

    def advance(self, doing: str = "", by: float = 1) -> None:
        """Tell the process that shows it."""
        self._send(doing, by)


class _Pace:
    """How long the units that are left will take, if each takes as long as those so far did on average."""

    def __init__(self, total: float) -> None:
        self.total, self.done = total, 0.0
        self.begun = self._last = time.monotonic()

    def advance(self, by: float) -> None:
        if by:
            self.done, self._last = self.done + by, time.monotonic()

    def left(self) -> str:
        if not self.done:
            return "-:--:--"
        then = (self._last - self.begun) / self.done * max(self.total - self.done, 0)
        return str(timedelta(seconds=round(max(then - (time.monotonic() - self._last), 0))))


class _TimeLeft(ProgressColumn):
    """That of a pace. (rich's own knows only the last 30 seconds, in which a long epoch does not end.)"""

    def __init__(self, pace: _Pace) -> None:
        super().__init__(table_column=_whole(7))
        self._pace = pace

    def render(self, task: Task) -> Text:
        return Text(self._pace.left(), style="progress.remaining")


def _whole(width: int) -> Column:
    """A column that a long text beside it does not squeeze."""
    return Column(min_width=width, no_wrap=True)


class _TerminalBar(Bar):
    def __init__(self, name: str, total: float, console: Console) -> None:
        self._pace = _Pace(total)
        self._progress = Progress(
            TextColumn("[bold]{task.description}", table_column=_whole(len(name))),
            BarColumn(bar_width=20, table_column=_whole(20)),
            TaskProgressColumn(table_column=_whole(4)),
            TimeElapsedColumn(table_column=_whole(7)),
            TextColumn("left", table_column=_whole(4)),
            _TimeLeft(self._pace),
            TextColumn("{task.fields[doing]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(name, total=total, doing="")

    def show(self) -> None:
        self._progress.start()

    def advance(self, doing: str = "", by: float = 1) -> None:
        self._pace.advance(by)
        self._progress.update(self._task, advance=by, doing=doing)

    def skip(self, by: float) -> None:
        self._pace.total -= by
        self._progress.update(self._task, total=self._pace.total)

    def close(self) -> None:
        self._progress.stop()


class _Lines(Bar):
    def __init__(self, name: str, total: float) -> None:
        self._name, self._pace = name, _Pace(total)
        self._next = self._pace.begun + PATIENCE_SECONDS

    def show(self) -> None:
        if not self._pace.done:
            print(f"{self._name}: begun", file=sys.stderr, flush=True)

    def advance(self, doing: str = "", by: float = 1) -> None:
        self._pace.advance(by)
        now = time.monotonic()
        if now >= self._next and self._pace.done:
            self._next = now + LINE_SECONDS
            share = min(100, round(100 * self._pace.done / max(self._pace.total, 1e-9)))
            line = f"{self._name}: {share}%, {self._pace.left()} left"
            print(f"{line}, {doing}" if doing else line, file=sys.stderr, flush=True)

    def skip(self, by: float) -> None:
        self._pace.total -= by

    def close(self) -> None:
        pass


_showing = Lock()
"""One bar at a time: what runs inside a measurement that shows its own progress stays silent."""


@contextmanager
def progress(name: str, total: float) -> Iterator[Bar]:
    """A bar for `total` units of work called `name`, on the error stream; inside another bar's work it is silent, or
    moves that one, if called in its `part`.

    >>> with progress("figure3", total=10) as bar:
    ...     bar.advance("seed 0, with BN")
    """
    if is_quiet():
        yield Bar()
        return
    if not _showing.acquire(blocking=False):
        if _inside is not None:
            _inside.scale = _inside.left / max(total, 1e-9)
        yield _inside or Bar()
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

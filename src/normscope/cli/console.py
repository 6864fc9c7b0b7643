"""Where words and tables are printed: as wide as the terminal, or wide enough for a file, or nowhere."""

import os
import sys
from io import TextIOWrapper
from typing import NoReturn

from rich.console import Console

from normscope.errors import OutputError

FILE_WIDTH = 160

TEXT = 79
"""Columns of text in a file."""

NARROWEST, WIDEST = 60, 100
"""Terminals for which text is broken: lines longer than that are hard to read."""


def console() -> Console:
    """A console for the output stream."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=FILE_WIDTH)


def text_width() -> int:
    """Columns of text: one less than the terminal has."""
    terminal = Console()
    return min(max(terminal.width, NARROWEST), WIDEST) - 1 if terminal.is_terminal else TEXT


def writable_streams() -> None:
    """Let both streams take every text, with escapes for what their encoding lacks.

    Raises:
        SystemExit: where the output is closed, so that an answer would be lost after a long measurement.
    """
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    if sys.stdout is None:
        print("normscope: the output is closed: leave it open, or send it to a file", file=sys.stderr)
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def flush_output() -> None:
    """Write out what was printed; OutputError where nobody takes it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OutputError(f"cannot write the output: {error.strerror}; what was measured is kept") from error


def leave(code: int) -> NoReturn:
    """End the process though its output cannot be written: without Python's own attempt to, and complaint."""
    sys.stderr.flush()
    os._exit(code)

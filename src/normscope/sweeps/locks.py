"""Who works on which run, so that two drivers on one folder share its runs instead of doing them twice.

A claim is a lock on one byte of a file, at the place that the run's key says. The operating system drops it when the
process that holds it ends, however it ends, so that no claim outlives a kill.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Self

from normscope.errors import OutputError, cannot_write, one_line

_PLACES = 15
"""Hex digits of a key that make the byte's place, which has to fit into 63 bits."""


class Claims:
    """The claims of this process on the runs of one folder; closing it, or the process's end, drops them.

    Raises:
        OutputError: where the file cannot be made, or its file system knows no locks.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from error

    def take(self, key: str) -> bool:
        """Claim a run; False where another process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, int(key[:_PLACES], 16))
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise OutputError(
                f"cannot lock {self._path}: {error.strerror or one_line(error)}; give an `out` on another file system"
            ) from error
        return True

    def drop(self, key: str) -> None:
        """Give a claim back."""
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, int(key[:_PLACES], 16))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

"""Every exception raised on purpose. Each message is one line: what is wrong, what was there, what to do."""

import sysconfig
import traceback
from collections.abc import Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from normscope.version import __version__

_OURS = Path(__file__).resolve().parent
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))


class NormscopeError(Exception):
    """Base of all: the command line prints its message as one line and exits non-zero."""


class InvalidConfig(NormscopeError):
    """An option, a name or a number that cannot be used."""


class InvalidBatch(NormscopeError):
    """A batch on which the loss cannot be computed."""


class InvalidModel(NormscopeError):
    """A model that cannot be probed or changed as asked."""


class DataError(NormscopeError):
    """A data set that is missing, damaged or cannot be downloaded."""


class DeviceError(NormscopeError):
    """A device that is not there, or has no memory left."""


class ResultError(NormscopeError):
    """A result file that is missing, damaged or from something else."""


class OutputError(NormscopeError):
    """A place that cannot be written: read-only, full, not a folder."""


class RunFailed(NormscopeError):
    """Runs of a sweep that could not be carried out."""


class ClusterError(NormscopeError):
    """A Ray cluster that is not there, or cannot carry out a sweep."""


class TrainingAlarm(NormscopeError):
    """What a watch that was asked to raises on an alarm."""


class InternalError(NormscopeError):
    """A bug of normscope's own: its message says where it is, and what to report."""


class Interrupted(NormscopeError):
    """Ctrl-C, where nothing of what was done is kept."""


def one_line(error: BaseException) -> str:
    """An exception's message on one line, cut after 300 characters; the name of its type where it has none."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # an error of somebody's own, whose text is code too
        text = ""
    return text[:300] or type(error).__name__


def cannot_write(place: object, error: OSError | ValueError) -> OutputError:
    """What to raise where a file or folder cannot be written, or its name cannot be one."""
    return OutputError(f"cannot write {place}: {getattr(error, 'strerror', '') or one_line(error)}; give another `out`")


def raised(error: BaseException) -> str:
    """What somebody's own code raised and where, on one line: "KeyError: 'x' (at mine.py:12)"."""
    return f"{type(error).__name__}: {one_line(error)}{at(error)}"


def at(error: BaseException) -> str:
    """The innermost line of an error's traceback that is neither ours nor an installed library's, as " (at
    file.py:line)" seen from the current folder; empty where there is none."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        path = Path(frame.f_code.co_filename)
        with suppress(OSError):  # the current folder may be gone
            if not path.is_file() or any(path.resolve().is_relative_to(folder) for folder in (_OURS, *_LIBRARIES)):
                continue
            if path.resolve().is_relative_to(Path.cwd()):
                path = path.resolve().relative_to(Path.cwd())
            return f" (at {path}:{line})"
    return ""


def bug(error: BaseException) -> str:
    """A bug of normscope's own on one line, to be reported; empty where it is somebody else's, or may be.

    Ours is a mistake of programming that a line of ours made, or a library called from there. Not ours is what passed
    through somebody's own code or through torch, both of which run the model.
    """
    if isinstance(error, OSError | MemoryError | RecursionError) or not isinstance(error, Exception):
        return ""  # what is nested too deep is somebody's batch or model
    paths = [(Path(frame.f_code.co_filename), line) for frame, line in traceback.walk_tb(error.__traceback__)]
    inside = [i for i, (path, _) in enumerate(paths) if path.is_relative_to(_OURS)]
    if not inside or at(error):
        return ""
    called = [path for path, _ in paths[inside[-1] + 1 :]]
    of_torch = isinstance(error, RuntimeError) and not called  # its functions without a line of Python
    if of_torch or any("torch" in path.parts for path in called):
        return ""
    path, line = paths[inside[-1]]
    where = f"{path.relative_to(_OURS.parent)}:{line}, version {__version__}"
    return f"bug in normscope: {type(error).__name__}: {one_line(error)} (at {where}): please report this line"


def unknown(kind: str, name: object, known: Iterable[str]) -> InvalidConfig:
    """The error for a name that is not among the known ones, with the near miss where there is one."""
    names = list(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ";"
    return InvalidConfig(f"unknown {kind} {name!r}{hint} known: {', '.join(names)}")

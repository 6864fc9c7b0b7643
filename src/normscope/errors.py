"""Every exception raised on purpose. Each message is one line: what is wrong, what was there, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


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


class Interrupted(NormscopeError):
    """Ctrl-C, where nothing of what was done is kept."""


def one_line(error: BaseException) -> str:
    """An exception's message on one line, cut after 300 characters; the name of its type where it has none."""
    text = " ".join(str(error).split())
    return text[:300] or type(error).__name__


def unknown(kind: str, name: object, known: Iterable[str]) -> InvalidConfig:
    """The error for a name that is not among the known ones, with the near miss where there is one."""
    names = list(known)
    near = get_close_matches(str(name), names, n=1)
    hint = f": did you mean {near[0]!r}?" if near else ";"
    return InvalidConfig(f"unknown {kind} {name!r}{hint} known: {', '.join(names)}")

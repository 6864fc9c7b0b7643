"""What carries out the runs of a sweep: this machine's processes, or those of a cluster.

An engine maps runs over its workers. It takes configs from an iterator, one whenever a worker is free (taking one
claims it, so none should be taken early), and yields what happens, in any order. It writes nothing into the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from normscope.errors import NormscopeError
from normscope.sweeps.store import RunFiles
from normscope.training.config import RunConfig


@dataclass(frozen=True)
class Advanced:
    """A run begins, or has got to the end of an epoch. For the progress bar only: an engine may leave these out."""

    config: RunConfig
    epochs: int
    """How many are over; the first one says where the run begins, with a checkpoint not at 0."""


@dataclass(frozen=True)
class Finished:
    """A run is over, diverged or not."""

    config: RunConfig
    files: RunFiles


@dataclass(frozen=True)
class Failed:
    """A run could not be carried out, and would not be if tried again."""

    config: RunConfig
    error: NormscopeError


Event = Advanced | Finished | Failed

Engine = Callable[[Iterator[RunConfig]], Iterator[Event]]
"""Closing the iterator that it returns stops all workers at once."""

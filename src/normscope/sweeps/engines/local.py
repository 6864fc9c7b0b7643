"""The engine of this machine: worker processes, each computing with a few threads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

from normscope import errors
from normscope.errors import RunFailed, one_line
from normscope.sweeps.engines.engine import Advanced, Engine, Event, Failed, Finished
from normscope.sweeps.store import RunFiles, Store
from normscope.training.config import RunConfig
from normscope.training.epochs import CHECKPOINT_SECONDS

MAX_DEATHS = 3
"""A run whose workers died this often without ending an epoch in between is given up."""

Task = Callable[[RunConfig], dict[str, Any]]
"""What a worker is told of a run, in plain values."""


def local_engine(
    store: Store,
    *,
    workers: int,
    threads: int = 1,
    data_dir: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Engine:
    """Carry out runs on `workers` processes of `threads` each, with their checkpoints in the store's scratch.

    A worker that dies, say for lack of memory, is replaced, and its run goes on from the checkpoint.
    """
    options = {
        "data_dir": None if data_dir is None else str(Path(data_dir).absolute()),
        "threads": threads,
        "checkpoint_seconds": checkpoint_seconds,
    }

    def task_of(config: RunConfig) -> dict[str, Any]:
        return {"config": config.to_mapping(), "checkpoint": str(store.checkpoint(config).absolute()), **options}

    def engine(configs: Iterator[RunConfig]) -> Iterator[Event]:
        pool: list[_Worker] = []
        try:
            for config in islice(configs, workers):
                pool.append(_Worker(config, task_of, threads))
            while pool:
                ready = wait([worker.connection for worker in pool])
                for worker in [worker for worker in pool if worker.connection in ready]:
                    event = worker.event()
                    if isinstance(event, Finished | Failed):
                        following = next(configs, None)
                        if following is None:
                            worker.kill()
                            pool.remove(worker)
                        else:
                            worker.give(following)  # first, so that it trains while this run is being kept
                    if event is not None:
                        yield event
        finally:
            for worker in pool:
                worker.kill()

    return engine


class _Worker:
    """A process of this machine, and the run that it is at."""

    connection: Connection[Any, Any]

    def __init__(self, config: RunConfig, task_of: Task, threads: int) -> None:
        self._task_of, self._threads = task_of, threads
        self._start()
        self.give(config)

    def give(self, config: RunConfig) -> None:
        """Begin a run, or go on with it."""
        self._config, self._deaths, self._epochs = config, 0, 0
        if self._process.poll() is not None:
            self.kill()  # what is left of it: its socket and file
            self._start()
        self._tell()

    def event(self) -> Event | None:
        """What the worker has to say; None where it died, was replaced, and there is nothing to say yet."""
        try:
            message = json.loads(self.connection.recv_bytes())
            if "outcome" in message:
                files = RunFiles(self.connection.recv_bytes(), self.connection.recv_bytes(), message["outcome"])
                return Finished(self._config, files)
        except (EOFError, OSError):
            return self._died()
        if "error" in message:
            return Failed(self._config, getattr(errors, message["kind"])(message["error"]))
        if message["epochs"] > self._epochs:
            self._deaths, self._epochs = 0, message["epochs"]
        return Advanced(self._config, message["epochs"])

    def kill(self) -> None:
        """End the process at once: the run's checkpoint is whole at any moment."""
        self._process.kill()
        self._process.wait()
        self.connection.close()
        self._complaints.close()

    def _start(self) -> None:
        self.connection, theirs = Pipe()
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the worker
        # A session of its own, so that Ctrl-C is the driver's to answer; -P, so that no file of the working directory
        # stands in for a module; the driver's own path, so that the same code runs wherever PYTHONPATH leads by now.
        path = os.pathsep.join(str(folder) for folder in sys.path if folder)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "normscope.sweeps.engines.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._complaints,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(self._threads)},
            start_new_session=True,
        )
        theirs.close()

    def _tell(self) -> None:
        with suppress(OSError):  # it died: reading from it says so
            self.connection.send_bytes(json.dumps(self._task_of(self._config)).encode())

    def _died(self) -> Failed | None:
        status = self._process.wait()
        self._complaints.seek(0)
        complaint = one_line(Exception(self._complaints.read().decode(errors="replace")[-300:]))
        self.kill()
        self._deaths += 1
        if self._deaths >= MAX_DEATHS:
            how = f"signal {-status}" if status < 0 else f"exit code {status}"
            said = f": {complaint}" if complaint != "Exception" else ""
            message = f"its worker died {self._deaths} times ({how}){said}; is there memory enough?"
            return Failed(self._config, RunFailed(message))
        self._start()
        self._tell()
        return None

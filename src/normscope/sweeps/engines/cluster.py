"""The engine of a Ray cluster (extra `normscope[ray]`): the same runs as `local`, on the nodes of the cluster.

Each worker is an actor that holds its processors, and a GPU where the runs want one, until the sweep is over. The
driver hands it a run when it is free, and gives the run of one that is lost, with its node or alone, to the next.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

from normscope.errors import ClusterError, RunFailed, one_line
from normscope.sweeps.engines.engine import Advanced, Engine, Event, Failed, Finished
from normscope.sweeps.engines.local import MAX_DEATHS
from normscope.sweeps.engines.node import NodeWorker
from normscope.sweeps.store import RunFiles
from normscope.training.config import PROTOCOL, RunConfig, key
from normscope.training.epochs import CHECKPOINT_SECONDS
from normscope.version import __version__

ANSWER_SECONDS = 5.0
"""How long the cluster's head may take to accept a connection."""

PROBE_SECONDS = 20.0
"""How long the head may take to prove that it is Ray's: it takes two or three seconds where nothing is wrong."""

LOOK_SECONDS = 5.0
"""How often the driver looks for nodes that have come, and whether the head is still there."""

WAIT_SECONDS = 0.5
"""The longest that the driver waits in one go: Ctrl-C is answered in between."""


def ray_engine(
    address: str,
    *,
    workers: int | None = None,
    threads: int = 1,
    gpu: bool | None = False,
    data_dir: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
) -> Engine:
    """Carry out runs on a Ray cluster that is up; this machine has to be one of its nodes.

    Args:
        address: HOST:PORT of the cluster's head, or "auto" for the one that this machine belongs to.
        workers: runs at once; by default as many as the nodes that are there have room for, also those that come later.
        threads: of each run, and the processors that it takes.
        gpu: whether each takes a GPU too; None for yes where the cluster has one.
        data_dir: where CIFAR-10 lies on each node; else the node's own NORMSCOPE_DATA, else it is downloaded there.

    Raises:
        ClusterError: where Ray is not installed or nobody answers at the address; later on, where Ray refuses, no node
            has room for a run, a node has another normscope, or the head has gone.
    """
    ray = _ray()
    _check_answers(address)
    options = {
        "data_dir": None if data_dir is None else str(Path(data_dir).absolute()),
        "threads": threads,
        "checkpoint_seconds": checkpoint_seconds,
    }

    def engine(configs: Iterator[RunConfig]) -> Iterator[Event]:
        first = next(configs, None)
        if first is None:
            return  # nothing to do is no reason to connect
        if not ray.is_initialized():
            _check_is_ray(address)
        with _connected(ray, address):
            wants_gpu = ray.cluster_resources().get("GPU", 0) >= 1 if gpu is None else gpu
            resources = {"num_cpus": threads, "num_gpus": int(wants_gpu)}
            pool = _Pool(ray, configs, first, resources, options, workers)
            try:
                yield from pool.events()
            finally:
                pool.kill()

    return engine


class _Run:
    """A run that is under way, or lost its worker: how often its workers died without ending an epoch in between."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.deaths, self.epochs = config, 0, 0


class _Worker:
    """An actor, what the driver awaits of it, and the run that it is at, if any."""

    def __init__(self, ray: Any, resources: dict[str, Any]) -> None:
        # Not restarted by Ray: what was lost is given out again from here, where it is known what is done.
        self.actor = ray.remote(max_restarts=0, max_task_retries=0, **resources)(NodeWorker).remote(
            gpu=resources["num_gpus"] > 0
        )
        self.run: _Run | None = None
        self.awaited = self.actor.free.remote(None)

    def give(self, run: _Run, options: dict[str, Any]) -> None:
        self.run = run
        method = self.actor.run.options(num_returns="streaming")
        self.awaited = method.remote(run.config.to_mapping(), **options)


class _Pool:
    """The workers, and the runs that are to be given to them."""

    def __init__(
        self,
        ray: Any,
        configs: Iterator[RunConfig],
        first: RunConfig,
        resources: dict[str, Any],
        options: dict[str, Any],
        workers: int | None,
    ) -> None:
        self._ray, self._configs, self._resources, self._options = ray, configs, resources, options
        self._begun = deque([_Run(first)])
        self._wanted = workers
        self._workers: list[_Worker] = []
        self._over = False
        """No config is left to be taken."""

    def events(self) -> Iterator[Event]:
        looked = -LOOK_SECONDS
        while self._begun or self._workers or not self._over:
            if time.monotonic() - looked >= LOOK_SECONDS or not self._workers:
                self._look()
                looked = time.monotonic()
            ready, _ = self._ray.wait([worker.awaited for worker in self._workers], timeout=WAIT_SECONDS)
            for worker in [worker for worker in self._workers if worker.awaited in ready]:
                try:
                    yield from self._answered(worker)
                except self._ray.exceptions.RayError as error:
                    yield from self._died(worker, error)
                    looked = -LOOK_SECONDS

    def kill(self) -> None:
        for worker in self._workers:
            with suppress(Exception):  # the cluster may be gone
                self._ray.kill(worker.actor, no_restart=True)
        self._workers.clear()

    def _look(self) -> None:
        """Start as many workers as there is room for, while there is something to do."""
        _check_answers(self._ray.get_runtime_context().gcs_address, was_there=True)
        wanted = self._wanted or self._room()
        while len(self._workers) < wanted and (self._begun or not self._over):
            self._workers.append(_Worker(self._ray, self._resources))

    def _room(self) -> int:
        """How many runs the nodes that are up can take at once; others may use some of it."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        needs = {name: self._resources[f"num_{name.lower()}s"] for name in ("CPU", "GPU")}
        room = sum(min(int(has.get(name, 0) // need) for name, need in needs.items() if need) for has in nodes)
        if not room and not self._workers:
            there = ", ".join(f"{has.get('CPU', 0):g} CPU and {has.get('GPU', 0):g} GPU" for has in nodes)
            raise ClusterError(
                f"no node of the cluster has {needs['CPU']} CPU and {needs['GPU']} GPU for a run; it has: {there}; "
                "where nodes come when they are asked for, give `workers`"
            )
        return room

    def _answered(self, worker: _Worker) -> Iterator[Event]:
        run = worker.run
        if run is None:
            _check_versions(self._ray.get(worker.awaited))
            self._employ(worker)
            return
        said = self._ray.get(next(worker.awaited))
        if isinstance(said, int):
            if said > run.epochs:
                run.deaths, run.epochs = 0, said
            yield Advanced(run.config, said)
            return
        worker.run = None
        if isinstance(said, RunFiles):
            worker.awaited = worker.actor.free.remote(key(run.config))
            yield Finished(run.config, said)
        else:
            worker.awaited = worker.actor.free.remote(None)
            yield Failed(run.config, said)

    def _employ(self, worker: _Worker) -> None:
        """Give a free worker the next run, or let it go."""
        if not self._begun and not self._over:
            following = next(self._configs, None)
            self._over = following is None
            if following is not None:
                self._begun.append(_Run(following))
        if self._begun:
            worker.give(self._begun.popleft(), self._options)
        else:
            self._ray.kill(worker.actor, no_restart=True)
            self._workers.remove(worker)

    def _died(self, worker: _Worker, error: Exception) -> Iterator[Event]:
        self._workers.remove(worker)
        with suppress(Exception):
            self._ray.kill(worker.actor, no_restart=True)
        if getattr(error, "actor_init_failed", False):
            raise ClusterError(f"a worker of the cluster does not start: {_last_line(error)}") from error
        run = worker.run
        if run is None:
            return
        run.deaths += 1
        if run.deaths < MAX_DEATHS:
            self._begun.append(run)
            return
        why = one_line(error)
        yield Failed(
            run.config, RunFailed(f"its worker died {run.deaths} times; is there memory enough? Ray says: {why}")
        )


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(Exception(lines[-1] if lines else error))


def _check_versions(theirs: tuple[str, int]) -> None:
    if tuple(theirs) != (__version__, PROTOCOL):
        raise ClusterError(f"a node has normscope {theirs[0]}, this machine {__version__}: install one on all nodes")


def _ray() -> Any:
    # Keeps a hint about this variable off the terminal; Ray reads it when it is imported.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise ClusterError("a cluster needs Ray, which is not installed: pip install 'normscope[ray]'") from error
    return ray


def _check_answers(address: str, *, was_there: bool = False) -> None:
    """ClusterError where the address is none, or nobody accepts a connection there."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or "://" in address or not port.isdigit():
        raise ClusterError(f"{address!r} is no address of a cluster: give HOST:PORT of its head, or auto")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        if was_there:
            raise ClusterError(f"the cluster at {address} has gone ({reason}); what is done is kept") from error
        raise ClusterError(
            f"no Ray cluster answers at {address} ({reason}): start one with `ray start --head`"
        ) from error


def _check_is_ray(address: str) -> None:
    """ClusterError where what accepts connections there is no Ray.

    Asked in a process of its own: Ray itself waits for two minutes, prints what it finds, and ends the process.
    """
    if address == "auto":
        return
    asking = [sys.executable, "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        asked = subprocess.run(
            asking, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        asked = None
    if asked is None or asked.returncode:
        raise ClusterError(
            f"what answers at {address} is no Ray cluster: give HOST:PORT of its head, as `ray start --head` names it"
        )


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Inside, this process is a driver of the cluster; one that was connected before stays so."""
    if ray.is_initialized():
        yield
        return
    terminate = signal.getsignal(signal.SIGTERM)
    # Whatever it is told below, Ray prints what it has to say of lost nodes, which the driver deals with itself: this
    # is how Ray's own debugger silences it.
    ray._private.worker._worker_logs_enabled = False
    try:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
        except Exception as error:
            raise ClusterError(f"no Ray cluster can be used at {address}: {one_line(error)}") from error
        finally:
            if current_thread() is main_thread():
                signal.signal(signal.SIGTERM, terminate)  # Ray puts its own in place
        yield
    finally:
        ray.shutdown()
        ray._private.worker._worker_logs_enabled = True

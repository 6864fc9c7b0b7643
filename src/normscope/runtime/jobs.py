"""Several measurements at once, each in a forked process of its own that computes with one thread.

Forked, since models, losses and loaders need not be picklable; with one thread, since the OpenMP runtime of torch does
not outlive a fork with more. What comes back is pickled: results, exceptions, and what the bar is to show.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

from normscope.errors import DeviceError, InvalidConfig, NormscopeError, raised
from normscope.runtime.progress import Bar, Relayed

MOST_WORKERS = 8
"""With more threads than this, one measurement after the other on all of them is the default."""

KILLED = (
    "its process was killed, perhaps for lack of memory: "
    "try fewer at once (`workers=1`, OMP_NUM_THREADS=1) or smaller batches"
)

Job = Callable[[Bar], Any]
"""A measurement; what it shows of its progress moves the bar."""

Results = Callable[[Bar], Iterator[tuple[int, Any]]]
"""Carries the jobs out, and gives the place of each and its result as they end; a NormscopeError is a result."""

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl."""

_ADVANCED, _DONE, _RAISED = range(3)

_STOP = signal.SIGUSR1 if sys.platform != "win32" else signal.SIGINT
"""Tells a process at work of Ctrl-C. A terminal sends its own signal to all of them, which only the parent heeds."""


def usable_workers(asked: int | None, num_jobs: int) -> int:
    """How many jobs to carry out at once.

    By default one for every thread that torch has, where that is eight or fewer and processes can be forked: on Linux,
    with no GPU beside the processor (autograd's threads for it do not outlive a fork either), and not from a process
    that may have no children.

    Raises:
        InvalidConfig: where more than one is asked for and cannot be.
    """
    if asked is not None and asked < 1:
        raise InvalidConfig(f"workers is {asked}: give how many variants are measured at once, at least 1")
    forks = sys.platform == "linux" and not torch.accelerator.is_available()
    if not forks and asked is not None and asked > 1:
        raise InvalidConfig(f"workers is {asked}: variants are measured at once on Linux without a GPU only; give 1")
    threads = torch.get_num_threads()
    default = threads if forks and threads <= MOST_WORKERS else 1
    may_fork = not multiprocessing.current_process().daemon
    return min(default if asked is None else asked, num_jobs) if may_fork else 1


@contextmanager
def side_by_side(jobs: Sequence[Job], workers: int) -> Iterator[Results]:
    """The jobs, to be carried out in their order; with one worker in this process, with its threads.

    Processes are forked at once, before anything shows a bar (whose thread and locks a fork had better not meet), and
    wait for their turn. None outlives the context.
    """
    if workers == 1:
        yield lambda bar: _in_turn(jobs, bar)
        return
    context = multiprocessing.get_context("fork")
    processes, pipes = [], []
    try:
        for job in jobs:
            ours, theirs = _pipe(context)
            pipes.append(ours)
            process = context.Process(target=_serve, args=(job, theirs, list(pipes), os.getpid()))
            with warnings.catch_warnings():
                # Python cannot know that the other threads are torch's, idle, and not used by the child.
                warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
                process.start()
            processes.append(process)
            theirs.close()
        yield lambda bar: _at_once(pipes, processes, workers, bar)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def _pipe(context: Any) -> tuple[Connection, Connection]:
    try:
        return context.Pipe()
    except OSError as error:
        raise DeviceError(
            f"no process can be started ({error.strerror}): give 1 for workers, or raise the limit (`ulimit -n`)"
        ) from error


def _in_turn(jobs: Sequence[Job], bar: Bar) -> Iterator[tuple[int, Any]]:
    for place, job in enumerate(jobs):
        try:
            result = job(bar)
        except NormscopeError as error:
            result = error
        yield place, result


def _at_once(
    pipes: Sequence[Connection], processes: Sequence[Any], workers: int, bar: Bar
) -> Iterator[tuple[int, Any]]:
    """Start a job in its turn whenever one has ended. After Ctrl-C none is started, and those at work are interrupted
    themselves and may still give what they have; after another nothing is waited for."""
    waiting, running = deque(range(len(pipes))), dict[Connection, int]()
    interrupted = False
    while waiting or running:
        while waiting and len(running) < workers:
            place = waiting.popleft()
            running[pipes[place]] = place
            with suppress(OSError):  # the process is gone: reading from it will say so
                pipes[place].send(None)
        try:
            every = wait(list(running))
        except KeyboardInterrupt:
            if interrupted or not running:
                raise
            interrupted = True
            waiting.clear()
            for place in running.values():
                with suppress(ProcessLookupError):
                    os.kill(processes[place].pid, _STOP)
            continue
        for ready in every:
            assert isinstance(ready, Connection)
            what, value = _received(ready)
            if what == _ADVANCED:
                bar.advance(*value)
            elif what == _DONE or isinstance(value, NormscopeError):
                yield running.pop(ready), value
            elif interrupted and isinstance(value, KeyboardInterrupt):
                running.pop(ready)  # it had nothing to keep
            else:
                raise value


def _received(pipe: Connection) -> tuple[int, Any]:
    """What a process tells, and what that is; a killed one tells nothing any more."""
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return _DONE, DeviceError(KILLED)


def _serve(job: Job, pipe: Connection, others: Sequence[Connection], parent: int) -> None:
    """In the forked process: wait for the start, do the job, tell."""
    _end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, and tells this process
    signal.signal(_STOP, signal.default_int_handler)
    for other in others:
        other.close()  # or the end of the parent would go unnoticed
    torch.set_num_threads(1)
    with suppress(EOFError, BrokenPipeError):  # the parent is gone
        pipe.recv()
        bar = Relayed(lambda doing, by: pipe.send((_ADVANCED, (doing, by))))
        try:
            pipe.send((_DONE, job(bar)))
        except BrokenPipeError:
            raise
        except BaseException as error:
            _send_error(pipe, error)


def _end_with(parent: int) -> None:
    """Have Linux kill this process when the one that forked it ends, however it ends, also in the middle of a job."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)


def _send_error(pipe: Connection, error: BaseException) -> None:
    error.add_note("".join(traceback.format_exception(error)))  # a traceback itself is not pickled
    try:
        ForkingPickler.loads(ForkingPickler.dumps(error))  # pyright: ignore[reportAttributeAccessIssue]
    except Exception:  # of a type that does not travel
        error = RuntimeError(raised(error))
    pipe.send((_RAISED, error))

"""Contestants in turns: what each takes beside the floor, round by round, and the memory it needs.

A benchmark is a module of this folder that `python -m benchmarks.NAME [rows.json]` runs; `python -m benchmarks` runs
them all. Those that measure with this module read

    if __name__ == "__main__":
        report(__doc__, measure())

where `measure` yields a `Row` for each contestant.
"""

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.machine import about, headline, write_json
from normscope.runtime.allocator import keep_large_blocks

Work = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """What came out for one contestant."""

    name: str
    seconds: float
    """Median wall time over rounds."""
    wall: tuple[float, float, float]
    """Wall time as a share of the floor's in the same round: median, lower and upper quartile."""
    processor: tuple[float, float, float]
    """The same for processor time, summed over threads: what other work on the machine disturbs least. On a GPU, the
    time between two CUDA events around the work."""
    peak_bytes: int | None = None
    """The most that torch has allocated at once, beyond what was there before; None if not measured."""
    quality: Mapping[str, float] = field(default_factory=dict)
    """Errors, and whatever else a faster contestant could have paid with."""


def in_turns(
    contestants: Mapping[str, Work], *, rounds: int, device: str = "cpu"
) -> dict[str, list[tuple[float, float]]]:
    """Wall and processor seconds of every contestant in every round, after one round to warm up; on a GPU wall seconds
    to the end of the work there, and the seconds between two CUDA events.

    The order turns by one place from round to round, so that nobody always runs behind the same neighbour.
    """
    timed = _on_gpu if device.startswith("cuda") else _on_processor
    names = list(contestants)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            spent = timed(contestants[name])
            if turn:
                taken[name].append(spent)
    return taken


def _on_processor(work: Work) -> tuple[float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def _on_gpu(work: Work) -> tuple[float, float]:
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    wall = time.perf_counter()
    begun.record()
    work()
    ended.record()
    torch.cuda.synchronize()
    return time.perf_counter() - wall, begun.elapsed_time(ended) / 1e3


def rows(
    contestants: Mapping[str, Work],
    *,
    rounds: int,
    floor: str | None = None,
    memory: bool = False,
    quality: Mapping[str, Mapping[str, float]] | None = None,
    device: str = "cpu",
) -> list[Row]:
    """Let the contestants take turns, and compare each with the floor (the first, if not named) of the same round."""
    taken = in_turns(contestants, rounds=rounds, device=device)
    base = taken[floor or next(iter(contestants))]
    result = []
    for name, spent in taken.items():
        turns = list(zip(spent, base, strict=True))
        result.append(
            Row(
                name,
                statistics.median(wall for wall, _ in spent),
                median_and_quartiles([mine[0] / its[0] for mine, its in turns]),
                median_and_quartiles([mine[1] / its[1] for mine, its in turns]),
                peak_bytes(contestants[name], device) if memory else None,
                (quality or {}).get(name, {}),
            )
        )
    return result


def median_and_quartiles(values: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(values) < 2:
        return (values[0],) * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return middle, low, high


def peak_bytes(work: Work, device: str = "cpu") -> int:
    """The most memory that torch's allocator has given out at once while `work` ran; counted, not sampled."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    with _stderr_closed(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for _, change in sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"):
        held += change
        peak = max(peak, held)
    return peak


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """The profiler writes two lines of its own to the file descriptor."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def report(question: str | None, measured: Iterable[Row]) -> None:
    """Print the question's first line, the machine, and the rows as they come; store them as JSON where a path is
    given, row by row, so that what was measured outlives a failure."""
    keep_large_blocks()  # as the command line does: page faults cost whoever comes first, the floor too
    path = sys.argv[1] if len(sys.argv) > 1 else None
    print((question or "").split("\n")[0])
    print(headline())
    print(f"{'':34}{'seconds':>9}{'wall':>8}{'(quartiles)':>16}{'processor':>11}{'(quartiles)':>16}{'peak MB':>9}")
    kept: list[Row] = []
    described = about()
    for row in measured:
        kept.append(row)
        wall, processor = (f"{m:.3f}{f'({low:.3f} {high:.3f})':>16}" for m, low, high in (row.wall, row.processor))
        peak = "" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"
        quality = ", ".join(f"{name} {value:.2g}" for name, value in row.quality.items())
        print(f"{row.name:34}{row.seconds:9.3f}{wall:>24}{processor:>27}{peak:>9}  {quality}", flush=True)
        if path:
            write_json(path, {**described, "rows": [asdict(row) for row in kept]})

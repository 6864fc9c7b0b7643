"""What does a sweep's bookkeeping cost, beside its runs and when a folder holds 10,000 of them?

First: twenty runs of about a second each on one worker. The floor is what any training script does: build the network
and its optimizer (timed alone, in this process), train and evaluate (the seconds that the results themselves report).
Bookkeeping is what is left of the wall time, without the start of the worker's process: checkpoints, outcome, encoding,
sending, writing, claiming, progress, and reading all results in the end. Target: below 2 %.
Then: 10,000 finished runs, made from one real result with other seeds, rates, norms and keys. `normscope runs DIR` and
`load_runs`, each in a new process (start of Python and imports included, and by itself), at first reading every file,
then with the index that the first reading left. Target: below 2 s.

    python -m benchmarks.sweep_bookkeeping [rows.json]
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import normscope as ns
from benchmarks.machine import about, headline, write_json
from normscope.data import load_data
from normscope.sweeps.engines.engine import Finished
from normscope.sweeps.engines.local import local_engine
from normscope.sweeps.record import encoded_record
from normscope.sweeps.store import Store
from normscope.training.config import RunConfig, key
from normscope.training.epochs import descent
from normscope.training.train import num_threads

RUN = RunConfig(net="resnet8", data="digits", epochs=6, precision="fp32", device="cpu")
RUNS, ROUNDS, MANY = 20, 3, 10_000

LISTING = "from normscope.sweeps.listing import listing as read"
LOADING = "from normscope.sweeps.runs import load_runs as read"
READING = """
import sys, time
{imports}
began = time.perf_counter()
found = read(sys.argv[1])
print(time.perf_counter() - began)
if hasattr(found, "rows"):
    print(len(found.rows))
else:
    print(int((found["outcome"] != "missing").sum()))
"""


def beside_the_runs() -> tuple[float, float, float]:
    """Wall seconds from the first run's begin to the last one's end, seconds of the runs, seconds to the first run."""
    configs = [replace(RUN, seed=seed) for seed in range(RUNS)]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        first = 0.0

        def engine(chosen: Iterator[RunConfig]) -> Iterator[object]:
            nonlocal first
            for event in local_engine(Store(Path(folder)), workers=1)(chosen):
                first = first or time.perf_counter()
                yield event
                assert not isinstance(event, Finished) or event.files.outcome != "diverged"

        runs = ns.sweep(configs, folder, engine=engine)  # pyright: ignore
        return time.perf_counter() - first, float(runs["seconds"].sum()), first - begun


def seconds_to_build() -> float:
    """Median seconds in which one thread makes a run's network and optimizer."""
    data, taken = load_data(RUN.data), []
    with num_threads(1):
        for seed in range(RUNS):
            began = time.perf_counter()
            descent(replace(RUN, seed=seed), data, checkpoint=None)
            taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def many(folder: Path) -> None:
    """Result files of many runs, each a real one's with a config and key of its own."""
    (folder / "runs").mkdir()
    original = ns.train(RUN, threads=1)
    for norm in ("batch", "none"):
        for lr in (0.1, 0.03, 0.01, 0.003, 0.001):
            for seed in range(MANY // 10):
                config = replace(RUN, norm=norm, lr=lr, seed=seed)
                attrs = {"key": key(config), "seed": seed, "config": json.dumps(config.to_mapping())}
                path = folder / "runs" / f"{key(config)}.json"
                path.write_bytes(encoded_record(original.assign_attrs(attrs)))


def seconds_of(command: list[str], expected: str) -> tuple[float, float]:
    """Of a whole process, and what it says of its own reading (its first line), if anything."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    taken = time.perf_counter() - began
    assert expected in done.stdout, done.stdout[-500:]
    first = done.stdout.partition("\n")[0]
    return taken, float(first) if first.replace(".", "").isdigit() else float("nan")


def main() -> None:
    print((__doc__ or "").split("\n")[0])
    print(headline(), flush=True)
    described = about()
    build = seconds_to_build()
    rows: list[dict[str, Any]] = []
    for _ in range(ROUNDS):
        wall, trained, start = beside_the_runs()
        beside = wall / RUNS - trained / RUNS - build
        print(
            f"{RUNS} runs of {trained / RUNS:.2f} s, building {1e3 * build:.1f} ms each: bookkeeping "
            f"{1e3 * beside:.1f} ms, {beside * RUNS / wall:.2%}; start {start:.2f} s",
            flush=True,
        )
        rows.append({"name": "bookkeeping", "wall": wall, "trained": trained, "build": build, "start": start})
    with tempfile.TemporaryDirectory() as folder:
        many(Path(folder))
        runs = [sys.executable, "-c", "from normscope.cli import main; main()", "runs", folder]
        commands = {
            "normscope runs": (runs, f"{MANY} finished"),
            "listing": ([sys.executable, "-c", READING.format(imports=LISTING), folder], f"\n{MANY}\n"),
            "load_runs": ([sys.executable, "-c", READING.format(imports=LOADING), folder], f"\n{MANY}\n"),
        }
        print(f"{f'{MANY} runs':20}{'process':>9}{'reading':>9}", flush=True)
        for _ in range(ROUNDS):
            for name, (command, expected) in commands.items():
                process, reading = seconds_of(command, expected)
                print(f"{name:20}{process:9.2f}{reading:9.2f}", flush=True)
                rows.append({"name": name, "process": process, "reading": reading})
    if len(sys.argv) > 1:
        write_json(sys.argv[1], {**described, "rows": rows})


if __name__ == "__main__":
    main()

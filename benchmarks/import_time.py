"""What does `import normscope` cost beside `import torch`, and how long does `normscope --help` take?

Every turn is a fresh interpreter, timed from outside, its own start-up included; the floor is `import torch`. "With a
probe" is `import normscope` and the first use of `relative_loss`, which brings torch and xarray along: what a script
that measures something waits for. Targets: `import normscope` at most 1.15 times the floor, `normscope --help` at most
0.5 s. Quality: how many modules were loaded, and whether torch was (1) or not (0).

    python -m benchmarks.import_time [rows.json]
"""

import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.timing import Row, median_and_quartiles, report

ROUNDS = 9
LOADED = "import sys; print(len(sys.modules), int('torch' in sys.modules))"
HELP = "import sys; sys.argv = ['normscope', '--help']; from normscope.cli import main; main()"
FLOOR = "import torch"
CONTESTANTS = {
    FLOOR: "import torch",
    "    import normscope": "import normscope",
    "    with a probe": "import normscope; normscope.relative_loss",
    "    torch and xarray": "import torch; import xarray",
    "    normscope --help": HELP,
    "    python alone": "pass",
}

ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Compiled modules are kept, as they are by default: the first round pays for them."""


def start(code: str) -> tuple[float, float]:
    """Wall and processor seconds of a fresh interpreter that runs the code."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, env=ENVIRONMENT)
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - wall
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def loaded(code: str) -> dict[str, float]:
    """How many modules the code loads, and whether torch is one of them."""
    guarded = f"try:\n    exec({code!r})\nexcept SystemExit:\n    pass\n{LOADED}"
    output = subprocess.run([sys.executable, "-c", guarded], check=True, capture_output=True, text=True).stdout
    modules, torch = output.split()[-2:]
    return {"modules": int(modules), "torch": int(torch)}


def measure() -> Iterator[Row]:
    names = list(CONTESTANTS)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in range(ROUNDS + 1):  # the first warms the disk's cache up
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            spent = start(CONTESTANTS[name])
            if turn:
                taken[name].append(spent)
    for name, spent in taken.items():
        turns = list(zip(spent, taken[FLOOR], strict=True))
        yield Row(
            name,
            statistics.median(wall for wall, _ in spent),
            median_and_quartiles([mine[0] / its[0] for mine, its in turns]),
            median_and_quartiles([mine[1] / its[1] for mine, its in turns]),
            quality=loaded(CONTESTANTS[name]),
        )


if __name__ == "__main__":
    report(__doc__, measure())

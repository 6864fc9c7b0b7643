"""Run all benchmarks, or those named: `python -m benchmarks [--out FOLDER] [NAME ...]`.

Each runs in a process of its own, so that none inherits another's memory or caches, and writes its rows to
FOLDER/NAME.json. A benchmark that fails does not stop the others; it is named at the end, and the exit status is 1.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.machine import missing

NOT_BENCHMARKS = ("__init__", "__main__", "calls", "machine", "timing", "training_runs", "training_tasks")

OUT = Path("benchmark-results")

INTERRUPTED = 130


def names() -> list[str]:
    """Every module of this folder that is a benchmark."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_BENCHMARKS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"all, if not some of: {', '.join(names())}")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder for the rows as JSON; by default {OUT}")
    given = parser.parse_args()
    for name in given.names:
        if name not in names():
            parser.error(f"unknown benchmark {name!r}: one of {', '.join(names())}")
    given.out.mkdir(parents=True, exist_ok=True)
    for rival in missing():
        print(f"{rival} is left out: it is not installed")
    failed = []
    for name in given.names or names():
        print(f"\n== {name}", flush=True)
        begun = time.monotonic()
        command = [sys.executable, "-m", f"benchmarks.{name}", str(given.out / f"{name}.json")]
        if status := subprocess.run(command, check=False).returncode:
            failed.append(name)
        print(f"{f'failed with status {status}, ' if status else ''}{time.monotonic() - begun:.0f} s", flush=True)
    print(f"\nrows: {given.out}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)

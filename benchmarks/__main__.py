"""Run all benchmarks, or those named: `python -m benchmarks [--out FOLDER] [NAME ...]`.

Each runs in a process of its own, so that none inherits another's memory or caches; with `--out` its rows are written
to FOLDER/NAME.json.
"""

import argparse
import subprocess
import sys
from pathlib import Path

NOT_BENCHMARKS = ("__init__", "__main__", "timing")


def names() -> list[str]:
    """Every module of this folder that is a benchmark."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in NOT_BENCHMARKS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of: {', '.join(names())}")
    parser.add_argument("--out", type=Path, help="folder for the rows as JSON")
    given = parser.parse_args()
    for name in given.names:
        if name not in names():
            parser.error(f"unknown benchmark {name!r}: one of {', '.join(names())}")
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in given.names or names():
        print(f"\n== {name}", flush=True)
        rows = [str(given.out / f"{name}.json")] if given.out else []
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *rows], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())

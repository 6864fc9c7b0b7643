"""How many workers, of how many threads each, make a sweep on this machine fastest?

Contestants, interleaved: one worker of one thread (the floor), two of one thread, one of two threads, and the default.
Each carries out the same eight runs of a ResNet-20 on digits (1,000 images, 15 epochs, about 4 s each) in fp32 into an
empty folder, the start of its processes included. "per hour" is runs per hour beside the floor's of the same round,
with quartiles. Quality: in how many weights files the bits differ from those of the first sweep with as many threads
("differ", must be 0).

    python -m benchmarks.sweep_workers [rows.json]
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import normscope as ns
from benchmarks.machine import about, headline, write_json
from benchmarks.timing import median_and_quartiles
from normscope.training.config import RunConfig

ROUNDS = 4
CONTESTANTS: dict[str, dict[str, int]] = {
    "1 worker of 1 thread": {"workers": 1, "threads": 1},
    "2 workers of 1 thread": {"workers": 2, "threads": 1},
    "1 worker of 2 threads": {"workers": 1, "threads": 2},
    "the default": {},
}
CONFIGS = [
    RunConfig(
        net="resnet20",
        norm=norm,
        data="digits",
        train_size=1000,
        epochs=15,
        lr=0.01,
        seed=seed,
        precision="fp32",
        device="cpu",
    )
    for norm in ("batch", "none")
    for seed in range(4)
]


def weights(options: dict[str, int]) -> tuple[float, dict[str, bytes]]:
    """Seconds of a sweep, and its weights files."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        ns.sweep(CONFIGS, folder, **options)  # pyright: ignore
        seconds = time.perf_counter() - began
        return seconds, {path.name: path.read_bytes() for path in (Path(folder) / "runs").glob("*.safetensors")}


def main() -> None:
    print((__doc__ or "").split("\n")[0])
    print(headline(), flush=True)
    described = about()
    names = list(CONTESTANTS)
    taken: dict[str, list[float]] = {name: [] for name in names}
    differ = dict.fromkeys(names, 0)
    first: dict[int, dict[str, bytes]] = {}
    for turn in range(ROUNDS):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            options = CONTESTANTS[name]
            seconds, files = weights(options)
            taken[name].append(seconds)
            expected = first.setdefault(options.get("threads", 1), files)
            differ[name] += sum(files[key] != expected[key] for key in expected)
    rows = []
    print(f"{'':24}{'seconds':>9}{'per hour':>10}{'(quartiles)':>16}{'differ':>8}")
    for name in names:
        faster = [floor / mine for floor, mine in zip(taken[names[0]], taken[name], strict=True)]
        middle, low, high = median_and_quartiles(faster)
        rows.append({"name": name, "seconds": taken[name], "per_hour": faster, "differ": differ[name]})
        spread = f"({low:.2f} {high:.2f})"
        print(f"{name:24}{statistics.median(taken[name]):9.2f}{middle:10.3f}{spread:>16}{differ[name]:8}")
    if len(sys.argv) > 1:
        write_json(sys.argv[1], {**described, "rows": rows})


if __name__ == "__main__":
    main()

"""What a sweep's folder holds, as text: `normscope runs DIR`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from normscope.errors import ResultError
from normscope.sweeps.grid import FIELDS, axes_of, value_of
from normscope.sweeps.record import RunRecord, read_record
from normscope.sweeps.store import Store, config_of
from normscope.training.config import LATER_FIELDS, PROTOCOL


@dataclass(frozen=True)
class Listing:
    """The finished runs of a folder."""

    axes: tuple[str, ...]
    """The fields that vary."""
    rows: list[tuple[str, ...]]
    """For each run its key, its values along the axes, outcome, epochs, last training and test accuracy, seconds."""
    summary: str
    """What all have in common, and how many are under way, in one or two lines."""
    damaged: list[ResultError]

    def raise_damaged(self) -> None:
        """Raise the error of the first damaged file, if there is one."""
        if self.damaged:
            raise self.damaged[0]


def listing(folder: str | Path) -> Listing:
    """Read the results of a folder, those that can be read; ResultError where it is no sweep's."""
    store = Store(Path(folder))
    runs: list[RunRecord] = []
    damaged: list[ResultError] = []
    others = 0
    for path in store.result_paths():
        try:
            run = read_record(path, ("steps", "train_accuracy", "test_accuracy", "seconds"))
        except ResultError as error:
            damaged.append(error)
            continue
        if run.attrs["protocol"] == PROTOCOL:
            runs.append(run)
        else:
            others += 1
    configs = [config_of(run) for run in runs]
    axes = tuple(axes_of(configs))
    places = sorted(range(len(runs)), key=lambda i: [value_of(configs[i], name) for name in axes])
    rows = [(runs[i].attrs["key"], *(str(value_of(configs[i], n)) for n in axes), *_cells(runs[i])) for i in places]
    counts = [f"{len(runs)} finished"]
    if damaged:
        counts.append(f"{len(damaged)} damaged")
    if others:
        counts.append(f"{others} by another version's protocol")
    if store.scratch.is_dir() and (begun := sum(not p.name.startswith(".") for p in store.scratch.iterdir())):
        counts.append(f"{begun} begun")
    lines = [", ".join(counts)]
    if configs:
        said = [n for n in FIELDS if n not in axes and (n not in LATER_FIELDS or getattr(configs[0], n))]
        lines.insert(0, "all: " + ", ".join(f"{n} {value_of(configs[0], n)}" for n in said))
    return Listing(axes, rows, "\n".join(lines), damaged)


def _cells(run: RunRecord) -> tuple[str, ...]:
    trained = run.values["steps"] > 0
    last = int(trained.nonzero()[0][-1])
    return (
        run.attrs["outcome"],
        f"{trained.sum()}/{run.epochs}",
        f"{run.values['train_accuracy'][last]:.1%}",
        f"{run.values['test_accuracy'][last]:.1%}",
        f"{run.values['seconds'][trained].sum():.0f}",
    )

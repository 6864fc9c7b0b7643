"""The folder of a sweep: finished runs by their keys, and the scratch of those under way.

DIR/runs/KEY.json           result: a run is finished when, and only when, this file is there (KEY.nc in older ones)
DIR/runs/KEY.safetensors    final weights, written before it
DIR/scratch/KEY             checkpoint of a run under way, gone when it is finished
DIR/claims                  who works on what: see `claims`
"""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from normscope.errors import ResultError, cannot_write, one_line
from normscope.results import write_bytes
from normscope.sweeps.record import SUFFIXES, RunRecord
from normscope.training.config import RunConfig, key


@dataclass(frozen=True)
class RunFiles:
    """A finished run as its files hold it: what a worker, near or far, gives back."""

    result: bytes
    """JSON, see `record`."""
    weights: bytes
    """safetensors."""
    outcome: str
    """As in the result's attribute."""


@dataclass(frozen=True)
class Store:
    """The files of a sweep. Only the driver writes into `runs`."""

    folder: Path

    @property
    def runs(self) -> Path:
        """Where finished runs lie."""
        return self.folder / "runs"

    @property
    def scratch(self) -> Path:
        """Where checkpoints lie."""
        return self.folder / "scratch"

    def prepare(self) -> None:
        """Make the folders; OutputError where they cannot be written."""
        for folder in (self.runs, self.scratch):
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # Asked, not tried: a kill in the middle of trying would leave its file behind.
                if not os.access(folder, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            except OSError as error:
                raise cannot_write(folder, error) from error

    def result_path(self, config: RunConfig) -> Path:
        """Where the run's result lies once it is finished."""
        new, old = (self.runs / f"{key(config)}{suffix}" for suffix in SUFFIXES)
        return old if old.is_file() and not new.is_file() else new

    def weights_path(self, config: RunConfig) -> Path:
        """Where the run's final weights lie."""
        return self.runs / f"{key(config)}.safetensors"

    def checkpoint(self, config: RunConfig) -> Path:
        """Where the run's checkpoint lies while it is under way on this machine."""
        return self.scratch / key(config)

    def has(self, config: RunConfig) -> bool:
        """Whether the run is finished."""
        return self.result_path(config).is_file()

    def refuse_damaged(self, config: RunConfig) -> None:
        """Raise ResultError where the weights of a finished run are damaged or another run's; there may be none."""
        from normscope.training.tensor_files import read_tensors  # torch, which a listing does without

        path = self.weights_path(config)
        if not path.is_file():
            return
        try:
            about = read_tensors(path)[1]
            if about.get("key", key(config)) != key(config):
                raise ValueError(f"it is of run {about['key']}")
        except Exception as error:
            raise ResultError(
                f"{path} is damaged ({one_line(error)[:120]}): delete it and {self.result_path(config).name}, "
                "and run the sweep again"
            ) from error

    def put(self, config: RunConfig, files: RunFiles) -> None:
        """Keep a finished run, and drop its checkpoint; OutputError where the files cannot be written."""
        write_bytes(self.weights_path(config), files.weights)
        write_bytes(self.result_path(config), files.result)
        with suppress(OSError):
            self.checkpoint(config).unlink(missing_ok=True)

    def tidy(self, config: RunConfig) -> None:
        """Remove the half-written files that a killed process left of this run. Only for who has claimed it."""
        for folder in (self.runs, self.scratch):
            for part in folder.glob(f".{key(config)}*.part"):
                with suppress(OSError):
                    part.unlink()

    def result_paths(self) -> list[Path]:
        """The results of all finished runs, sorted by key."""
        if not self.runs.is_dir():
            raise ResultError(f"no runs in {self.folder}: it has no folder `runs`; run `normscope sweep` first")
        names = [name for name in os.listdir(self.runs) if name.endswith(SUFFIXES) and not name.startswith(".")]
        found = {name.partition(".")[0]: name for name in sorted(names, reverse=True)}  # .json before .nc
        return [self.runs / found[stem] for stem in sorted(found)]


def config_of(record: RunRecord) -> RunConfig:
    """The config that a run was trained with."""
    return RunConfig.from_mapping(json.loads(record.attrs["config"]))

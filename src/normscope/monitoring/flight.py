"""The flight record: what a watch saw, on disk while the training runs, bounded, and readable whenever it is killed.

    watch.json                  what is trained
    seen/00000123.json          one measurement at step 123, and the steps since the one before; written last
    seen/00000123.safetensors   its numbers
    batches/00000123...         the mini-batch and torch's random state, of the last few
    weights/00000123...         the model's parameters and buffers, of the last two
    postmortem.nc               what a post-mortem found
    earlier/1, earlier/2, ...   records of trainings that were watched into this folder before

Each JSON file carries its own checksum and those of the files beside it. A file is written beside its place and
renamed, so that it is there whole or not at all; what does not match its checksum is passed over and said so.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import xarray as xr

from normscope.errors import ResultError, one_line
from normscope.model.batch import Batch
from normscope.monitoring.alarm import Alarm
from normscope.monitoring.measurement import Measurement
from normscope.monitoring.postmortem import Postmortem
from normscope.monitoring.record import record_of
from normscope.monitoring.signals import FreeStep
from normscope.monitoring.snapshot import array_of, tensors_of
from normscope.results import ensure_writable, load, save, with_attributes, write_bytes

HEADER, POSTMORTEM = "watch.json", "postmortem.nc"

EARLIER = "earlier"

KEPT_MEASUREMENTS = 200
"""Where there are more, every second one of the older half goes."""

KEPT_BATCHES, KEPT_WEIGHTS = 4, 2

LARGEST_BYTES = 2**31
"""Batches and weights larger than this are not kept: 2 GiB."""


class FlightRecord:
    """Writes the record of one training into a folder; the one that is there goes to `earlier`, where that is told."""

    def __init__(self, folder: str | Path, facts: Mapping[str, Any]) -> None:
        self.folder = ensure_writable(folder)
        self.earlier = _set_aside(self.folder)
        for old in (*self.folder.glob("seen/*"), *self.folder.glob("batches/*"), *self.folder.glob("weights/*")):
            old.unlink()
        (self.folder / POSTMORTEM).unlink(missing_ok=True)
        write_checked(self.folder / HEADER, facts)

    def put(
        self,
        steps: Sequence[FreeStep],
        measurement: Measurement | None,
        alarms: Sequence[Alarm],
        batch: Mapping[str, np.ndarray] | None,
        weights: Mapping[str, np.ndarray] | None,
    ) -> None:
        """Write the steps since the last time, a measurement if there is one, and the alarms since then."""
        if not steps:
            return
        name = f"{steps[-1].step:08d}"
        fields = ("step", "loss", "gradient_norm", "lr", "looked_at")
        arrays = {f"steps/{field}": np.array([getattr(each, field) for each in steps]) for field in fields}
        entry: dict[str, Any] = {"alarms": [vars(alarm) for alarm in alarms], "files": {}}
        if measurement is not None:
            arrays |= {f"layers/{key}": np.asarray(values) for key, values in measurement.per_layer.items()}
            arrays |= {
                "tried/multiple": np.array(list(measurement.tried)),
                "tried/loss": np.array(list(measurement.tried.values())),
                "scalars": np.array(list(measurement.scalars.values())),
            }
            entry |= {
                "step": measurement.step,
                "layers": list(measurement.layers),
                "scalars": list(measurement.scalars),
            }
        for place, content, kept in (("batches", batch, KEPT_BATCHES), ("weights", weights, KEPT_WEIGHTS)):
            if content and sum(a.nbytes for a in content.values()) <= LARGEST_BYTES:
                entry["files"][f"{place}/{name}.safetensors"] = self._write(f"{place}/{name}", content)
                for old in sorted((self.folder / place).glob("0*.safetensors"))[:-kept]:
                    old.unlink(missing_ok=True)
        entry["files"][f"seen/{name}.safetensors"] = self._write(f"seen/{name}", arrays)
        write_checked(self.folder / "seen" / f"{name}.json", entry)
        self._thin()

    def write_postmortem(self, found: Postmortem, step: int, batch: Batch) -> None:
        """Write what a post-mortem found, and the mini-batch it was found on."""
        facts = {"cause": found.cause, "in_layer": found.layer, "sentence": found.sentence, "at_step": step}
        facts |= {"example": -1 if found.example is None else found.example, "rate": found.rate}
        content = {f"batch/{place}": array_of(tensor) for place, tensor in tensors_of(batch).items()}
        if content and sum(a.nbytes for a in content.values()) <= LARGEST_BYTES:
            self._write("batches/postmortem", content)
        save(with_attributes(found.dataset, **facts), self.folder / POSTMORTEM)

    def last_weights(self) -> dict[str, np.ndarray]:
        """The newest weights that were kept; empty where there are none."""
        kept = sorted((self.folder / "weights").glob("0*.safetensors"))
        return safetensors.numpy.load(kept[-1].read_bytes()) if kept else {}

    def _write(self, name: str, arrays: Mapping[str, np.ndarray]) -> str:
        content = safetensors.numpy.save({key: np.ascontiguousarray(array) for key, array in arrays.items()})
        write_bytes(self.folder / f"{name}.safetensors", content)
        return hashlib.sha256(content).hexdigest()

    def _thin(self) -> None:
        entries = sorted((self.folder / "seen").glob("*.json"))
        if len(entries) > KEPT_MEASUREMENTS:
            for old in entries[1 : KEPT_MEASUREMENTS // 2 : 2]:
                old.unlink(missing_ok=True)
                old.with_suffix(".safetensors").unlink(missing_ok=True)


def _set_aside(folder: Path) -> Path | None:
    """Move the record in a folder, if it has seen a step, to a numbered one inside it, and give that. What makes it a
    record is moved last, so that one that was interrupted goes on."""
    if not any(folder.glob("seen/*.json")):
        return None
    there = next(place for i in count(1) if not (place := folder / EARLIER / str(i) / "seen").exists()).parent
    there.mkdir(parents=True, exist_ok=True)
    for name in ("batches", "weights", "report.html", POSTMORTEM, HEADER, "seen"):
        if (folder / name).exists():
            (folder / name).rename(there / name)
    return there


@dataclass(frozen=True)
class Flight:
    """A flight record as read."""

    facts: Mapping[str, Any]
    """What is trained: model, optimizer, versions, machine."""
    record: xr.Dataset
    """As `Watch.record` gives it; thinned out where the training was long."""
    alarms: Sequence[Alarm]
    postmortem: xr.Dataset | None
    damaged: Sequence[str]
    """Files that were passed over."""
    weights: Path | None
    """The newest weights that are whole, of a step at which the loss was finite."""


def read_flight(folder: str | Path) -> Flight:
    """Read a flight record, of a training that runs, has ended or was killed.

    Raises:
        ResultError: where there is none.
    """
    folder = Path(folder)
    if not (folder / HEADER).is_file():
        raise ResultError(f"no flight record in {folder}: give the folder that ns.watch(..., out=...) was given")
    facts = _read_checked(folder / HEADER)
    if facts is None:
        raise ResultError(f"{folder / HEADER} is damaged: its checksum does not hold")
    steps: list[FreeStep] = []
    measurements: list[Measurement] = []
    alarms: list[Alarm] = []
    damaged: list[str] = []
    weights: Path | None = None
    for path in sorted((folder / "seen").glob("*.json")):
        entry = _read_checked(path)
        arrays = None if entry is None else _arrays(path.with_suffix(".safetensors"), entry["files"], "seen")
        if entry is None or arrays is None:
            if path.exists():  # else it was thinned out while we read
                damaged.append(path.name)
            continue
        columns = [arrays[f"steps/{field}"].tolist() for field in ("step", "loss", "lr", "gradient_norm", "looked_at")]
        steps += [FreeStep(*row) for row in zip(*columns, strict=True)]
        alarms += [Alarm(**alarm) for alarm in entry["alarms"]]
        if "scalars" in entry:
            scalars = dict(zip(entry["scalars"], arrays["scalars"].tolist(), strict=True))
            per_layer = {key.removeprefix("layers/"): a for key, a in arrays.items() if key.startswith("layers/")}
            tried = dict(zip(arrays["tried/multiple"].tolist(), arrays["tried/loss"].tolist(), strict=True))
            measurements.append(Measurement(entry["step"], scalars, entry["layers"], per_layer, tried))
        candidate = folder / "weights" / f"{path.stem}.safetensors"
        if candidate.is_file() and math.isfinite(columns[1][-1]):
            known = entry["files"].get(f"weights/{candidate.name}")
            if known == hashlib.sha256(candidate.read_bytes()).hexdigest():
                weights = candidate
    try:
        postmortem = load(folder / POSTMORTEM) if (folder / POSTMORTEM).is_file() else None
    except ResultError as error:
        postmortem = None
        damaged.append(one_line(error))
    record = record_of(steps, measurements, alarms, **facts)
    return Flight(facts, record, alarms, postmortem, damaged, weights)


def write_checked(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain values as JSON that carries its own checksum; what is not finite as text."""
    text = json.dumps(_plain(content), allow_nan=False)
    digest = hashlib.sha256(text.encode()).hexdigest()
    write_bytes(path, f'{{"sha256": "{digest}", "content": {text}}}\n'.encode())


def _read_checked(path: Path) -> dict[str, Any] | None:
    """What `write_checked` wrote; None where it is not there, or its checksum does not hold."""
    try:
        text = path.read_text(encoding="utf-8")
        digest, content = text[12:76], text[90:-2]
        if hashlib.sha256(content.encode()).hexdigest() != digest:
            return None
        return _values(json.loads(content))
    except (OSError, ValueError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _values(value: Any) -> Any:
    if isinstance(value, list):
        return [_values(part) for part in value]
    if isinstance(value, dict):
        return float(value["float"]) if set(value) == {"float"} else {key: _values(part) for key, part in value.items()}
    return value


def _arrays(path: Path, known: Mapping[str, str], place: str) -> dict[str, np.ndarray] | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content).hexdigest() != known.get(f"{place}/{path.name}"):
        return None
    return safetensors.numpy.load(content)

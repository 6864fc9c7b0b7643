"""Reproduce the paper: measure exhibit by exhibit into a folder, keep what is already there, judge and report."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from normscope.errors import InvalidConfig
from normscope.paper.exhibit import EXHIBIT, Exhibit, Setting, chosen
from normscope.paper.manifest import PARTS, is_as_listed, notes_of
from normscope.results import ensure_writable, keep, load_if_kept, read_bytes
from normscope.results.netcdf_bytes import is_sealed

RUNS = "training"
"""The folder, among the results, of the runs and searches of those exhibits that train."""


def reproduce(names: Sequence[str], setting: Setting, out: str | Path) -> None:
    """Measure the exhibits of these names (all of the paper where none is named) and save each as `out/NAME.nc` as soon
    as it is done. An exhibit whose result is there already, whole and measured on the same setting by the same
    protocol, is kept; so are the single networks of an unfinished one, and the single runs and searches of those that
    train.

    Raises:
        InvalidConfig: for an unknown exhibit, or one that the scale does not have, and for a network or a mini-batch
            that cannot be, before anything is measured.
        ResultError: for a folder whose manifest is damaged, before anything is measured.
        OutputError: for a folder that cannot be written, before anything is measured; for a full disk, when it is.
    """
    asked = [exhibit for exhibit in chosen(list(names)) if names or not exhibit.by_name]
    wanted = [exhibit for exhibit in asked if exhibit.measured_on(setting)]
    if left_out := set(names) - {exhibit.name for exhibit in wanted}:
        raise InvalidConfig(f"{min(left_out)} is not measured at scale {setting.scale}: choose another `scale`")
    if not setting.seeds:
        raise InvalidConfig("no seeds: give one or more (three for a verdict)")
    if not all(exhibit.trains for exhibit in wanted):
        setting.build("none", 0)
        setting.first_batch(0)
    folder = ensure_writable(out)
    notes_of(folder)  # or a damaged manifest would only be found when all is measured
    setting = replace(setting, runs=folder / RUNS)
    for exhibit in wanted:
        path = folder / f"{exhibit.name}.nc"
        known = {"config": exhibit.config(setting), "protocol": exhibit.protocol, "device": str(setting.device)}
        if not _is_kept(path, exhibit, known):
            dataset = exhibit.measure(replace(setting, parts=folder / PARTS, protocol=exhibit.protocol))
            keep(dataset, path, {**known, EXHIBIT: exhibit.name})
            if exhibit.complete(dataset):
                _remove_parts(folder / PARTS, exhibit)


def _remove_parts(parts: Path, exhibit: Exhibit) -> None:
    """Those of an exhibit that is finished; others' stay."""
    for path in parts.glob(f"{exhibit.name}-*.nc"):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # another's lie there, or none ever did
        parts.rmdir()


def _is_kept(path: Path, exhibit: Exhibit, known: dict[str, Any]) -> bool:
    dataset = load_if_kept(path, known)
    if dataset is None or dataset.attrs.get(EXHIBIT, exhibit.name) != exhibit.name or not exhibit.complete(dataset):
        return False
    # A file from before files had checksums is compared with the manifest's.
    return is_sealed(read_bytes(path)) or is_as_listed(path)

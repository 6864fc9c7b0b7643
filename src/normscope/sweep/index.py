"""The finished runs of a folder, read once: what was read of each file is kept beside them, in DIR/index.

The index only ever saves time. An entry counts while its file is the very one that was read (inode, size, times of
content and of inode, which no program can set back); every other file is read. Whoever finds many of those writes a new
index, whole or not at all; a folder that cannot be written does without.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from normscope.errors import OutputError, ResultError
from normscope.results import write_bytes
from normscope.sweep.record import RunRecord, read_record

LAYOUT = 1
"""Raised whenever what is written below changes; other indices are not used."""

WORTHWHILE = 100
"""Files that had to be read, in one call, for a new index to be written: fewer are read as fast."""

SETTLED_SECONDS = 2.0
"""A file younger than that is not entered: it could change again within one tick of the file system's clock."""

Signature = tuple[int, int, int, int]


def read_records(folder: Path, paths: Iterable[Path]) -> Iterator[RunRecord | ResultError]:
    """For each result file of a sweep's folder, in this order: the run, or why it cannot be read."""
    known = _load(folder / "index")
    entries: dict[str, tuple[Signature, RunRecord]] = {}
    new = 0
    for path in paths:
        signature = _signature(path)
        kept = known.get(path.name)
        if kept is not None and kept[0] == signature:
            entries[path.name] = kept
            yield kept[1]
            continue
        try:
            record = read_record(path)
        except ResultError as error:
            yield error
            continue
        # Signed before it was read and again after: what was read is then one content.
        if signature is not None and signature == _signature(path) and _settled(signature):
            entries[path.name] = signature, record
            new += 1
        yield record
    if new >= WORTHWHILE:
        runs = folder / "runs"
        others = {name: kept for name, kept in known.items() if name not in entries and (runs / name).is_file()}
        with suppress(OutputError, ValueError):
            write_bytes(folder / "index", _encoded({**others, **entries}))


def _signature(path: Path) -> Signature | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _settled(signature: Signature) -> bool:
    return time.time() - max(signature[2:]) / 1e9 > SETTLED_SECONDS


def _encoded(entries: dict[str, tuple[Signature, RunRecord]]) -> bytes:
    """A safetensors file: all values in one array, run by run and variable by variable; the rest as JSON."""
    runs: list[list[Any]] = []
    kinds: dict[str, int] = {}  # what variables a run has: in one sweep all have the same
    blocks: list[np.ndarray] = []
    for name, (signature, record) in entries.items():
        kind = [[n, values.dtype.str, *record.labels[n]] for n, values in record.values.items()]
        block = np.array(list(record.values.values()), dtype=np.float64)
        if any(
            not np.array_equal(row, values, equal_nan=values.dtype.kind == "f")
            for row, values in zip(block, record.values.values(), strict=True)
        ):
            raise ValueError("numbers that float64 does not hold")
        runs.append([name, signature, kinds.setdefault(json.dumps(kind), len(kinds)), record.epochs, record.attrs])
        blocks.append(block.ravel())
    about = {"layout": LAYOUT, "kinds": [json.loads(kind) for kind in kinds], "runs": runs}
    return save_arrays({"values": np.concatenate(blocks)}, {"index": json.dumps(about)})


def _load(path: Path) -> dict[str, tuple[Signature, RunRecord]]:
    """The entries by file name; none where there is no index, or one that cannot be used."""
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})["index"])
            values = file.get_tensor("values")
        if about["layout"] != LAYOUT:
            return {}
        entries: dict[str, tuple[Signature, RunRecord]] = {}
        begin = 0
        for name, signature, number, epochs, attrs in about["runs"]:
            kind = about["kinds"][number]
            block = values[begin : begin + len(kind) * epochs].reshape(len(kind), epochs)
            begin += block.size
            record = RunRecord(
                attrs,
                {n: row.astype(dtype, copy=False) for (n, dtype, *_), row in zip(kind, block, strict=True)},
                {n: (long_name, units) for n, _, long_name, units in kind},
            )
            entries[name] = tuple(signature), record
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, IndexError):
        return {}
    return entries

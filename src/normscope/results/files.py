"""Results on disk: netCDF files, whole or not at all."""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import xarray as xr

from normscope.errors import ResultError, cannot_write, one_line
from normscope.results.dataset import attribute, with_attributes
from normscope.results.netcdf_bytes import is_sealed, refuse_out_of_proportion, sealed

MOST_BYTES = 2**32
"""Of any file that is read whole: far more than a result has."""


def save(result: xr.Dataset | xr.DataTree, path: str | Path) -> Path:
    """Write a result as netCDF, whole or not at all.

    Raises:
        OutputError: where the folder cannot be made or written, or the disk is full.
        ResultError: an attribute that netCDF has no type for.

    Example:
        >>> path = ns.save(ns.product_singular_values(2, size=20, draws=1), "products.nc")
        >>> dict(ns.load(path)["singular_value"].sizes)
        {'factor': 1, 'draw': 1, 'index': 20}
    """
    return write_bytes(path, encoded(result))


def keep(dataset: xr.Dataset, path: str | Path, known: Mapping[str, Any]) -> xr.Dataset:
    """Write a Dataset with these attributes beside its own, by which `load_if_kept` knows it; OutputError as in
    `save`. Returns it as written."""
    dataset = with_attributes(dataset, **{**dataset.attrs, **known})
    save(dataset, path)
    return dataset


def encoded(result: xr.Dataset | xr.DataTree) -> bytes:
    """The result as a netCDF file holds it, with its checksum: see `netcdf_bytes`.

    In memory first: a full disk then fails in one plain write, not deep inside the HDF5 library.
    """
    try:
        return sealed(bytes(result.to_netcdf(engine="h5netcdf")))
    except (TypeError, ValueError) as error:  # attributes that a stranger's file has, say
        raise ResultError(f"this result holds what netCDF cannot: {one_line(error)}") from error


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8, whole or not at all; OutputError as in `save`."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def ensure_writable(folder: str | Path, *, keep: bool = True) -> Path:
    """Make a folder and try to write into it, so that a long measurement does not fail at its end.

    Args:
        keep: False to leave no new folder behind, for work that may yet be refused.

    Raises:
        OutputError: where it cannot be made or written.
    """
    folder = Path(folder)
    new = [] if keep else [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        raise cannot_write(folder, error) from error
    for path in new:
        path.rmdir()
    return folder


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write a file, whole or not at all: beside its place first, then renamed; OutputError as in `save`."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):
            beside.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    return path


def read_bytes(path: str | Path, *, most: int = MOST_BYTES) -> bytes:
    """A file's content; ValueError for one that is larger than `most` bytes, or no plain file, before it is read."""
    path = Path(path)
    if not path.is_file():
        raise ValueError("there is no such file" if not path.exists() else "it is no plain file")
    if (size := path.stat().st_size) > most:
        raise ValueError(f"it is of {size / 2**20:.0f} MiB: {most / 2**20:.0f} MiB are the most that is read")
    return path.read_bytes()


def load(path: str | Path) -> xr.Dataset:
    """Read a Dataset that `save` wrote, wholly into memory.

    Raises:
        ResultError: where there is no such file, it is damaged (its checksum differs, where it has one), or it would
            take far more memory than its size.
    """
    return _own(_read(Path(path), xr.open_dataset))


def load_if_kept(path: str | Path, known: Mapping[str, Any]) -> xr.Dataset | None:
    """The Dataset that `keep` wrote, wholly in memory, if it can be read and has these attributes; else None."""
    try:
        dataset = load(path)
    except ResultError:
        return None
    kept = {name: attribute(dataset, name) for name in known if name in dataset.attrs}
    return dataset if kept == known else None


def load_tree(path: str | Path) -> xr.DataTree:
    """Read a DataTree that `save` wrote, wholly into memory; raises as `load` does."""
    tree = _read(Path(path), xr.open_datatree)
    for node in tree.subtree:
        node.dataset = _own(node.to_dataset(inherit=False))
    return tree


def _own(dataset: xr.Dataset) -> xr.Dataset:
    """Without the encoding of its file, which would cut longer text to the length of the file's when saved again."""
    return dataset.drop_encoding()


def _read(path: Path, opener: Any) -> Any:
    if not path.is_file():
        raise ResultError(f"no result file {path}: run the measurement first")
    try:
        is_sealed(read_bytes(path))
        refuse_out_of_proportion(path)
        # A unit of "seconds" is a unit, and not a request to turn the values into dates.
        with opener(path, engine="h5netcdf", decode_times=False, decode_timedelta=False) as result:
            return result.load()
    except Exception as error:
        raise ResultError(f"{path} is damaged ({one_line(error)}): delete it and measure again") from error

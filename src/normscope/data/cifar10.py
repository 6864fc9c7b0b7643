"""CIFAR-10 in its published layouts: 5 training batches and 1 test batch of 10,000 colour images of 32x32.

binary: data_batch_1.bin ... test_batch.bin, records of 1 label byte and 3072 pixels (red, green, blue).
python: data_batch_1 ... test_batch, pickles of the same.

A copy may be a folder or a tar.gz of either. An archive is read in memory and never extracted. The files of a
copy are checked for number, length and labels, not for a checksum: a copy of one's own may differ on purpose,
and the fingerprint says which it was.
"""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from normscope.data.augmentation import Augmentation
from normscope.data.cifar10_download import download
from normscope.data.cifar10_pickle import read_pickled_batch
from normscope.data.image_data import RawImages
from normscope.errors import DataError, one_line

BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
LAYOUTS = {"binary": tuple(f"{name}.bin" for name in BATCHES), "python": BATCHES}
FOLDERS = ("cifar-10-batches-bin", "cifar-10-batches-py")
ARCHIVES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")

IMAGES_PER_BATCH = 10_000
_PIXELS = 3 * 32 * 32
_MOST_UNZIPPED = 2**29  # bytes; the archives hold 190 million
_LONGEST = 2**26  # bytes; a batch has 31 million, and a longer file is not worth reading


def load_cifar10(data_dir: str | Path | None, *, images_per_batch: int = IMAGES_PER_BATCH) -> RawImages:
    """Find CIFAR-10 in `data_dir`, else in NORMSCOPE_DATA, else download it; check it and read it."""
    return read_cifar10(_find_cifar10(data_dir), images_per_batch=images_per_batch)


def _find_cifar10(data_dir: str | Path | None) -> Path:
    """The folder of batches or the tar.gz to read; DataError where a place that was named does not exist."""
    by = "the data directory" if data_dir else "NORMSCOPE_DATA"
    named = data_dir or os.environ.get("NORMSCOPE_DATA")
    if not named:
        return download()
    place = Path(named).expanduser()
    try:
        found = _find_in(place)
    except OSError as error:
        raise DataError(
            f"{by} {place} cannot be read ({error.strerror}): give the folder or tar.gz of a copy of CIFAR-10"
        ) from error
    return found or download(not_in=place)


def _find_in(place: Path) -> Path | None:
    """The first copy in a folder: one batch makes a copy, so that missing ones are named, not passed over."""
    if not place.is_dir():
        place.stat()  # FileNotFoundError, or whatever else is in the way
        return place
    for folder in (*(place / name for name in FOLDERS), place):
        if folder.is_dir() and _layout(os.listdir(folder)):
            return folder
    return next((place / name for name in ARCHIVES if (place / name).exists()), None)


def _layout(names: list[str]) -> str | None:
    """The layout of which at least one batch is among the names."""
    return next((layout for layout, files in LAYOUTS.items() if set(files) & set(names)), None)


def read_cifar10(place: Path, *, images_per_batch: int = IMAGES_PER_BATCH) -> RawImages:
    """Read a folder of batches or a tar.gz; DataError, naming the file, for what is missing or damaged."""
    try:
        files = _read_folder(place) if place.is_dir() else _read_archive(place)
    except OSError as error:
        raise DataError(f"{error.filename or place} cannot be read: {one_line(error)}") from error
    layout = _layout(list(files))
    if layout is None:
        raise DataError(f"{place} holds no CIFAR-10, neither {LAYOUTS['binary'][0]} nor {BATCHES[0]}")
    missing = [name for name in LAYOUTS[layout] if name not in files]
    if missing:
        raise DataError(f"CIFAR-10 in {place} is incomplete: {', '.join(missing)} missing; copy it again")

    images = np.empty((len(BATCHES), images_per_batch, 3, 32, 32), np.uint8)
    labels = np.empty((len(BATCHES), images_per_batch), np.uint8)
    for index, name in enumerate(LAYOUTS[layout]):
        pixels, labels[index] = _read_batch(files.pop(name), f"{place / name}", layout, images_per_batch)
        images[index] = pixels.reshape(-1, 3, 32, 32)
    return RawImages(
        name="cifar10",
        train_images=images[:-1].reshape(-1, 3, 32, 32),
        train_labels=labels[:-1].reshape(-1),
        test_images=images[-1],
        test_labels=labels[-1],
        num_classes=10,
        augmentation=Augmentation(pad=4, flip=True),
    )


def _read_batch(content: bytes, where: str, layout: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 (count, 3072) and labels uint8 (count,)."""
    if layout == "binary":
        length = count * (1 + _PIXELS)
        if len(content) != length:
            raise DataError(f"{where} is damaged: it has {len(content)} bytes, not {length}; copy it again")
        records = np.frombuffer(content, np.uint8).reshape(count, 1 + _PIXELS)
        labels, pixels = records[:, 0], records[:, 1:]
    else:
        pixels, labels = read_pickled_batch(content, where)
        if len(labels) != count:
            raise DataError(f"{where} is damaged: it has {len(labels)} images, not {count}; copy it again")
    if labels.max() > 9:
        raise DataError(f"{where} is damaged: it has a label {labels.max()}, above 9; copy it again")
    return pixels, labels


def _read_folder(folder: Path) -> dict[str, bytes]:
    wanted = LAYOUTS[_layout(os.listdir(folder)) or "binary"]
    files = {}
    for path in (folder / name for name in wanted):
        if path.is_file():
            _refuse_longer(path.stat().st_size, path)
            files[path.name] = path.read_bytes()
    return files


def _read_archive(path: Path) -> dict[str, bytes]:
    """Every file in a tar.gz that is called as a batch is, wherever in it."""
    if not path.is_file():
        raise DataError(f"{path} is neither a folder nor a tar.gz")
    wanted = {name for names in LAYOUTS.values() for name in names}
    files = {}
    try:
        with gzip.open(path) as zipped:
            unzipped = _Bounded(zipped, path)
            with tarfile.open(fileobj=unzipped, mode="r|") as archive:
                for member in archive:
                    name = PurePosixPath(member.name).name
                    content = archive.extractfile(member) if name in wanted and member.isreg() else None
                    if content is not None:
                        _refuse_longer(member.size, path / member.name)
                        files[name] = content.read()
                    _refuse_larger(member.size > _MOST_UNZIPPED, path)  # tarfile would go on reading at the end
            while unzipped.read(2**20):  # gzip compares its checksum at the very end only
                pass
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole tar.gz ({one_line(error)}): copy it again") from error
    return files


class _Bounded(io.RawIOBase):
    """What an archive unfolds to, up to a few times what CIFAR-10 does."""

    def __init__(self, file: gzip.GzipFile, path: Path) -> None:
        self._file, self._path, self._left = file, path, _MOST_UNZIPPED

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(content)
        _refuse_larger(self._left < 0, self._path)
        return content


def _refuse_larger(is_larger: bool, path: Path) -> None:
    if is_larger:
        raise DataError(f"{path} unfolds to more than {_MOST_UNZIPPED} bytes, which CIFAR-10 does not")


def _refuse_longer(size: int, path: Path) -> None:
    if size > _LONGEST:
        raise DataError(f"{path} is damaged: it has {size} bytes, more than any batch; copy it again")

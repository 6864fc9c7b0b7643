"""CIFAR-10 from where it was published, kept in the user's cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from normscope.errors import DataError, one_line
from normscope.runtime.progress import Bar, progress

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # as published on https://www.cs.toronto.edu/~kriz/cifar.html
MEGABYTES = 170
CHUNK_BYTES = 2**20  # pooch's own 1024 would move the bar 170,000 times


class _Megabytes:
    """The little that pooch asks of a progress bar, told on to ours."""

    total = 0

    def __init__(self, bar: Bar) -> None:
        self._bar = bar

    def update(self, num_bytes: int) -> None:
        self._bar.advance(by=num_bytes / 1e6)

    def reset(self) -> None:
        """After the last byte pooch starts again and fills the bar at once: not to be counted twice."""
        self._bar = Bar()

    def close(self) -> None:
        """The bar closes itself."""


def download(not_in: Path | None = None) -> Path:
    """The tar.gz in the user's cache, downloaded if it is not there, or not with the published checksum.

    not_in: a place that was searched before, to be named where the download fails. Raises DataError then.
    """
    import pooch

    name = URL.rpartition("/")[2]
    log = pooch.get_logger()
    level = log.level
    log.setLevel("WARNING")  # pooch's own line would stand in front of our one
    try:
        with progress("downloading CIFAR-10 (MB)", total=MEGABYTES) as bar:
            shown: Any = _Megabytes(bar)  # pooch documents such objects, and hints at bool alone
            downloader: Any = pooch.HTTPDownloader(progressbar=shown, chunk_size=CHUNK_BYTES)
            cache = pooch.os_cache("normscope")
            return Path(pooch.retrieve(URL, f"md5:{MD5}", fname=name, path=cache, downloader=downloader))
    except (OSError, ValueError) as error:  # requests' errors are OSErrors, a wrong checksum is a ValueError
        where = f"there is no CIFAR-10 in {not_in}, and it" if not_in else "CIFAR-10"
        raise DataError(
            f"{where} could not be downloaded from {URL}: {_reason(error)}."
            " Give the folder of a copy as `data_dir` or NORMSCOPE_DATA, or use `data=digits` (with `scale=quick`)"
        ) from error
    finally:
        log.setLevel(level)


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.HTTPError):
        return one_line(error)
    if isinstance(error, requests.ConnectionError):
        return "no network"
    if isinstance(error, ValueError):
        return "what came does not have the published checksum"
    return one_line(error)

"""Small files that ask for far more memory or time than their size: refused before they are unfolded; and children
that end with their parent."""

import gzip
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import normscope as ns
from normscope.data.cifar10_pickle import read_pickled_batch
from normscope.errors import DataError, InvalidConfig, ResultError
from normscope.sweeps.spec import configs_of

BILLION = (
    b"\x80\x02"
    + b")"
    + b"q\x00"
    + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
)

PICKLES = {
    "a memo of gigabytes": b"\x80\x02}r\xff\xff\xff\x7f.",
    "tuples of tuples": BILLION + b"}h<K\x01s.",
    "a number of a million digits": pickle.dumps({b"data": 7 << 8_000_000}, 2),
    "a million opcodes": b"\x80\x02" + b"]0" * 500_000 + b"].",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles(kind):
    begun = time.process_time()
    with pytest.raises(DataError, match=r"far more memory or time|is not a batch"):
        read_pickled_batch(PICKLES[kind], "data_batch_1")
    assert time.process_time() - begun < 5


def test_an_archive_that_unfolds_to_gigabytes(tmp_path, monkeypatch):
    monkeypatch.setattr("normscope.data.cifar10._MOST_UNZIPPED", 2**22)
    import tarfile

    with gzip.open(tmp_path / "cifar-10-python.tar.gz", "wb") as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        (tmp_path / "zeros").write_bytes(bytes(2**23))
        tar.add(tmp_path / "zeros", "zeros")
    with pytest.raises(DataError, match="unfolds to more than"):
        ns.load_data("cifar10", data_dir=tmp_path)


def large(file: h5py.File) -> None:
    file.create_dataset("x", shape=(2**40,), dtype="f8", chunks=(1024,))


def compressed(file: h5py.File) -> None:
    file.create_dataset("x", data=np.zeros(2**25), compression="gzip", compression_opts=9)


def elsewhere(file: h5py.File) -> None:
    file.create_dataset("x", shape=(8,), dtype="u1", external=[("/etc/passwd", 0, 8)])


def linked(file: h5py.File) -> None:
    file["x"] = h5py.ExternalLink("/etc/passwd", "/x")


@pytest.mark.parametrize("make", [large, compressed, elsewhere, linked])
def test_netcdf(tmp_path, make):
    path = tmp_path / "result.nc"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(ResultError, match=r"would take|in another file|somewhere else"):
        ns.load(path)


@pytest.mark.parametrize("axes", [{}, {"seed": list(range(1000)), "epochs": list(range(1, 1001))}])
def test_specs(axes):
    with pytest.raises(InvalidConfig, match=r"trains nothing|are the most of one sweep"):
        configs_of({"base": {}, "axes": axes})


PARENT = r"""
import os, time
import torch
torch.set_num_threads(1)
from normscope.runtime.jobs import side_by_side
from normscope.runtime.progress import Bar

def job(bar):
    os.write(1, f"{os.getpid()}\n".encode())
    while True:
        pass

with side_by_side([job, job], 2) as results:
    next(results(Bar()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked on Linux only")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_children_end_with_their_parent(how):
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(2)]
    os.kill(parent.pid, how)
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 2
    while (left := [child for child in children if _runs(child)]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not left


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False

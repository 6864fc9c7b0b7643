"""CIFAR-10: every layout gives the same images, and everything that can be wrong with a copy is named.

The copies are made here, with a few images per batch instead of 10,000.
"""

import contextlib
import gc
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope.data import cifar10_download, load_data
from normscope.data.cifar10 import BATCHES, load_cifar10, read_cifar10
from normscope.data.cifar10_pickle import read_pickled_batch
from normscope.errors import DataError
from normscope.runtime.progress import Bar

COUNT = 20
BIN, PY = "cifar-10-batches-bin", "cifar-10-batches-py"
load = partial(load_cifar10, images_per_batch=COUNT)


def made(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (20, 3072) and labels (20,) of a batch."""
    random = np.random.default_rng(BATCHES.index(name))
    return random.integers(0, 256, (COUNT, 3072), np.uint8), random.permutation(np.arange(COUNT) % 10).astype(np.uint8)


def binary(name: str) -> bytes:
    pixels, labels = made(name)
    return np.column_stack([labels, pixels]).tobytes()


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, as the published batches have them."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 (the base class's own way)

    def save_bytes(self, obj: bytes) -> None:
        head = b"U" + struct.pack("<B", len(obj)) if len(obj) < 256 else b"T" + struct.pack("<i", len(obj))
        self.write(head + obj)
        self.memoize(obj)

    dispatch[bytes] = save_bytes


def pickled(content: object) -> bytes:
    """As Python 2 and the numpy of its time would have written it."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python(name: str) -> bytes:
    pixels, labels = made(name)
    return pickled({b"batch_label": name.encode(), b"labels": labels.tolist(), b"data": pixels, b"filenames": [b"a"]})


def contents(layout: str) -> dict[str, bytes]:
    if layout == "binary":
        return {f"{BIN}/{name}.bin": binary(name) for name in BATCHES} | {f"{BIN}/batches.meta.txt": b"airplane"}
    return {f"{PY}/{name}": python(name) for name in BATCHES} | {f"{PY}/batches.meta": b"not read"}


def write_folder(where: Path, layout: str) -> Path:
    for name, content in contents(layout).items():
        (where / name).parent.mkdir(exist_ok=True)
        (where / name).write_bytes(content)
    return where


def archived(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def write_archive(where: Path, layout: str) -> Path:
    path = where / f"cifar-10-{layout}.tar.gz"
    path.write_bytes(archived(contents(layout)))
    return path


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path_factory):
    """No copy but the test's own, and no network but the test's own."""
    monkeypatch.delenv("NORMSCOPE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(cifar10_download, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    monkeypatch.setenv("NO_PROXY", "*")


def refused(call, *args, **kwargs) -> str:
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_right(raw) -> None:
    pixels, labels = zip(*(made(name) for name in BATCHES), strict=True)
    assert np.array_equal(raw.train_images, np.concatenate(pixels[:5]).reshape(-1, 3, 32, 32))
    assert np.array_equal(raw.train_labels, np.concatenate(labels[:5]))
    assert np.array_equal(raw.test_images, pixels[5].reshape(-1, 3, 32, 32))
    assert np.array_equal(raw.test_labels, labels[5])


def test_every_way_to_give_a_copy_gives_the_same_images(tmp_path, monkeypatch):
    places = {}
    for layout, folder in (("binary", BIN), ("python", PY)):
        for kind in ("folder", "archive"):
            (tmp_path / layout / kind).mkdir(parents=True)
        places[layout, "parent"] = write_folder(tmp_path / layout / "folder", layout)
        places[layout, "folder"] = tmp_path / layout / "folder" / folder
        places[layout, "file"] = write_archive(tmp_path / layout / "archive", layout)
        places[layout, "file's folder"] = tmp_path / layout / "archive"
    prints = set()
    for place in places.values():
        raw = load(place)
        assert_right(raw)
        prints.add(raw.fingerprint())
        assert load(str(place)).fingerprint() == raw.fingerprint()
    assert len(prints) == 1
    monkeypatch.setenv("NORMSCOPE_DATA", str(places["python", "parent"]))
    assert_right(load(None))
    monkeypatch.setenv("HOME", str(places["binary", "parent"]))
    assert_right(load(f"~/{BIN}"))


def test_what_is_asked_for_goes_before_the_environment(tmp_path, monkeypatch):
    write_folder(tmp_path, "binary")
    monkeypatch.setenv("NORMSCOPE_DATA", "/nowhere/at/all")
    assert_right(load(tmp_path))
    message = refused(load, None)
    assert message == (
        "NORMSCOPE_DATA /nowhere/at/all cannot be read (No such file or directory):"
        " give the folder or tar.gz of a copy of CIFAR-10"
    )


def test_reading_an_archive_writes_nothing(tmp_path):
    files = {f"../../{name}": content for name, content in contents("binary").items()}
    (tmp_path / "a" / "b").mkdir(parents=True)
    path = tmp_path / "a" / "b" / "c.tar.gz"
    path.write_bytes(archived(files))
    assert_right(load(path))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_pickles_of_today_are_read_as_well():
    pixels, labels = made("test_batch")
    content = pickle.dumps({b"labels": labels.tolist(), b"data": pixels}, protocol=3)
    read_pixels, read_labels = read_pickled_batch(content, "here")
    assert np.array_equal(read_pixels, pixels) and np.array_equal(read_labels, labels)


# --- damage to files --------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [-1, 1, -3073, 3073])
def test_a_binary_batch_of_a_wrong_length_is_named(tmp_path, change):
    path = write_folder(tmp_path, "binary") / BIN / "data_batch_3.bin"
    path.write_bytes((path.read_bytes() + bytes(3073))[: 61460 + change])
    assert refused(load, tmp_path) == (f"{path} is damaged: it has {61460 + change} bytes, not 61460; copy it again")


def test_the_published_length_is_expected_by_default(tmp_path):
    write_folder(tmp_path, "binary")
    assert "has 61460 bytes, not 30730000;" in refused(load_data, "cifar10", data_dir=tmp_path)


@pytest.mark.parametrize("layout", ["binary", "python"])
def test_missing_batches_are_named(tmp_path, layout):
    folder, suffix = (BIN, ".bin") if layout == "binary" else (PY, "")
    write_folder(tmp_path, layout)
    (tmp_path / folder / f"data_batch_2{suffix}").unlink()
    (tmp_path / folder / f"test_batch{suffix}").unlink()
    (tmp_path / folder / f"test_batch{suffix}").mkdir()  # not a file, so as good as missing
    missing = f"data_batch_2{suffix}, test_batch{suffix} missing"
    assert refused(load, tmp_path) == f"CIFAR-10 in {tmp_path / folder} is incomplete: {missing}; copy it again"


def test_a_label_above_nine_is_named(tmp_path):
    path = write_folder(tmp_path, "binary") / BIN / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[5 * 3073] = 10
    path.write_bytes(content)
    assert refused(load, tmp_path) == f"{path} is damaged: it has a label 10, above 9; copy it again"


def test_a_failing_disk_is_named(tmp_path, monkeypatch):
    write_folder(tmp_path, "binary")

    def fail(self):
        raise OSError(5, "Input/output error", str(self))

    monkeypatch.setattr(Path, "read_bytes", fail)
    path = tmp_path / BIN / "data_batch_1.bin"
    assert refused(load, tmp_path).startswith(f"{path} cannot be read: [Errno 5] Input/output error")


def test_a_huge_file_is_refused_unread(tmp_path, monkeypatch):
    path = write_folder(tmp_path, "python") / PY / "data_batch_1"
    os.truncate(path, 2**40)  # a hole: takes no room on the disk
    assert refused(load, tmp_path).endswith(
        "data_batch_1 is damaged: it has 1099511627776 bytes, more than any batch; copy it again"
    )


# --- damage to archives -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_archive_is_named(tmp_path, share):
    path = write_archive(tmp_path, "binary")
    os.truncate(path, int(path.stat().st_size * share))
    message = refused(load, tmp_path)
    assert message.startswith(f"{path} is not a whole tar.gz (") and message.endswith("): copy it again")


def test_a_flipped_bit_in_an_archive_is_noticed(tmp_path):
    path = write_archive(tmp_path, "binary")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    assert refused(load, path).startswith(f"{path} is ")


@pytest.mark.parametrize(
    "content", [b"", b"no archive", gzip.compress(b"no tar" * 1000, mtime=0), gzip.compress(b"", mtime=0)]
)
def test_what_is_no_archive_is_named(tmp_path, content):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(content)
    assert refused(load, tmp_path).startswith(f"{path} ")


def test_an_archive_of_something_else_is_named(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    path.write_bytes(archived({"cifar-100-binary/train.bin": b"x"}))
    assert refused(load, tmp_path) == f"{path} holds no CIFAR-10, neither data_batch_1.bin nor data_batch_1"


def test_a_batch_missing_from_an_archive_is_named(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    files = contents("binary")
    del files[f"{BIN}/data_batch_4.bin"]
    path.write_bytes(archived(files))
    assert refused(load, tmp_path) == f"CIFAR-10 in {path} is incomplete: data_batch_4.bin missing; copy it again"


def test_links_in_an_archive_are_not_followed(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in BATCHES:
            member = tarfile.TarInfo(f"{BIN}/{name}.bin")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    assert "holds no CIFAR-10" in refused(load, path)


def test_a_bomb_in_an_archive_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.tar.gz"
    member = tarfile.TarInfo(f"{BIN}/data_batch_1.bin")
    member.size = 2**40
    path.write_bytes(gzip.compress(member.tobuf() + bytes(10000)))
    assert "has 1099511627776 bytes, more than any batch" in refused(load, path)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_damage_to_a_tar_escapes_as_another_error(tmp_path_factory, data):
    """Bytes are changed inside the compression, where no checksum of gzip's protects the headers."""
    tar = bytearray(gzip.decompress(archived({f"{BIN}/{name}.bin": b"0" * 700 for name in BATCHES})))
    for place in data.draw(st.lists(st.integers(0, len(tar) - 1), min_size=1, max_size=40)):
        tar[place - place % 512 + place % 160] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "x.tar.gz"
    path.write_bytes(gzip.compress(bytes(tar), 1))
    refused(load, path)


# --- damage to pickles ------------------------------------------------------------------------------


class Evil:
    def __init__(self, call, *args):
        self.call = call, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [os.system, eval, exec, getattr, np.load, print])
def test_a_pickle_that_names_anything_else_is_refused_and_not_run(tmp_path, call, capfd):
    path = write_folder(tmp_path, "python") / PY / "data_batch_1"
    path.write_bytes(pickle.dumps({b"labels": Evil(call, "echo run"), b"data": 1}, protocol=3))
    message = refused(load, tmp_path)
    assert message.startswith(f"{path} is not a batch of CIFAR-10 (it names ")
    assert message.endswith(f".{call.__name__}, which no batch of CIFAR-10 does): replace it")
    assert capfd.readouterr().out == ""


def test_an_array_of_anything_but_bytes_in_rows_is_refused():
    """numpy itself would take a state of raw bytes for the addresses of objects, given the right flags."""
    pixels = np.zeros((2, 3072), np.uint8)
    objects = np.array([[object] * 3072] * 2)
    for content in (objects, pixels.astype(np.int64), pixels.astype(np.int8), np.asfortranarray(pixels)):
        batch = pickle.dumps({b"labels": [0, 1], b"data": content}, protocol=3)
        assert refused(read_pickled_batch, batch, "here").startswith("here is not a batch of CIFAR-10 (")


PIXELS, LABELS = np.zeros((2, 3072), np.uint8), [0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({b"data": PIXELS}, "here is not a batch of CIFAR-10 (it holds no 'data' and 'labels'): replace it"),
        ([PIXELS, LABELS], "here is not a batch of CIFAR-10 (it holds no 'data' and 'labels'): replace it"),
        (
            {b"data": PIXELS, b"fine_labels": LABELS},
            "here is not a batch of CIFAR-10 (it holds no 'data' and 'labels'): replace it",
        ),
        (
            {b"data": PIXELS[:, 1:].copy(), b"labels": LABELS},
            "here is damaged: its 'data' are not rows of 3072 pixels; replace it",
        ),
        (
            {b"data": b"bytes", b"labels": LABELS},
            "here is damaged: its 'data' are not rows of 3072 pixels; replace it",
        ),
        (
            {b"data": PIXELS, b"labels": PIXELS},
            "here is damaged: its 'labels' are not a list of class numbers; replace it",
        ),
        (
            {b"data": PIXELS, b"labels": [0, -1]},
            "here is damaged: its 'labels' are not a list of class numbers; replace it",
        ),
        ({b"data": PIXELS, b"labels": [0]}, "here is damaged: 1 labels for 2 images; replace it"),
    ],
)
def test_a_pickle_of_the_wrong_things_is_named(content, message):
    assert refused(read_pickled_batch, pickled(content), "here") == message


def test_a_pickled_batch_of_a_wrong_count_is_named(tmp_path):
    path = write_folder(tmp_path, "python") / PY / "test_batch"
    path.write_bytes(pickled({b"data": PIXELS, b"labels": LABELS}))
    assert refused(load, tmp_path) == f"{path} is damaged: it has 2 images, not 20; copy it again"


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_no_damage_to_a_pickle_escapes_as_another_error(data):
    content = bytearray(pickled({b"labels": [3, 5], b"data": PIXELS}))
    head = [i for i in range(len(content)) if not 200 < i < len(content) - 100]
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.sampled_from(head))] = data.draw(st.integers(0, 255))
    try:
        pixels, labels = read_pickled_batch(bytes(content), "here")
    except DataError as error:
        assert str(error).startswith("here is ")
    else:  # the damage was to a label or a pixel
        assert pixels.shape == (2, 3072) and labels.shape == (2,)


# --- the download -----------------------------------------------------------------------------------


def test_without_a_network_one_line_says_what_to_do(tmp_path, monkeypatch, capfd):
    def no_network(*args, **kwargs):
        raise requests.ConnectionError("Max retries exceeded\nwith url")

    monkeypatch.setattr(requests, "get", no_network)
    what_to_do = "Give the folder of a copy as `data_dir` or NORMSCOPE_DATA, or use `data=digits` (with `scale=quick`)"
    failed = f"could not be downloaded from {cifar10_download.URL}: no network. {what_to_do}"
    assert refused(load_data, "cifar10") == f"CIFAR-10 {failed}"
    assert refused(load_data, "cifar10", data_dir=tmp_path) == f"there is no CIFAR-10 in {tmp_path}, and it {failed}"
    assert capfd.readouterr() == ("", "")


def test_a_server_that_does_not_answer_is_told_from_no_network(monkeypatch):
    def silence(*args, **kwargs):
        raise requests.ConnectTimeout("timed out")

    monkeypatch.setattr(requests, "get", silence)
    assert ": the server does not answer. " in refused(load, None)


@pytest.fixture
def server(monkeypatch):
    """Serves `content` on this machine; `asked` counts."""

    class Handler(http.server.BaseHTTPRequestHandler):
        content, status, asked = b"", 200, 0

        def do_GET(self):
            Handler.asked += 1
            self.send_response(self.status)
            self.send_header("Content-Length", str(len(self.content)))
            self.end_headers()
            self.wfile.write(self.content)

        def log_message(self, *args):
            pass

    serving = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setattr(cifar10_download, "URL", f"http://127.0.0.1:{serving.server_port}/cifar-10-binary.tar.gz")
    yield Handler
    serving.shutdown()
    thread.join()
    serving.server_close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()  # pooch leaves the connection of a refused request open


def test_it_is_downloaded_once_and_checked(server, monkeypatch, tmp_path):
    server.content = archived(contents("binary"))
    monkeypatch.setattr(cifar10_download, "MD5", hashlib.md5(server.content).hexdigest())
    assert_right(load(None))
    assert_right(load(None))
    assert_right(load(tmp_path))  # a folder without a copy
    assert server.asked == 1
    path = cifar10_download.download()
    os.truncate(path, 1000)  # damaged in the cache: fetched again
    assert_right(read_cifar10(cifar10_download.download(), images_per_batch=COUNT))
    assert server.asked == 2


def test_a_download_with_another_checksum_is_refused_and_not_kept(server):
    server.content = archived(contents("binary"))
    assert ": what came does not have the published checksum. " in refused(load, None)
    assert [p for p in Path(os.environ["XDG_CACHE_HOME"]).rglob("*") if p.is_file()] == []


def test_an_error_of_the_server_is_told(server):
    server.status = 503
    assert ": 503 Server Error: Service Unavailable" in refused(load, None)


def test_the_download_tells_how_far_it_is(server, monkeypatch):
    server.content = archived(contents("binary"))
    monkeypatch.setattr(cifar10_download, "MD5", hashlib.md5(server.content).hexdigest())
    monkeypatch.setattr(cifar10_download, "CHUNK_BYTES", 1000)
    told = []

    class Recorder(Bar):
        def advance(self, doing="", by=1):
            told.append(by)

    monkeypatch.setattr(cifar10_download, "progress", lambda name, total: contextlib.nullcontext(Recorder()))
    load(None)
    # In chunks of 1000 bytes, the last one counted as whole, and nothing twice.
    assert len(told) > 100
    assert 0 <= sum(told) - len(server.content) / 1e6 < 0.001


# --- the real thing ---------------------------------------------------------------------------------

REAL = os.environ.get("NORMSCOPE_DATA")


@pytest.mark.skipif(not REAL, reason="NORMSCOPE_DATA names no copy of CIFAR-10")
def test_the_real_data():
    data = load_data("cifar10", data_dir=REAL)
    assert data.train_images.shape == (50_000, 3, 32, 32) and data.test_images.shape == (10_000, 3, 32, 32)
    assert data.train_labels.bincount().tolist() == [5000] * 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
    # The means and standard deviations that everybody uses, given to four digits.
    assert np.array(data.mean) / 255 == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)
    assert np.array(data.std) / 255 == pytest.approx([0.2470, 0.2435, 0.2616], abs=4e-3)
    assert (data.augmentation.pad, data.augmentation.flip) == (4, True)

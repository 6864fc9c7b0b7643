"""What strangers write: pickles and archives in the place of CIFAR-10, attributes of netCDF files, names that end on a
page. Nothing of it is carried out, written or shown as anything but text; it is refused on one line, or read right."""

import gzip
import io
import pickle
import random
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import xarray as xr
from test_data_cifar10 import Python2Pickler
from torch import nn

import normscope as ns
from normscope.data.cifar10 import BATCHES, read_cifar10
from normscope.data.cifar10_pickle import read_pickled_batch
from normscope.errors import DataError, NormscopeError
from normscope.html.page import Page, Paragraph, Section, as_svg, render
from normscope.monitoring.report import report_flight

pytestmark = pytest.mark.usefixtures("one_thread")

COUNT = 2

FORBIDDEN = ("os.", "subprocess.", "exec", "socket.", "ctypes.", "shutil.", "webbrowser.", "pty.", "sys.settrace")
READING = ("os.listdir", "os.scandir", "os.fwalk")

_seen: list[str] | None = None


def _audit(event: str, given: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    writes = event == "open" and isinstance(given[1], str) and set(given[1]) & set("wax+")
    if writes or (event.startswith(FORBIDDEN) and event not in READING):
        _seen.append(f"{event} {given!r:.100}")


sys.addaudithook(_audit)


@contextmanager
def nothing_happens() -> Iterator[None]:
    """Asserts that inside nothing is run, written or connected to, as the interpreter itself tells."""
    global _seen
    _seen = []
    try:
        yield
    finally:
        found, _seen = _seen, None
    assert not found, found[:3]


def on_one_line(error: NormscopeError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 700
    assert "bug in normscope" not in str(error), error


class Calls:
    """Pickles as a call, as anything may be that a pickle names."""

    def __init__(self, function: str, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        raise NotImplementedError  # `Writer` writes it


class Writer(Python2Pickler):
    """Python 2's pickles, in which a `Calls` names its function without importing it."""

    def reducer_override(self, thing: Any) -> Any:
        return NotImplemented

    def save(self, thing: Any, save_persistent_id: bool = True) -> None:
        if not isinstance(thing, Calls):
            return super().save(thing, save_persistent_id)
        module, _, name = thing.function.rpartition(".")
        self.write(b"c" + f"{module}\n{name}\n".encode())
        super().save(tuple(thing.arguments))
        self.write(b"R")


FUNCTIONS = (
    "os.system", "posix.system", "nt.system", "os.popen", "subprocess.Popen", "subprocess.call", "builtins.eval",
    "builtins.exec", "__builtin__.eval", "__builtin__.execfile", "builtins.open", "builtins.getattr",
    "builtins.compile",
    "builtins.__import__", "importlib.import_module", "pickle.loads", "_pickle.loads", "shutil.rmtree", "os.remove",
    "operator.attrgetter", "functools.partial", "types.CodeType", "types.FunctionType", "ctypes.CDLL",
    "webbrowser.open",
    "socket.create_connection", "torch.load", "torch.hub.load", "torch.utils.cpp_extension.load", "numpy.load",
    "numpy.fromfile", "numpy.memmap", "numpy.core.multiarray.scalar", "numpy.core.multiarray.fromfile",
    "numpy._core.multiarray._reconstruct.__globals__", "numpy.ndarray.tofile", "numpy.dtype.__reduce__",
    "numpy.f2py.run_main",
    "numpy.testing._private.utils.runstring", "normscope.data.cifar10_pickle._reconstruct", "code.interact", "pdb.run",
    "timeit.timeit", "cProfile.run", "runpy.run_path", "site.main", "pty.spawn", "platform.popen", "signal.alarm",
)  # fmt: skip


def batch_of(name: str) -> dict[bytes, Any]:
    drawn = np.random.default_rng(BATCHES.index(name))
    pixels = drawn.integers(0, 256, (COUNT, 3072), np.uint8)
    return {b"data": pixels, b"labels": [int(n) for n in drawn.integers(0, 10, COUNT)], b"batch_label": b"x"}


def written(content: Any, *, protocol: int = 2) -> bytes:
    file = io.BytesIO()
    Writer(file, protocol).dump(content)
    return file.getvalue()


def hostile_pickle(chance: random.Random) -> bytes:
    batch: dict[Any, Any] = batch_of("data_batch_1")
    call = Calls(
        chance.choice(FUNCTIONS), *chance.choice([("touch here",), (b"here", "w"), (), (1,), ("os", "system")])
    )
    kind = chance.choice(
        ["value", "key", "label", "state", "alone", "opcodes", "changed", "instance", "build", "plain"]
    )
    if kind == "value":
        batch[chance.choice([b"data", b"labels", b"more"])] = call
    elif kind == "label":
        batch[b"labels"][0] = call
    elif kind == "key":
        return written({**batch, b"k": [call, {b"k": call}]})
    elif kind == "alone":
        return written(call, protocol=chance.choice([0, 1, 2]))
    elif kind == "instance":  # the opcodes INST, OBJ and STACK_GLOBAL
        module, _, name = call.function.rpartition(".")
        return chance.choice([
            b"(S'touch here'\ni" + f"{module}\n{name}\n.".encode(),
            b"(c" + f"{module}\n{name}\n".encode() + b"S'touch here'\no.",
            b"\x80\x04\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode()
            + b"\x93\x8c\x0atouch here\x85R.",
        ])  # fmt: skip
    elif kind == "build":  # what is allowed, with a state or arguments of the stranger's
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        state = chance.choice([
            b"}U\x06valuesU\x04evils",
            b"(K\x01(J\xff\xff\xff\x7fK\x01tcnumpy\ndtype\n(U\x02u1K\x00K\x01tR\x89U\x03abct",
            b"(K\x01(K\x01K\x01tcnumpy\ndtype\n(U\x02O8K\x00K\x01tR\x89](K\x01et", b"N",
            b"}U\x09__class__cnumpy\ndtype\ns",
        ])  # fmt: skip
        return b"\x80\x02}U\x04data" + made + state + b"bsU\x06labels]K\x01as."
    elif kind == "opcodes":
        ops = b"(.0125FIJKLMNPQRSTUVXabcde}gijlopqrstu)" + bytes(range(0x80, 0x96))
        return b"\x80\x02" + bytes(chance.choice(ops) for _ in range(chance.randrange(1, 60))) + b"."
    elif kind == "changed":
        content = bytearray(written(batch))
        for _ in range(chance.choice([1, 2, 8])):
            content[chance.randrange(len(content) if chance.random() < 0.3 else 120)] = chance.randrange(256)
        return bytes(content)
    elif kind == "plain":
        return pickle.dumps(chance.choice([batch, [batch], {"data": 1}, 3, None, {b"data": b"", b"labels": []}]))
    else:
        return written({b"labels": batch[b"labels"], b"data": Calls("numpy.core.multiarray._reconstruct", call, call)})
    return written(batch, protocol=chance.choice([0, 1, 2]))


def test_pickles(attack, tries, chance):
    whole = batch_of("data_batch_1")
    np.testing.assert_array_equal(read_pickled_batch(written(whole), "b")[0], whole[b"data"])
    for number in tries(120, 1200):
        content = hostile_pickle(chance(number))
        with attack.one(number), nothing_happens():
            try:
                pixels, labels = read_pickled_batch(content, "data_batch_1")
            except DataError as error:
                on_one_line(error)
            else:  # some bytes of it are other pixels
                assert pixels.dtype == labels.dtype == np.uint8
                assert pixels.shape == (len(labels), 3072)


def hostile_archive(chance: random.Random, path: Path) -> None:
    with gzip.open(path, "wb", 1) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name in BATCHES:
            folder = chance.choice(["cifar-10-batches-py/", "../", "/", "../../../", "a/../../", "./", ""])
            kind = chance.choice(["file", "file", "link", "hard", "device", "fifo", "folder", "long", "short", "twice"])
            content = written(batch_of(name))
            info = tarfile.TarInfo(folder + name)
            info.size = len(content)
            if kind in ("link", "hard"):
                info.type = tarfile.SYMTYPE if kind == "link" else tarfile.LNKTYPE
                info.linkname, info.size = chance.choice(["/etc/passwd", "../../here", name, "/dev/zero"]), 0
            elif kind in ("device", "fifo", "folder"):
                info.type = {"device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}[kind]
                info.size = 0
            elif kind == "long":
                info.pax_headers = {"size": str(2**50), "path": "x" * 5000, "comment": "\x00<script>"}
            elif kind == "short":
                info.size, content = 10, content[:10]
            for _ in range(2 if kind == "twice" else 1):
                tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    content = bytearray(path.read_bytes())
    for _ in range(chance.choice([0, 0, 1, 3])):
        content[chance.randrange(len(content))] = chance.randrange(256)
    path.write_bytes(content[: chance.choice([len(content), len(content), chance.randrange(len(content))])])


def test_archives(attack, tries, chance, tmp_path):
    path = tmp_path / "folder" / "cifar-10-python.tar.gz"
    path.parent.mkdir()
    for number in tries(20, 400):
        hostile_archive(chance(number), path)
        with attack.one(number), nothing_happens():
            try:
                found = read_cifar10(path, images_per_batch=COUNT)
            except DataError as error:
                on_one_line(error)
            else:
                assert found.train_images.shape == (5 * COUNT, 3, 32, 32)
        assert [*tmp_path.iterdir()] == [path.parent]
        assert [*path.parent.iterdir()] == [path]


TEXTS = (
    "<script>alert(1)</script>", "</title><script>x()</script>", "<img src=x onerror=x()>", "\"><svg onload=x()>",
    "'-x()-'",
    "</style><script>x()</script>", "<!--", "-->", "--><script>x()</script>", "]]><script>x()</script>",
    "{{ 7777 * 7777 }}",
    "{% include 'x' %}", "{{ ''.__class__.__mro__ }}", "javascript:x()", "<a href=javascript:x()>y</a>",
    "&lt;script&gt;",
    "&#60;script&#62;", "\x00", "\x1b[2J", "\r\n", "\u202etxt", "\ud800", "\ufeff", "$\\frac$", "$x_{", "$$", "\\",
    "%s%n",
    "<x-evil/>", "<math><mtext></form><form><mglyph><style></math><img src onerror=x()>", "<iframe srcdoc='<script>'>",
    "<meta http-equiv=refresh content='0;url=http://evil'>", "<base href=//evil>", "<link rel=import href=//evil>",
    "a" * 3000, "1e-5<script>", "2.5e-7\" onclick=x() \"", "", " ", "#{x}", "${x}", "`x`", "../../etc/passwd",
    "𝔘𝔫𝔦", "é" * 50,
)  # fmt: skip


def text(chance: random.Random) -> str:
    return "".join(chance.choice(TEXTS) for _ in range(chance.choice([1, 1, 2, 3])))


class Tags(HTMLParser):
    """What a browser would make of a page: its elements, and their attributes that do something."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=False)
        self.names: set[str] = set()
        self.active: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for name, value in attrs:
            leads_out = name in ("src", "srcdoc", "href", "xlink:href", "action") and not (value or "").startswith("#")
            if name.startswith("on") or leads_out:
                self.active.append(f"<{tag} {name}={value!r:.60}>")


def is_only_text(page: str, plain: Tags) -> None:
    """Asserts that a page has no element and no active attribute that the same page with plain words has not."""
    found = Tags(page.encode("utf-8", "backslashreplace").decode())
    assert found.names <= {*plain.names, "span"}, found.names - plain.names  # around numbers
    assert len(found.active) <= len(plain.active), found.active[:3]
    assert "60481729" not in page, "a template in it is carried out"


def every_text(part: Any, words: Callable[[], str]) -> Any:
    """A page or a part of one with other words in every place of text; pictures and anchors are the program's own."""
    if isinstance(part, str):
        return words()
    if isinstance(part, tuple | list):
        return [every_text(one, words) for one in part]
    if is_dataclass(part) and not isinstance(part, type):
        own = {f.name for f in fields(part)} - {"anchor", "svg", "pictures", "claims"}
        return replace(part, **{name: every_text(getattr(part, name), words) for name in own})
    return part


PAGE = Page(
    title="t",
    question="q",
    lead=["l", "m"],
    facts=[("model", "Net")],
    summary=[Paragraph("h", "t")],
    tally=[["a", "b"]],
    tally_notes=["n"],
    sections=[
        Section(
            "here",
            "t",
            where="w",
            paragraphs=[Paragraph("h", "t", "x = 1")],
            caption="c",
            table=[["h", "i"], ["a"]],
            setup=[("n", "v")],
        )
    ],
)


def test_texts_of_a_page(attack, tries, chance):
    plain = Tags(render(PAGE))
    for number in tries(40, 400):
        draw = chance(number)
        with attack.one(number):
            is_only_text(render(every_text(PAGE, lambda draw=draw: text(draw))), plain)


@pytest.mark.filterwarnings("ignore")  # glyphs that a font does not have
def test_names_in_pictures(attack, tries, chance):
    """Names of layers, and what else a dataset says, drawn and on a page."""
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    norms = ns.gradient_norms(net, (torch.randn(4, 6), torch.arange(4) % 3))

    def picture(dataset: xr.Dataset) -> str:
        figure, ax = plt.subplots(figsize=(4, 3))
        ns.plot_gradient_norms(dataset, ax=ax)
        ax.set_title(str(dataset["layer"].values[0]))
        svg = as_svg(figure, "picture")
        plt.close(figure)
        return render(replace(PAGE, pictures=[svg]))

    plain = Tags(picture(norms))
    for number in tries(3, 120):
        draw = chance(number)
        renamed = norms.assign_coords(layer=[f"{i} {text(draw)}" for i in range(norms.sizes["layer"])])
        for variable in renamed.data_vars.values():
            variable.attrs["long_name"] = text(draw)
        with attack.one(number):
            is_only_text(picture(renamed), plain)


@pytest.mark.filterwarnings("ignore")
def test_names_in_a_flight_record(attack, tries, chance, tmp_path):
    def page(number: str, names: list[str]) -> str:
        net = nn.Sequential()
        for name, layer in zip(names, (nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), strict=True):
            net.add_module(name, layer)
        net.__class__ = type(names[0].encode("utf-8", "backslashreplace").decode(), (nn.Sequential,), {})
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        with ns.watch(net, optimizer, every=1, out=tmp_path / number) as watch:
            watch.step(1.0, (torch.randn(4, 6), torch.arange(4) % 3))
        return report_flight(tmp_path / number).read_text(encoding="utf-8")

    plain = Tags(page("plain", ["a", "b", "c"]))
    for number in tries(3, 80):
        draw = chance(number)
        names = [f"{i}{text(draw)}".replace(".", "").replace("\x00", "") for i in range(3)]
        with attack.one(number):
            is_only_text(page(str(number), names), plain)


SPECIAL = (
    "_FillValue", "missing_value", "scale_factor", "add_offset", "units", "calendar", "coordinates", "dtype",
    "_Unsigned",
    "grid_mapping", "bounds", "_Encoding", "_Netcdf4Dimid", "_NCProperties", "CLASS", "NAME", "DIMENSION_LIST",
    "REFERENCE_LIST", "_nc3_strict", "compress", "flag_values", "long_name", "probe", "version", "config", "sha256",
)  # fmt: skip


def value(chance: random.Random, file: h5py.File) -> Any:
    encoded = text(chance).replace("\x00", "").encode("utf-8", "backslashreplace").decode()
    return chance.choice([
        encoded, encoded.encode(), np.bytes_(b"\xff\xfe"), -1, 2**63 - 1, np.nan, np.inf, np.zeros(0), np.arange(1000),
        h5py.Empty("f"), file.ref, np.array([encoded, "b"], dtype=h5py.string_dtype()), "days since 9999-99-99",
        "seconds",
        "nanoseconds since 0000-00-00", "x y z step_size", np.complex64(1j), np.zeros((), dtype=[("a", "i4")]), "int64",
        json_of(chance), True,
    ])  # fmt: skip


def json_of(chance: random.Random) -> str:
    return chance.choice(
        ["[" * 5000, '{"a": ' * 500 + "1" + "}" * 500, "NaN", "9" * 5000, '{"float": "x"}', "null", "{}"]
    )


@pytest.mark.filterwarnings("ignore")
def test_attributes(attack, tries, chance, tmp_path):
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    dataset = ns.gradient_norms(net, (torch.randn(4, 6), torch.arange(4) % 3))
    plain = bytes(dataset.to_netcdf(engine="h5netcdf"))
    for number in tries(20, 800):
        draw = chance(number)
        path = tmp_path / f"{number}.nc"  # what cannot be read may stay open until it is collected
        path.write_bytes(plain)
        with h5py.File(path, "a") as file:
            for _ in range(draw.choice([1, 1, 3])):
                place = file if draw.random() < 0.4 else file[draw.choice(list(file))]
                name = draw.choice(SPECIAL) if draw.random() < 0.7 else (text(draw).replace("\x00", "")[:200] or "x")
                try:
                    place.attrs[name.encode("utf-8", "backslashreplace").decode()] = value(draw, file)
                except (OSError, TypeError, ValueError, RuntimeError):
                    continue  # HDF5 itself does not take it
        with attack.one(number):
            try:
                loaded = ns.load(path)
                ns.plot_gradient_norms(loaded)
                plt.gcf().savefig(io.BytesIO(), format="svg")
                ns.load(ns.save(loaded, tmp_path / "again.nc"))
            except NormscopeError as error:
                on_one_line(error)
            finally:
                plt.close("all")

"""Command lines that nobody meant, and places where nothing can be read or written: one line and a failure, or an
answer."""

import os
import random
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("one_thread")

TARGETS = """
    import os, sys
    import torch
    from torch import nn

    torch.manual_seed(0)

    def build(seed):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    net = build(0)

    class Abort(BaseException):
        pass

    def leaves(*_, **__):
        sys.exit(0)

    def leaves_with_three(*_, **__):
        raise SystemExit(3)

    def aborts(*_, **__):
        raise Abort("enough")

    def loader():
        return [(torch.randn(8, 64), torch.arange(8)) for _ in range(2)]

    def loader_that_leaves():
        yield torch.randn(8, 64), torch.arange(8)
        sys.exit(0)

    class Leaving(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build(0)

        def forward(self, x):
            if x.sum() > -1e30:
                sys.exit(0)
            return self.inner(x)

    class LeavingOptimizer(torch.optim.SGD):
        def step(self, closure=None):
            sys.exit(0)

    def optimizer(params, lr):
        return LeavingOptimizer(params, lr=lr)

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    net_of_a_number = 3
    script = torch.jit.script(build(0))
    meta = build(0).to("meta")
"""

SHORT = ("--steps", "2", "--seeds", "1", "--repair", "none", "--workers", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("here")
    (folder / "mine.py").write_text(textwrap.dedent(TARGETS))
    (folder / "exits.py").write_text("import sys\nsys.exit(0)\n")
    (folder / "aborts.py").write_text("class A(BaseException): pass\nraise A('x')\n")
    (folder / "deep.py").write_text("net = " + "(" * 5000 + ")" * 5000)
    (folder / "minus.py").write_text("net = " + "-" * 100_000 + "1")
    (folder / "nul.py").write_bytes(b"net = 1\x00")
    (folder / "latin.py").write_bytes(b"net = '\xe9'")
    (folder / "empty.toml").write_text("")
    (folder / "nothing.toml").write_text("[base]\n[axes]\n")
    (folder / "deep.toml").write_text("a = " + "[" * 50_000 + "]" * 50_000)
    (folder / "digits.toml").write_text("[base]\nepochs = " + "9" * 5000)
    (folder / "wide.toml").write_text(
        "[axes]\n" + "".join(f"{n} = {list(range(1, 1001))}\n" for n in ("seed", "epochs"))
    )
    (folder / "large.toml").write_bytes(b"# " + b"a" * 2**21)
    (folder / "random.toml").write_bytes(random.Random(0).randbytes(500))
    (folder / "nan.toml").write_text("[base]\nlr = nan")
    (folder / "a folder").mkdir()
    return folder


ENDING = [
    ("mine.py:leaves",),
    ("mine.py:leaves_with_three",),
    ("mine.py:aborts",),
    ("mine.py:Leaving",),
    ("mine.py:build", "--data", "mine.py:loader_that_leaves"),
    ("mine.py:build", "--data", "mine.py:leaves"),
    ("mine.py:build", "--loss", "mine.py:leaves"),
    ("mine.py:build", "--loss", "mine.py:aborts"),
    ("mine.py:build", "--optimizer", "mine.py:leaves"),
    ("mine.py:build", "--optimizer", "mine.py:optimizer"),
    ("mine.py:build", "--optimizer", "mine.py:aborts"),
]


def refused(run: Callable[..., tuple[int, str, str]], *arguments: str) -> str:
    """What a command says that has to fail on one line."""
    code, out, error = run(*arguments)
    lines = [line for line in error.splitlines() if not line.startswith(("check: ", "sweep: ", "train: "))]
    assert code == 2, f"exit {code}: {out} {error}"
    assert len(lines) == 1, error
    assert lines[0].startswith("normscope: ")
    assert "bug in normscope" not in error, error
    return error


@pytest.mark.filterwarnings("ignore")
def test_code_that_ends_the_process(attack, folder, run_normscope, monkeypatch):
    monkeypatch.chdir(folder)
    for arguments in ENDING:
        for workers in ("1", "2"):
            with attack.one((arguments, workers)):
                said = refused(run_normscope, "check", *arguments, *SHORT[:-1], workers, "--out", "out")
                assert "(at mine.py:" in said, said
    for target in ("exits.py:net", "aborts.py:net"):
        with attack.one(target):
            assert target.removesuffix(":net") in refused(run_normscope, "check", target)


@pytest.mark.filterwarnings("ignore")
def test_a_model_without_numbers(folder, run_normscope, monkeypatch):
    monkeypatch.chdir(folder)
    for arguments in (("check", "mine.py:meta", *SHORT), ("check", "mine.py:meta", "--device", "cpu")):
        assert "meta" in refused(run_normscope, *arguments)


def words(chance: random.Random) -> Iterator[str]:
    """Arguments, some of them right, most of them not."""
    odd = [
        "", " ", "-", "--", "---", ":", "::", "a:", ":a", "mine.py", "mine.py:", "mine.py:net", "mine.py:build",
        "mine.py:nothing", "mine.py:net.0", "mine.py:net.weight.data", "mine.py:net_of_a_number", "mine.py:script",
        "mine.py:meta", "mine.py:loader", "mine.py:loss", "exits.py:net", "deep.py:net", "minus.py:net", "nul.py:net",
        "latin.py:net", "no.py:net", "torch.nn:Linear", "torch:zeros", "os:environ", "no.such.module:x", "a folder:x",
        "a folder", "a folder.py:x", "random:", "random:0", "random:3x", "random:-1", "random:3x32x32", "random:64",
        "random:9999999999999x9", "random:1x" + "9" * 400, "random:²", "digits", "cifar10", "mnist", "empty.toml",
        "nothing.toml", "deep.toml", "digits.toml", "wide.toml", "large.toml", "random.toml", "nan.toml", "/dev/null",
        "/dev/zero", "/dev/full", "/proc/self/mem", "a" * 5000, "a" * 5000 + ".py:x", "\udc80", "\udc80.py:x", "é",
        "🐍", "\n", "\t:\t", "0", "-1", "1", "2", "1e400", "nan", "-inf", "inf", "9" * 30, "9" * 5000, "0x10", "1_0",
        "²", "cpu", "cuda", "cuda:99", "meta", "mps", "gpu", "auto", "none", "batch", "batch+", "+", "batch+warmup",
        "figure3", "figure99", "sgd", "adam", "mse", "..", ".", "~", "$HOME", "*", "%s", "{0}", "\\", "[bold]x[/]",
    ]  # fmt: skip
    while True:
        yield chance.choice(odd)


OPTIONS = {
    "check": ["--data", "--loss", "--optimizer", "--batch-size", "--steps", "--seeds", "--repair", "--device",
              "--budget", "--workers", "--out", "--data-dir"],
    "layers": ["--data", "--loss", "--batch-size", "--data-dir"],
    "sweep": ["--workers", "--threads", "--data-dir", "--ray"],
    "runs": [],
    "report": [],
    "reproduce": ["--data", "--data-dir", "--seeds", "--net", "--batch-size", "--scale", "--device", "--note"],
    "exhibits": [],
    "train": [],
    "": [],
}  # fmt: skip


def command_line(chance: random.Random, folder: Path) -> list[str]:
    """One that ends soon, should it be right."""
    name = chance.choice(list(OPTIONS))
    word = words(chance)
    arguments = [name] if name else []
    first = {"check": "mine.py:build", "layers": "mine.py:net", "sweep": "nan.toml", "runs": ".", "report": "."}
    arguments += [first[name] if name in first and chance.random() < 0.5 else next(word)]
    for option in chance.sample(OPTIONS[name], min(len(OPTIONS[name]), chance.choice([0, 1, 1, 2]))):
        arguments += [option, next(word)]
    if chance.random() < 0.05:
        arguments.append(chance.choice(["--help", "--version", "--no-such-option", next(word)]))
    if name == "check":
        arguments += [*SHORT, "--budget", "2", "--device", "cpu"]
    if name == "sweep":
        arguments += ["--out", "nan.toml/out"]
    if name == "reproduce":
        arguments += ["--out", "nan.toml/out"]
    return arguments


@pytest.mark.filterwarnings("ignore")
def test_any_command_line(attack, tries, chance, folder, run_normscope, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    for number in tries(60, 1000):
        arguments = command_line(chance(number), folder)
        with attack.one(arguments):
            before = set(folder.iterdir())
            code, out, error = run_normscope(*arguments)
            assert "Traceback" not in error
            assert "bug in normscope" not in error, error
            if code == 0:
                assert out.strip()
            else:
                lines = [line for line in error.splitlines() if line.startswith("normscope: ")]
                assert code in (2, 130)
                assert len(lines) == 1 or "Usage" in out, (code, out, error)
                assert set(folder.iterdir()) <= before | {folder / "__pycache__"}, "an empty folder is left behind"


SOAK = bool(os.environ.get("NORMSCOPE_SOAK"))

START = [sys.executable, "-c", "from normscope.cli import main; main()"]

PLACES = {
    "a closed output": ("{} check mine.py:build {} --out out >&-", "output is closed"),
    "a full output": ("{} check mine.py:build {} --out out > /dev/full", "No space left on device"),
    "a reader that has gone": ("({} runs --help; echo $? > code) 2> said | true; cat said >&2; exit $(cat code)", None),
    "no errors": ("{} check mine.py:nothing 2>&-", None),
    "a folder that is gone": ("mkdir gone && cd gone && rmdir ../gone && {} check mine.py:build {}", None),
    "an encoding without letters": (
        "PYTHONIOENCODING=ascii PYTHONUTF8=0 LC_ALL=C {} check mine.py:build {} --out ö", ""),
    "a name that is no text": ("cp mine.py $'\\200.py' && {} check $'\\200.py:build' {} --out $'\\201'", ""),
    "few descriptors": ("ulimit -n 24; {} check mine.py:build --steps 2 --seeds 1 --workers 8", None),
    "little memory": ("ulimit -v 9000000; {} check mine.py:build --data random:99999999 --batch-size 999 {}", None),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES if SOAK else ["a closed output"])  # each starts a Python of its own
def test_places(attack, place, tmp_path):
    (tmp_path / "mine.py").write_text(textwrap.dedent(TARGETS))
    command, expected = PLACES[place]
    line = command.replace("{}", " ".join(map(_quoted, START)), 1).replace("{}", " ".join(SHORT))
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, env={**os.environ}, check=False)
    error = done.stderr.decode(errors="replace")
    with attack.one(f"{place}: exit {done.returncode}: {error}"):
        said = [each for each in error.splitlines() if each.startswith("normscope: ")]
        assert "Traceback" not in error
        assert "bug in normscope" not in error
        assert "Exception ignored" not in error
        if expected == "":
            assert done.returncode == 0
        else:
            assert done.returncode == 2 or place in ("a reader that has gone", "few descriptors")
        if expected:
            assert len(said) == 1
            assert expected in said[0]


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"

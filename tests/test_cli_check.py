"""`normscope check` and `normscope layers`: whole outputs as a new user sees them, and every failure as one line."""

import json
import subprocess
import sys
import textwrap
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from normscope.checkup.answer import WIDTH
from normscope.cli.batches import loss_of
from normscope.cli.target import is_target, load_target, refuse_missing
from normscope.errors import InvalidBatch, InvalidConfig

FILE = """
import torch
from torch import nn
from torch.nn import functional as F

def net(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

model = net(0)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = net(0)
    def forward(self, x):
        return self.body(x)

def three(): return 3
def needs(a, b): return net(0)
def failing(): raise ValueError("no\\nweights")
wide = lambda: nn.Linear(5, 10)
frozen = lambda: net(0).requires_grad_(False)
class Mistaken(Net):
    def forward(self, x):
        return self.heads(x)
class Hungry(Net):
    def forward(self, x):
        return self.body(x) + torch.empty(2**50).sum()

g = torch.Generator().manual_seed(0)
loader = [(torch.randn(8, 64, generator=g), torch.randint(10, (8,), generator=g)) for _ in range(6)]
targets = [(x, torch.randn(8, 10, generator=g)) for x, _ in loader]
def make_loader():
    inputs, labels = (torch.cat(parts) for parts in zip(*loader))
    return torch.utils.data.DataLoader(list(zip(inputs, labels)), 8)
def of_seed(seed):
    yield from loader
def endless():
    while True:
        yield from loader
def broken():
    yield loader[0]
    raise OSError("gone")
empty = []
nans = [(x * float("nan"), y) for x, y in loader]
def misfits():
    yield from loader[:2]
    yield torch.randn(8, 63), loader[0][1]
def without(model, batch): return torch.zeros(())
single = loader[:1]
def refusing(): raise RuntimeError("no such table")
def l1(model, batch): return (model(batch[0]) - batch[1]).abs().mean()
def rmsprop(params, lr): return torch.optim.RMSprop(params, lr)
def constant(model, batch): return 0 * model(batch[0]).sum() + 1
"""

QUICK = ["--steps", "6", "--seeds", "1", "--repair", "none"]


@pytest.fixture
def normscope(run_normscope, monkeypatch, tmp_path):
    """Run the command line in a folder with one file of models and loaders: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NORMSCOPE_DATA", raising=False)
    (tmp_path / "mine.py").write_text(FILE)

    return run_normscope


def test_check_answers_on_one_screen_and_writes_a_report(normscope, tmp_path) -> None:
    code, out, _ = normscope(
        "check", "mine.py:net", "--steps", "12", "--seeds", "1", "--repair", "batch", "--repair", "both"
    )
    lines = out.splitlines()
    assert code == 0 and len(lines) <= 26 and max(map(len, lines)) <= WIDTH
    assert lines[0] == "net on digits: 1,210 parameters, momentum, 12 steps, 1 seed"
    assert any(line.startswith("What each repair would buy") for line in lines)
    assert [line.split("  ")[1] for line in lines if line.startswith("  batch norm") or line.startswith("  warmup")]
    assert lines[-1] == "All figures and numbers: check/net/report.html"
    assert sorted(p.name for p in (tmp_path / "check" / "net").iterdir()) == ["check.nc", "report.html"]
    assert normscope("report", "check/net")[:2] == (0, "check/net/report.html\n")


@pytest.mark.parametrize(
    "options",
    [
        ["mine.py:model", "--data", "mine.py:loader"],
        ["mine.py:Net", "--data", "mine.py:make_loader"],
        ["mine:net", "--data", "mine:of_seed", "--optimizer", "mine:rmsprop"],
        ["mine.py:net", "--data", "mine.py:endless", "--optimizer", "adam"],
        ["mine.py:net", "--data", "mine.py:targets", "--loss", "mse"],
        ["mine.py:net", "--data", "mine.py:targets", "--loss", "mine.py:l1"],
        ["mine.py:net", "--data", "random:1x8x8", "--batch-size", "4", "--device", "cpu"],
    ],
    ids=" ".join,
)
def test_every_kind_of_target_data_loss_and_optimizer(normscope, options: list[str]) -> None:
    code, out, err = normscope("check", *options, *QUICK, "--out", "here")
    assert code == 0, err
    assert "The rates it takes" in out and out.endswith("here/report.html\n")
    assert ("random:" in " ".join(options)) == ("Inputs and labels are random" in out)


def test_ones_own_rate_is_judged_alone(normscope) -> None:
    options = ["--lr", "1e-7", "--steps", "6", "--seeds", "1", "--optimizer", "AdamW,betas=0.9:0.95,weight_decay=0.1"]
    code, out, err = normscope("check", "mine.py:net", *options, "--clip-norm", "1", "--accumulate", "2")
    assert code == 0, err
    assert "\nYour rate 1e-7 " in out and "repair" not in out.replace("check/net/report", "")
    code, out, err = normscope("check", "mine.py:net", *options, "--json")
    assert code == 0, err
    assert json.loads(out)["own_rate"]["lr"] == 1e-7 and "nan" not in out.lower()


@pytest.mark.parametrize(
    ("options", "expected", "first", "found"),
    [
        (["--data", "mine.py:nans"], 2, "No rate was tried", "What is wrong: the data are not finite"),
        (["--loss", "mine.py:constant"], 2, "No rate was tried", "What is wrong: the gradient is zero everywhere"),
        (
            ["--data", "mine.py:misfits"],
            0,
            "Everything else was measured without batch 2 of",
            "does not take every batch",
        ),
    ],
)
def test_what_no_rate_mends_is_said_at_once(normscope, options, expected: int, first: str, found: str) -> None:
    code, out, err = normscope("check", "mine.py:net", *options, *QUICK)
    assert code == expected and not [line for line in err.splitlines() if not line.startswith("check: ")]
    assert f"\n{first}" in out and found in " ".join(out.split()) and "Nothing is wrong" not in out
    assert out.endswith("All figures and numbers: check/net/report.html\n")


def test_a_budget_is_kept_and_what_was_left_out_is_said(normscope) -> None:
    code, out, _ = normscope("check", "mine.py:net", "--steps", "6", "--seeds", "1", "--budget", "0.001")
    assert code == 0 and "\nOut of time: the rates as it is, " in out


def test_layers_are_listed_in_order(normscope) -> None:
    code, out, _ = normscope("layers", "mine.py:Net")
    assert code == 0
    assert [line.split() for line in out.splitlines()[1:3]] == [
        ["1", "body.1", "Linear", "16", "×", "64"],
        ["2", "body.3", "Linear", "10", "×", "16"],
    ]
    assert out.splitlines()[3] == "In the order of registration; with --data in the order of the calls."
    code, out, _ = normscope("layers", "mine.py:net", "--data", "digits", "--batch-size", "4")
    assert [line.split() for line in out.splitlines()[1:]] == [
        ["1", "1", "Linear", "16", "×", "64", "4", "×", "16"],
        ["2", "3", "Linear", "10", "×", "16", "4", "×", "10"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.py"], "target 'mine.py' names nothing: give package.module:name or file.py:name"),
        (["other.py:net"], "target: there is no file other.py"),
        (["mine.py:nett"], "target: mine.py has no 'nett': did you mean 'net'?"),
        (["no_such_module:net"], "does not import: ModuleNotFoundError: No module named 'no_such_module'"),
        (["mine.py:three"], "gave a int, not an nn.Module"),
        (["mine.py:loader"], "the model is of type list"),
        (["mine.py:needs"], "build needs a, b"),
        (["mine.py:failing"], "build raised ValueError: no weights (at mine.py:20)"),
        (["mine.py:wide"], "does not take this batch"),
        (["mine.py:Mistaken"], "AttributeError: 'Mistaken' object has no attribute 'heads' (at mine.py:25)"),
        (["mine.py:Hungry"], "out of memory: give a smaller batch"),
        (["mine.py:frozen"], "no trainable parameter"),
        (["mine.py:net", "--loss", "mine.py:without"], "the loss depends on no trainable parameter"),
        (["mine.py:net", "--data", "mine.py:lost"], "--data: mine.py has no 'lost'; it has net, model, Net"),
        (["mine.py:net", "--data", "mine.py:empty"], "gives no batch"),
        (["mine.py:net", "--data", "mine.py:broken"], "raised OSError after 1 of them: gone"),
        (["mine.py:net", "--data", "mine.py:refusing"], "the loader raised RuntimeError: no such table"),
        (["mine.py:net", "--data", "didgits"], "unknown --data 'didgits': did you mean 'digits'?"),
        (["mine.py:net", "--data", "random:3xx"], "give the shape of one example"),
        (["mine.py:net", "--data", "mine.py:targets"], "not integers: for regression give a loss_fn"),
        (["mine.py:net", "--loss", "huber"], "unknown --loss 'huber'"),
        (["mine.py:net", "--loss", "mine.py:empty"], "a list is no function loss_fn(model, batch)"),
        (["mine.py:net", "--optimizer", "sdg"], "unknown optimizer 'sdg': did you mean 'sgd'?"),
        (["mine.py:net", "--optimizer", "adamw,beta=1"], "unknown option of AdamW 'beta': did you mean 'betas'?"),
        (["mine.py:net", "--optimizer", "adamw,lr=0.1"], "leave out its lr: rates are tried; one of your own"),
        (["mine.py:net", "--lr-range", "1e-3"], "give two rates, as in 1e-5:0.1"),
        (["mine.py:net", "--lr", "-1"], "lr is -1"),
        (["mine.py:net", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["mine.py:net", "--scheduler", "mine.py:three"], "scheduler(optimizer) raised TypeError"),
        (["mine.py:net", "--repair", "bach"], "unknown repair 'bach': did you mean 'batch'?"),
        (["mine.py:net", "--batch-size", "5000"], "batch_size is 5000"),
        (["mine.py:net", "--device", "tpu9"], "no device 'tpu9' here"),
        (["mine.py:net", "--budget", "-1"], "budget_seconds is -1"),
        (["mine.py:net", "--out", "mine.py/in/a/file"], "cannot write mine.py/in/a/file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_writes_nothing(normscope, tmp_path, arguments: list[str], message: str) -> None:
    quick = QUICK[: None if "--repair" not in arguments else -2]
    code, out, err = normscope("check", *arguments, *quick)
    lines = [line for line in err.splitlines() if not line.startswith("check: ")]
    assert code == 2 and out == "" and len(lines) == 1
    assert lines[0].startswith("normscope: ") and message in lines[0]
    assert [p.name for p in tmp_path.iterdir() if p.name != "__pycache__"] == ["mine.py"]
    assert (tmp_path / "mine.py").read_text() == FILE


@pytest.mark.parametrize("command", ["check", "layers"])
def test_what_is_misspelled_is_said_before_torch_is_imported(tmp_path: Path, command: str) -> None:
    (tmp_path / "mine.py").write_text("import torch\n\ndef net(): ...\n")
    run = f"""
import sys
from normscope.cli.app import main
sys.argv = ["normscope", {command!r}, "mine.py:nett"]
try:
    main()
except SystemExit as end:
    print(end.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", run], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n"
    assert done.stderr == "normscope: target: mine.py has no 'nett': did you mean 'net'?\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("net = 1", "has no 'other'; it has net"),
        ("", "has no 'other'; it has no names"),
        ("def net(:", "SyntaxError"),
        ("from torch.nn import *", None),
        ("globals()['ot' + 'her'] = 1", None),
        ("from torch.nn import Linear as other", None),
    ],
)
def test_only_what_is_certainly_wrong_is_said_from_the_text(tmp_path: Path, source: str, message: str | None) -> None:
    (tmp_path / "bad.py").write_text(source)
    with nullcontext() if message is None else pytest.raises(InvalidConfig, match=message):
        refuse_missing(f"{tmp_path}/bad.py:other")


def test_without_repairs_the_answer_speaks_of_none(normscope) -> None:
    code, out, _ = normscope("check", "mine.py:net", *QUICK)
    assert code == 0 and "The rates it takes" in out and "repair" not in out.replace("check/net/report", "")


def test_an_interruption_says_that_nothing_is_kept(normscope, tmp_path) -> None:
    (tmp_path / "stopped.py").write_text("def net():\n    raise KeyboardInterrupt\n")
    code, _, err = normscope("check", "stopped.py:net", *QUICK)
    assert code == 130 and err.splitlines()[-1].startswith("normscope: interrupted before anything was measured")


def test_targets_are_loaded_as_python_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "part.py").write_text("class A:\n    b = 5\n")
    (tmp_path / "beside.py").write_text("value = 7\n")
    (tmp_path / "random.py").write_text("from beside import value\nimport random as same\n")
    before = list(sys.path)
    assert load_target("package.part:A.b") == 5
    assert load_target("random.py:value") == 7, "a file finds what lies beside it, and takes no module's name"
    assert sys.path == before and sys.modules["random"].__name__ == "random"
    (tmp_path / "both.py").write_text("class A:\n    pass\n")
    assert load_target("both.py:A") is load_target(f"{tmp_path}/both.py:A"), "a file is one module"
    assert is_target("random_data.py:loader") and not is_target("random:3x32x32")


def test_squared_error_refuses_to_broadcast() -> None:
    squared = loss_of("mse")
    assert float(squared(torch.nn.Identity(), (torch.ones(5, 1), torch.zeros(5, 1)))) == 1
    with pytest.raises(InvalidBatch, match=r"outputs of shape \(5, 1\) and targets of shape \(5,\)"):
        squared(torch.nn.Identity(), (torch.ones(5, 1), torch.zeros(5)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nothing_of_the_kind", "ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("def net(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit('usage: run me')", "SystemExit: usage: run me"),
    ],
)
def test_a_target_that_does_not_import_says_why(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(textwrap.dedent(text))
    with pytest.raises(InvalidConfig) as raised:
        load_target(f"{tmp_path}/bad.py:net")
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_an_example_of_ours_is_found_wanting(capsys: Any) -> None:
    import normscope as ns
    from normscope.diagnosis.finding import as_findings

    data = ns.load_data("digits")
    build = load_target(str(Path(__file__).parents[1] / "examples" / "deep_cnn.py") + ":net")
    tree = ns.diagnose(build, lambda seed: ns.batches(data, 16, seed=seed), optimizer="momentum", steps=10)
    assert as_findings(tree["findings"].to_dataset())[0].name == "exploding"

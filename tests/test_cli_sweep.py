"""`normscope sweep` and `normscope runs`: whole outputs, failures included."""

from pathlib import Path

import pytest

SPEC = """
[base]
net = "mlp2"
data = "digits"
train_size = 100
batch_size = 50
epochs = 2
precision = "fp32"
device = "cpu"

[axes]
norm = ["batch", "none"]
lr = [0.1, 10000]
"""

ROWS = """\
norm   lr       outcome   epochs
batch  0.1      learns    2/2
batch  10000.0  diverged  1/2
none   0.1      learns    2/2
none   10000.0  diverged  1/2
"""


@pytest.fixture
def normscope(run_normscope, monkeypatch, tmp_path):
    """Run the command line in a folder that holds a spec: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)
    Path("spec.toml").write_text(SPEC)

    def run(*arguments: str) -> tuple[int, str, str]:
        code, out, err = run_normscope(*arguments)
        return code, out, "".join(line for line in err.splitlines(True) if not line.startswith("sweep: "))

    return run


def test_a_sweep_its_runs_and_a_damaged_one(normscope):
    code, out, err = normscope("sweep", "spec.toml", "--out", "out", "--workers", "1")
    assert (code, out, err) == (0, "4 runs: 2 diverged, 2 learn\nout\n", "")
    written = {path: path.stat().st_mtime_ns for path in Path("out/runs").iterdir()}
    assert normscope("sweep", "spec.toml", "--out", "out") == (code, out, err)
    assert {path: path.stat().st_mtime_ns for path in Path("out/runs").iterdir()} == written, "nothing is done again"

    code, out, err = normscope("runs", "out")
    assert (code, err) == (0, "")
    *table, common, counts = out.splitlines()
    columns = [line.split() for line in table]
    assert columns[0] == ["key", "norm", "lr", "outcome", "epochs", "train", "test", "seconds"]
    assert (
        "\n".join(" ".join(cells[1:5]) for cells in columns) + "\n"
        == "\n".join(" ".join(line.split()) for line in ROWS.splitlines()) + "\n"
    )
    assert sorted(cells[0] for cells in columns[1:]) == sorted(path.stem for path in Path("out/runs").glob("*.json"))
    assert common == (
        "all: net mlp2, init xavier_uniform, data digits, train_size 100, held_out 0, momentum 0.9, "
        "weight_decay 0.0005, batch_size 50, epochs 2, evaluate_every 1, milestones 0.5, 0.75, gamma 0.1, "
        "augment True, seed 0, precision fp32, device cpu"
    )
    assert counts == "4 finished"

    damaged = Path("out/runs") / f"{columns[1][0]}.json"
    damaged.write_bytes(b"no JSON")
    Path("out/scratch/0123456789abcdef").write_bytes(b"")
    code, out, err = normscope("runs", "out")
    assert code == 2
    assert out.splitlines()[-1] == "3 finished, 1 damaged, 1 begun"
    assert err.startswith(f"normscope: {damaged} is damaged (")
    assert err.endswith("delete it and measure again\n") and err.count("\n") == 1
    assert normscope("sweep", "spec.toml", "--out", "out") == (2, "", err)
    damaged.unlink()
    assert normscope("sweep", "spec.toml", "--out", "out", "--workers", "1")[0] == 0
    assert normscope("runs", "out")[1].splitlines()[-1] == "4 finished, 1 begun"


def test_runs_that_nobody_asked_for_are_not_counted(normscope):
    """The size of all but the held-out images is a second axis, of which half of the combinations are no runs."""
    text = SPEC.replace("train_size = 100\n", "").split("[axes]")[0] + "[axes]\nheld_out = [0, 37]\n"
    Path("spec.toml").write_text(text)
    assert normscope("sweep", "spec.toml", "--out", "out", "--workers", "1") == (0, "2 runs: 2 learn\nout\n", "")


def test_workers_run_the_code_of_their_driver(normscope, monkeypatch, tmp_path):
    """Not that of a folder which a relative PYTHONPATH leads to from another working directory."""
    (tmp_path / "other" / "normscope").mkdir(parents=True)
    (tmp_path / "other" / "normscope" / "__init__.py").write_text("raise ImportError('another normscope')")
    monkeypatch.setenv("PYTHONPATH", "other")
    assert normscope("sweep", "spec.toml", "--out", "out", "--workers", "1")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep", "spec.toml"], "Missing option '--out'"),
        (["sweep", "spec.toml", "--out", "out", "--workers", "0"], "Invalid value for '--workers'"),
        (["sweep", "nowhere.toml", "--out", "out"], "nowhere.toml: no such file: give a TOML file with"),
        (["sweep", "wrong.toml", "--out", "out"], "wrong.toml: unknown key in [axes]: 'lrs': did you mean 'lr'?"),
        (["sweep", "spec.toml", "--out", "spec.toml"], "cannot write spec.toml"),
        (["runs", "nowhere"], "no runs in nowhere: it has no folder `runs`; run `normscope sweep` first"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(normscope, tmp_path, arguments, message):
    Path("wrong.toml").write_text(SPEC.replace("lr", "lrs"))
    code, out, err = normscope(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("normscope: ") and message in err and err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spec.toml", "wrong.toml"]

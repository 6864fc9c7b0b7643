"""The harness of the benchmarks: it goes on past one that fails, and stores what was measured."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import machine
from benchmarks.timing import Row, report, rows

BENCHMARKS = Path(machine.__file__).parent


@pytest.fixture
def of_two(tmp_path):
    """A folder of benchmarks in which the first one fails, and the second says where its rows go."""
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    for name in ("__init__.py", "__main__.py", "machine.py"):
        shutil.copy(BENCHMARKS / name, folder)
    (folder / "first.py").write_text("raise SystemExit('no disk')\n")
    (folder / "second.py").write_text("import sys\nprint('rows to', sys.argv[1])\n")

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-m", "benchmarks", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_goes_on_past_a_benchmark_that_fails_and_says_so_at_the_end(of_two):
    done = of_two("--out", "rows")
    assert done.returncode == 1
    assert "failed with status 1" in done.stdout
    assert f"rows to {Path('rows', 'second.json')}" in done.stdout
    assert done.stderr == "no disk\nfailed: first\n"


def test_runs_only_those_named(of_two):
    done = of_two("second")
    assert (done.returncode, done.stderr) == (0, "")
    assert "== first" not in done.stdout


def test_refuses_an_unknown_one_before_any_runs(of_two):
    done = of_two("second", "thrid")
    assert done.returncode == 2
    assert "unknown benchmark 'thrid': one of first, second" in done.stderr
    assert "==" not in done.stdout


def test_says_which_rivals_are_not_installed(of_two, monkeypatch):
    monkeypatch.setattr(machine, "version", lambda package: None if package == "opacus" else "1")
    assert machine.missing() == ["Opacus"]


def test_contestants_are_compared_with_the_floor_of_the_same_round():
    calls = []
    contestants = {"floor": lambda: calls.append("floor"), "twice": lambda: calls.append("twice")}
    floor, twice = rows(contestants, rounds=3, quality={"twice": {"off": 1e-7}})
    # one round to warm up, and the order turns
    assert calls == ["floor", "twice", "twice", "floor", "floor", "twice", "twice", "floor"]
    assert floor.wall == floor.processor == (1, 1, 1)
    assert twice.quality == {"off": 1e-7}


def test_rows_are_stored_with_the_machine_as_they_come(tmp_path, monkeypatch, capsys):
    path = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["benchmark", str(path)])

    def measured():
        yield Row("floor", 0.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0))
        yield Row("ours", 0.6, (1.2, 1.1, 1.3), (1.2, 1.1, 1.3), 1_500_000, {"off": float("nan")})
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        report("What does it cost?\n\nMore.", measured())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "What does it cost?"
    expected = "ours 0.600 1.200 (1.100 1.300) 1.200 (1.100 1.300) 1.5 off nan"
    assert " ".join(lines[-1].split()) == expected
    stored = json.loads(path.read_text())
    assert stored["processor"] and stored["cores"] >= 1 and stored["versions"]["torch"]
    assert [row["name"] for row in stored["rows"]] == ["floor", "ours"]
    assert stored["rows"][1]["quality"] == {"off": None}  # JSON has no NaN

"""kill -9 of runs, of sweeps' drivers, of checks and of Ray's nodes, again and again: the same bits, nothing lost,
nothing done twice, no child left. (Watched trainings are killed in `test_beside`.)"""

import os
import random
import signal
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sweep_cluster import SLOW, ask, assert_as_by_hand, cluster, quiet_lines, sweeping, wait_for_both  # noqa: F401
from test_sweep_kills import CONFIGS, assert_same, children, disturb, trained_whole
from test_train import kill_runs

from normscope.cli import main
from normscope.results import load_tree

pytestmark = pytest.mark.usefixtures("one_thread")


def test_killed_runs(attack, tries, tmp_path):
    for number in tries(1, 2):
        with attack.one(number):
            attack.tries += sum(kill_runs(tmp_path / str(number), seed=number)) - 1


def test_killed_sweeps(attack, tries, tmp_path):
    whole = trained_whole(CONFIGS, tmp_path / "whole")
    for number in tries(1, 4):
        with attack.one(number):
            attack.tries += disturb(CONFIGS, tmp_path / str(number), longest=0.15, seed=number) - 1
            for name in ("shared", "killed"):
                assert_same(tmp_path / str(number) / name, whole)


NET = """
import torch
from torch import nn

def build(seed):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

def loader():
    return [(torch.randn(8, 6, generator=torch.Generator().manual_seed(i)), torch.arange(8) % 3) for i in range(3)]
"""

LINE = ("check", "net.py:build", "--data", "net.py:loader", "--steps", "4", "--seeds", "1", "--workers", "2")


def checking(folder: Path) -> int:
    """`normscope check` in a process of its own, in that folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
        child = os.fork()
    if not child:
        try:
            os.chdir(folder)
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            sys.argv = ["normscope", *LINE, "--repair", "warmup", "--out", "out"]
            main()
        except SystemExit as stop:
            os._exit(int(stop.code or 0))
        finally:
            os._exit(0)
    return child


def numbers(path: Path) -> dict[str, Any]:
    """What a check measured of each variant, but for the time it took."""
    variants = load_tree(path).to_dataset()
    return {str(name): v.values for name, v in variants.data_vars.items() if "second" not in str(name)}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_killed_checks(attack, tries, chance, tmp_path):
    (tmp_path / "net.py").write_text(NET)
    begun = time.perf_counter()
    assert os.waitpid(checking(tmp_path), 0)[1] == 0
    took, whole = time.perf_counter() - begun, numbers(tmp_path / "out" / "check.nc")
    killed = 0
    for number in tries(3, 40):
        (folder := tmp_path / str(number)).mkdir()
        (folder / "net.py").write_text(NET)
        with attack.one(number):
            draw: random.Random = chance(number)
            child = checking(folder)
            time.sleep(draw.uniform(0.1, took))
            workers = children(child)
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            until = time.monotonic() + 2
            while any(map(_runs, workers)) and time.monotonic() < until:
                time.sleep(0.02)
            assert not any(map(_runs, workers)), "a worker outlived its parent by two seconds"
            for path in (folder / "out").glob("check.nc"):
                np.testing.assert_equal(numbers(path), whole)
            for path in (folder / "out").glob("report.html"):
                assert path.read_text().rstrip().endswith("</html>")
    assert killed


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif("NORMSCOPE_SOAK" not in os.environ, reason="each takes half a minute")
def test_killed_nodes(attack, tries, tmp_path, cluster):  # noqa: F811
    process, address, nodes = cluster
    for number in tries(1, 10):
        with attack.one(number):
            configs = [replace(SLOW, epochs=16, seed=seed) for seed in range(3)]
            sweep = sweeping(tmp_path / str(number), configs, address)
            wait_for_both(sweep, nodes)
            assert ask(process, "kill") == "gone"
            out, err = sweep.communicate(timeout=600)
            assert (sweep.returncode, out) == (0, f"3 runs: 3 learn\n{tmp_path / str(number)}\n"), err
            assert quiet_lines(err) == []
            assert_as_by_hand(tmp_path / str(number), configs, tmp_path)
        assert ask(process, "add") == "here"

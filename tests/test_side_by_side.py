"""Measurements in forked processes: their results, progress, errors and ends."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import xarray as xr

import normscope as ns
from normscope.errors import DeviceError, InvalidConfig, InvalidModel
from normscope.runtime.jobs import MOST_WORKERS, side_by_side, usable_workers
from normscope.runtime.progress import Bar, progress
from normscope.training.train import num_threads

if sys.platform != "linux":
    pytest.skip("forks processes", allow_module_level=True)


class Seen(Bar):
    def __init__(self) -> None:
        self.done, self.doing = 0.0, set[str]()

    def advance(self, doing: str = "", by: float = 1) -> None:
        self.done += by
        self.doing.add(doing)


def ended(jobs, workers: int = 2, bar: Bar | None = None) -> dict[int, object]:
    with side_by_side(jobs, workers) as results:
        return dict(results(bar or Bar()))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


def measured(place: int, bar: Bar) -> tuple[int, int, int]:
    with bar.part(f"job {place}"), progress("inner", total=4) as inner:
        for _ in range(4):
            inner.advance("a step")
    return place, os.getpid(), torch.get_num_threads()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_job_gives_its_result_and_moves_the_bar(workers: int) -> None:
    bar = Seen()
    results = ended([partial(measured, place) for place in range(5)], workers, bar)
    assert {place: result[0] for place, result in results.items()} == dict(enumerate(range(5)))
    assert bar.done == pytest.approx(5)
    processes = {result[1] for result in results.values()}
    if workers == 1:
        assert processes == {os.getpid()}
    else:
        assert len(processes) == 5 and os.getpid() not in processes
        assert {result[2] for result in results.values()} == {1}
        assert "job 3: a step" in bar.doing


def test_no_more_at_once_than_workers(tmp_path) -> None:
    def job(bar: Bar) -> int:
        mine = tmp_path / str(os.getpid())
        mine.touch()
        time.sleep(0.05)
        at_once = len(list(tmp_path.iterdir()))
        mine.unlink()
        return at_once

    assert max(ended([job] * 6, workers=2).values()) == 2


class Unpicklable(Exception):
    def __init__(self) -> None:
        super().__init__("cannot travel")
        self.function = lambda: None


class OfTwoArguments(Exception):
    def __init__(self, what: str, why: str) -> None:
        super().__init__(f"{what}: {why}")


def test_an_error_on_purpose_is_a_result_and_any_other_is_raised() -> None:
    def refuse(bar: Bar) -> None:
        raise InvalidModel("no norm there")

    for workers in (1, 2):
        results = ended([refuse, partial(measured, 1)], workers)
        assert isinstance(results[0], InvalidModel) and str(results[0]) == "no norm there"
        assert results[1][0] == 1

    def fail(error: BaseException, bar: Bar) -> None:
        raise error

    for error, kind, message in (
        (ZeroDivisionError("by nought"), ZeroDivisionError, "^by nought"),
        (Unpicklable(), RuntimeError, "Unpicklable: cannot travel"),
        (OfTwoArguments("it", "breaks on the way back"), RuntimeError, "OfTwoArguments: it: breaks"),
    ):
        with pytest.raises(kind, match=message):
            ended([partial(fail, error)] * 2)
    with pytest.raises(KeyboardInterrupt):
        ended([partial(fail, KeyboardInterrupt())] * 2)


def test_a_killed_process_is_told_and_the_others_go_on() -> None:
    def die(bar: Bar) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    results = ended([die, partial(measured, 1), partial(measured, 2)])
    assert isinstance(results[0], DeviceError) and "killed" in str(results[0])
    assert (results[1][0], results[2][0]) == (1, 2)


def test_nobody_outlives_an_exception_in_the_middle() -> None:
    def tell(bar: Bar) -> int:
        return os.getpid()

    def stay(bar: Bar) -> None:
        bar.advance(str(os.getpid()))
        time.sleep(60)

    seen = Seen()
    with pytest.raises(KeyboardInterrupt), side_by_side([tell, stay, stay], 2) as results:
        for _ in results(seen):
            raise KeyboardInterrupt
    pids = [int(doing) for doing in seen.doing]
    assert all(gone(pid) for pid in pids)


KILLED_PARENT = """
import os, sys, time
from normscope.runtime.jobs import side_by_side

def work(bar):
    for _ in range(600):
        time.sleep(0.05)
        bar.advance(str(os.getpid()))

class Told:
    def advance(self, doing="", by=1):
        print(doing, flush=True)

with side_by_side([work, work, work], 2) as results:
    list(results(Told()))
"""


def test_nobody_outlives_a_killed_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED_PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = {int(parent.stdout.readline()) for _ in range(10)}
        children = {int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()}
        assert len(children) == 3 and pids <= children
        parent.kill()
        parent.stdout.close()
    assert all(gone(pid) for pid in children)


def test_how_many_at_once(monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with num_threads(2):
        assert [usable_workers(None, jobs) for jobs in (1, 2, 5)] == [1, 2, 2]
        assert usable_workers(3, 5) == 3 and usable_workers(1, 5) == 1
    with num_threads(MOST_WORKERS + 1):
        assert usable_workers(None, 5) == 1
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert usable_workers(None, 5) == 1
    with pytest.raises(InvalidConfig, match="without a GPU only"):
        usable_workers(2, 5)
    with pytest.raises(InvalidConfig, match="workers is 0"):
        usable_workers(0, 5)


@pytest.mark.usefixtures("one_thread")
def test_check_measures_the_same_bits_side_by_side() -> None:
    data = ns.load_data("digits")

    def build(seed: int) -> torch.nn.Module:
        return ns.build_net("mlp2", norm="none", in_channels=1, image_size=8, seed=seed)

    def tree(workers: int) -> xr.DataTree:
        batches = lambda seed: ns.batches(data, 16, seed=seed)  # noqa: E731
        names = ["batch", "zero_residual", "orthogonal+clipping"]
        return ns.check(build, batches, repair=names, steps=8, seeds=2, workers=workers)

    alone, together = tree(1), tree(2)
    assert [node.path for node in alone.subtree] == [node.path for node in together.subtree]
    for node in alone.subtree:
        mine, other = node.to_dataset(), together[node.path].to_dataset()
        xr.testing.assert_identical(mine.drop_attrs(deep=False), other.drop_attrs(deep=False))

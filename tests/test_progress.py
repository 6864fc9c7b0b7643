"""Progress: silent on what is quick, time left on what is not, one bar at a time."""

import re
import time

import pytest

import normscope.runtime.progress as module
from normscope.runtime.progress import progress


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.0)


def test_quick_work_shows_nothing(capsys):
    with progress("quick", total=2) as bar:
        bar.advance("one")
        bar.advance("two")
    assert capsys.readouterr().err == ""


def test_long_work_says_share_time_left_and_what_it_does(hasty, capsys):
    with progress("long", total=4) as bar:
        time.sleep(0.1)
        bar.advance("seed 0")
        bar.advance("seed 1", by=3)
    assert capsys.readouterr().err.splitlines() == [
        "long: begun",
        "long: 25%, 0:00:00 left, seed 0",
        "long: 100%, 0:00:00 left, seed 1",
    ]


def test_time_left_is_in_proportion(hasty, capsys, monkeypatch):
    with progress("long", total=11) as bar:
        begun = bar._pace.begun
        monkeypatch.setattr(module.time, "monotonic", lambda: begun + 60.0)
        bar.advance()
    assert "9%, 0:10:00 left" in capsys.readouterr().err


def test_what_is_skipped_takes_no_time(hasty, capsys, monkeypatch):
    with progress("long", total=110) as bar:
        begun = bar._pace.begun
        monkeypatch.setattr(module.time, "monotonic", lambda: begun + 60.0)
        bar.skip(99)
        bar.advance()
    assert "9%, 0:10:00 left" in capsys.readouterr().err


def test_what_is_skipped_in_a_part_of_another_bar_moves_that_one(hasty, capsys):
    with progress("outer", total=2) as outer:
        time.sleep(0.1)
        with outer.part("first"), progress("inner", total=4) as inner:
            inner.skip(2)
            inner.advance("rest", by=2)
    assert "outer: 50%, 0:00:00 left, first: rest" in capsys.readouterr().err


def test_work_inside_another_bar_is_silent(hasty, capsys):
    with progress("outer", total=1) as outer:
        with progress("inner", total=1) as inner:
            time.sleep(0.1)
            inner.advance("inside")
        outer.advance("outside")
    err = capsys.readouterr().err
    assert "inner" not in err
    assert "outer: 100%, 0:00:00 left, outside" in err


def test_an_error_inside_frees_the_bar(hasty, capsys):
    with pytest.raises(ValueError, match="boom"), progress("first", total=1):
        raise ValueError("boom")
    with progress("second", total=1) as bar:
        time.sleep(0.1)
        bar.advance()
    assert "second: 100%" in capsys.readouterr().err


def test_a_terminal_gets_a_bar(hasty, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with progress("long", total=2) as bar:
        time.sleep(0.1)
        bar.advance("seed 0")
        time.sleep(0.3)
    err = capsys.readouterr().err
    assert "long" in err
    assert "50%" in err
    assert "seed 0" in err


def test_a_terminal_says_the_time_left_after_one_unit(hasty, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with progress("long", total=20_000) as bar:
        bar.skip(18_999)
        time.sleep(0.1)
        bar.advance()
        time.sleep(0.2)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"left 0:0[1-9]:\d\d", plain), plain

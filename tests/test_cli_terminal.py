"""What the command line does on terminals: nothing but the answer, no colours, sixty columns."""

import re
import sys

import pytest
from rich.console import Console

from normscope.cli import claims
from normscope.runtime import progress
from normscope.runtime.quiet import be_quiet
from normscope.statistics.judgement import judge


@pytest.fixture(autouse=True)
def loud_again():
    yield
    be_quiet(False)


@pytest.mark.parametrize("place", ["first", "last"])
def test_quiet_shows_no_progress_wherever_it_stands(run_normscope, monkeypatch, place):
    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    figure7 = ["reproduce", "figure7", "--seeds", "3", "--out", "kept"]
    monkeypatch.setattr("normscope.paper.measurement.reproduce", slow)
    loud = run_normscope(*figure7)
    quiet = run_normscope("--quiet", *figure7) if place == "first" else run_normscope(*figure7, "--quiet")
    assert "work: 100%" in loud[2] and "work" not in quiet[2]


def slow(*_args, **_options):
    """Work that shows its progress, and ends in an error of one line."""
    from normscope.errors import InvalidConfig

    with progress.progress("work", total=2) as bar:
        bar.advance()
        bar.advance()
    raise InvalidConfig("done")


def test_no_color_is_what_rich_asks(run_normscope, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[3" in run_normscope("exhibits")[1] or "\x1b[1" in run_normscope("exhibits")[1]
    monkeypatch.setenv("NO_COLOR", "")  # so that what the command sets is put back
    for words in ("exhibits", "--help", "check --help"):
        assert not re.search(r"\x1b\[(\d;)*3\d", run_normscope(*words.split(), "--no-color")[1]), words


@pytest.mark.parametrize("width", [60, 79, 120])
def test_claims_fit_the_terminal(capsys, monkeypatch, width):
    """Each word whole, and no line longer than the terminal."""
    monkeypatch.setattr(claims, "console", lambda: Console(file=sys.stdout, width=width, force_terminal=False))
    long = "Without BN the variance grows by at least 0.2 nat from layer to layer"
    claims.print_claims([judge(long, "argument about initialization", [0.3, 0.31, 0.32], above=0.2, paper="0.54")])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    for word in [*long.split(), "initialization", "reproduced", "0.54"]:
        assert word in out, word


@pytest.mark.parametrize("width", [60, 100, 139])
def test_claims_before_any_measurement_break_no_word(capsys, monkeypatch, width):
    from normscope.cli.commands import claims as listing

    monkeypatch.setattr(listing, "console", lambda: Console(file=sys.stdout, width=width, force_terminal=False))
    listing.command(["figure5"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width and "…" not in out
    assert "deep network" in " ".join(out.split()) or "networks of more than 30 layers" in " ".join(out.split())


def test_layers_are_named_in_full_on_a_narrow_terminal(capsys, monkeypatch, tmp_path):
    from normscope.cli.commands import layers

    monkeypatch.setattr(layers, "console", lambda: Console(file=sys.stdout, width=60, force_terminal=False))
    name = "encoder_of_the_first_of_two_sentences_and_of_its_translation"
    (tmp_path / "mine.py").write_text(f"from torch import nn\nnet = nn.ModuleDict({{'{name}': nn.Linear(4, 3)}})\n")
    layers.command(f"{tmp_path / 'mine.py'}:net")
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= 60 and "…" not in out

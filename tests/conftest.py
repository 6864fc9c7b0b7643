"""What several test files need: the command line in this process, and one thread."""

import sys
from collections.abc import Callable

import pytest
import torch

from normscope.cli import main


@pytest.fixture
def run_normscope(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Run `normscope ARGUMENTS...` in this process and folder: exit code, output, errors."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["normscope", *arguments])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def one_thread():
    """Torch computes with one thread, so that bits do not depend on the machine's processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

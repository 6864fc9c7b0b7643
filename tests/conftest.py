"""What several test files need: the command line in this process, and one thread."""

import signal
import sys
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from normscope.cli import main
from normscope.training.train import num_threads

settings.register_profile("whatever the load", deadline=None)
settings.load_profile("whatever the load")


@pytest.fixture(autouse=True, scope="session")
def heed_ctrl_c() -> None:
    """A shell's job in the background ignores it, and so would all tests and what they start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
def one_thread() -> Iterator[None]:
    """Torch computes with one thread, so that bits do not depend on the machine's processors."""
    with num_threads(1):
        yield


@pytest.fixture(scope="module")
def one_thread_throughout() -> Iterator[None]:
    """`one_thread` for what a module's tests share, too."""
    with num_threads(1):
        yield

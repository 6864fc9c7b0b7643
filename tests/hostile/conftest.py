"""Attacks, each with a number of tries: few in `make test`, all of them in `make soak`.

A try that fails is kept, and the others go on: an attack ends with how many of its tries failed, and the first of them.
At the end stands a table of all attacks, which `docs/reliability.md` shows of the last soak.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

SOAK = os.environ.get("NORMSCOPE_SOAK", "")
"""Empty for the short form; else the share of the whole that is run: 1 for all of it."""

TALLIES: list["Tally"] = []


class Tally:
    """The tries of one attack, and what failed."""

    def __init__(self, name: str) -> None:
        self.name, self.tries, self.failed = name, 0, list[str]()

    @contextmanager
    def one(self, what: object) -> Iterator[None]:
        """One try; an assertion or an error inside it is a failure, described by `what`."""
        self.tries += 1
        try:
            yield
        except Exception as error:
            self.failed.append(f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:300]}")


@pytest.fixture
def attack(request) -> Iterator[Tally]:
    """The tally of a test: it fails at the end if any of its tries did."""
    tally = Tally(request.node.nodeid.partition("hostile/")[2])
    TALLIES.append(tally)
    yield tally
    assert tally.tries
    assert not tally.failed, f"{len(tally.failed)} of {tally.tries} tries failed:\n" + "\n".join(tally.failed[:10])


@pytest.fixture
def tries() -> Callable[[int, int], range]:
    """`tries(short, whole)`: the numbers of the tries of this session, each of which fixes its own random numbers."""
    return lambda short, whole: range(max(short, round(whole * float(SOAK))) if SOAK else short)


@pytest.fixture
def chance() -> Callable[[int], random.Random]:
    """Random numbers that a try's number fixes."""
    return lambda number: random.Random(number)


def pytest_terminal_summary(terminalreporter) -> None:
    """The table of attacks."""
    if TALLIES and SOAK:
        terminalreporter.section("attacks")
        for tally in TALLIES:
            terminalreporter.write_line(f"| {tally.name} | {tally.tries} | {len(tally.failed)} |")

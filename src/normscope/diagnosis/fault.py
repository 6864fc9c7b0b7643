"""What a fault is: the file of each gives one `FAULT`, found by listing the folder `faults`.

A *symptom* is read from the measured evidence alone (`rule`). A *repairable* fault is suspected from the facts of the
program, and said where its repair, run in the same number of steps, learns what the program as it is does not.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import xarray as xr

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.finding import Finding
from normscope.diagnosis.program import Program

GAIN = 0.15
"""A repair is needed where the program loses this much without it."""

CATEGORIES = (
    "activation",
    "loss",
    "learning_rate",
    "optimizer",
    "epochs",
    "batch_size",
    "initialization",
    "preprocessing",
    "labels",
    "architecture",
    "regularization",
    "numerics",
)
"""The kinds of faults that the literature tells apart."""


@dataclass(frozen=True)
class Repair:
    """A program mended, and the lines by which its user mends it."""

    program: Program
    code: str
    done: str
    """What was done, to be read behind "with": "the inputs standardized"."""
    place: str = ""


@dataclass(frozen=True)
class Suspicion:
    """Why a fault is suspected of a program."""

    title: str
    sentence: str
    """What was measured."""
    numbers: dict[str, float]
    certain: bool = False
    """Whether it is wrong whatever a run shows: the outputs that the loss asks for cannot be reached."""
    place: str = ""


@dataclass(frozen=True)
class Fault:
    """One thing that can be wrong."""

    name: str
    category: str
    order: int
    """Where it is told among others of equal weight: causes before effects."""
    rule: Callable[[xr.Dataset], Finding | None] | None = None
    """Of a symptom: reads the evidence of `measure_evidence`."""
    detail: Callable[[Finding, Facts], Finding] | None = None
    """Adds to a symptom what the program's facts say of its cause."""
    last: bool = False
    """Whether a symptom is judged only of what has nothing else wrong."""
    suspected: Callable[[Facts], Suspicion | None] | None = None
    repairs: Callable[[Program, Facts], Iterator[Repair]] | None = None
    """One or several ways to mend it, the best guess first. A symptom that has one is said where it is needed."""
    advice: Callable[[Facts, Suspicion], tuple[str, str]] | None = None
    """What to do and the lines that do it, of a fault without a repair that can be run."""
    early: bool = False
    """Whether it is seen before anything is measured, in the first pass over the batches."""
    grave: bool = False
    """Whether a symptom is said of every program that does not learn nearly all, and before what tuning would gain."""
    harmless: bool = False
    """Whether a symptom is no harm by itself: then it is said only of a program that does not learn nearly all."""
    gain: float = GAIN
    """How much its repair must gain."""
    tuning: bool = False
    """Whether a sound program may gain from it too: then it is said only of a program that does not learn."""


def named(layers: Sequence[str]) -> str:
    """Layers in a sentence: "layer 0", "layers 0, 2"."""
    return f"layer{'s' * (len(layers) > 1)} {', '.join(layers)}"


def module(path: str) -> str:
    """A module in a sentence."""
    return f"module {path}" if path else "the model's own forward"


@cache
def faults() -> tuple[Fault, ...]:
    """Every fault there is, in the order in which they are told."""
    import normscope.diagnosis.faults as folder

    names = [module.name for module in pkgutil.iter_modules(folder.__path__)]
    found = [importlib.import_module(f"{folder.__name__}.{name}") for name in names]
    return tuple(sorted((module.FAULT for module in found if hasattr(module, "FAULT")), key=lambda fault: fault.order))


def suspicions(facts: Facts) -> list[tuple[Fault, Suspicion]]:
    """What is suspected of a program, and why."""
    asked = [(fault, fault.suspected(facts)) for fault in faults() if fault.suspected is not None]
    return [(fault, suspicion) for fault, suspicion in asked if suspicion is not None]

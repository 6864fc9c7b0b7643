"""What a check says of what limits the rates: the faults, or that none was found, and only where it learns."""

import math

import xarray as xr

from normscope.checkup.rows import rows
from normscope.diagnosis.finding import as_findings
from normscope.diagnosis.words import skipped

HEALTHY, WRONG = "No fault was found", "What is wrong"

LIMITS = ("", "exploding")
"""Findings that say what ends the rates; "" is that nothing is a fault. All others are wrong whatever the rate."""

NO_GOOD = ("diverges", "learns at no rate tried", "unfinished")
"""Judgements of one's own rate beside which nothing is called sound."""


def limits(tree: xr.DataTree) -> list[tuple[str, str]]:
    """What limits the rates, as title and text: the faults, or else what limits every network; nothing where it was not
    measured. "No fault was found" is not said of a model that does not learn."""
    found = as_findings(tree["findings"].to_dataset())
    faults = [(f.title, f"{f.sentence} To do: {f.advice}" if f.advice else f.sentence) for f in found if f.fault]
    if faults:
        return faults
    healthy = learns(tree) and not skipped(tree) and different_batches(tree) != 1
    return [(HEALTHY.lower() if healthy else f.title, f.sentence) for f in found]


def limits_title(tree: xr.DataTree) -> str:
    """What is said in front of the first of the `limits`."""
    found = as_findings(tree["findings"].to_dataset())
    if limits(tree)[:1] and limits(tree)[0][0] == HEALTHY.lower():
        return HEALTHY
    first = next((f.name for f in found if f.fault), "")
    return "What limits it" if first in LIMITS else WRONG


def learns(tree: xr.DataTree) -> bool:
    """Whether every seed learns: at the rate to train at, or at one's own where no other was looked for."""
    base = rows(tree)[0]
    if "own_rate" in tree.children and base.lr_recommended_found == "unfinished":
        own = tree["own_rate"].to_dataset()
        return bool((own["outcome"] == "learns").all()) and str(own["judgement"].values) not in NO_GOOD
    return base.lr_recommended_found == "learns on every seed" and not math.isnan(base.lr_stable)


def different_batches(tree: xr.DataTree) -> int | None:
    """How many different mini-batches there were; None where they come from a function of the seed."""
    number_of = str(tree.attrs.get("different_batches", ""))
    return int(number_of) if number_of.isdigit() else None


def first_code(tree: xr.DataTree) -> str:
    """The advice of the first fault as lines of Python; empty where it has none."""
    found = as_findings(tree["findings"].to_dataset())
    return next((f.code for f in found if f.fault), "")

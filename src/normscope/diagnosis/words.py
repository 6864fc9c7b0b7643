"""A diagnosis for people and for machines, from its tree alone: text of at most 79 columns, and JSON. No torch."""

import json
import math
import textwrap
from collections.abc import Iterator
from typing import Any

import xarray as xr

from normscope.diagnosis.finding import Finding, as_findings
from normscope.statistics.numbers import percent
from normscope.version import __version__

WIDTH = 79
"""Columns of a terminal, less one."""

NOT_LEARNING = 0.05
"""Less than this share of what there is to learn is not learning."""

HARDLY, MUCH = 0.2, 0.8
"""Less than these shares is said, for nothing tells whether more steps would learn the rest."""

SCHEMA, SCHEMA_VERSION = "normscope.findings", 1
"""Of the JSON. The version grows when a field goes or changes its meaning, and not when one is added."""


def skipped(tree: xr.DataTree) -> list[str]:
    """What could not be measured, in a diagnosis or in that of a check, a line each."""
    return [line for line in str(tree["findings"].attrs.get("skipped", "")).split("\n") if line]


def findings_text(tree: xr.DataTree, *, width: int = WIDTH) -> str:
    """The findings of a diagnosis as plain text: the first one whole, with its lines of code, the others in short."""
    found = as_findings(tree["findings"].to_dataset())
    faults = [finding for finding in found if finding.fault]
    lines = list(_first(faults[0], width)) if faults else list(_nothing(tree, width))
    for other in faults[1:]:
        lines += _wrapped(f"Also: {other.title} ({other.category}).", width, "  ")
    for line in skipped(tree):
        lines += _wrapped(line, width, "  ")
    return "\n".join(lines)


def findings_json(tree: xr.DataTree) -> str:
    """The findings of a diagnosis, or of a check, as JSON.

    `schema` and `version` name the format; `findings` are in the order in which to mend them, each with `name`,
    `category`, `title`, `sentence`, `advice`, `code`, `place`, `fault` and `numbers`; `training` is
    what `trainings` gives; `skipped` are lines. Numbers that are not finite are null.
    """
    return json.dumps(finite(findings_content(tree)), indent=1, ensure_ascii=False, allow_nan=False)


def findings_content(tree: xr.DataTree) -> dict[str, Any]:
    """What `findings_json` writes, of a diagnosis or of that of a check."""
    found = as_findings(tree["findings"].to_dataset())
    names = ("name", "category", "title", "sentence", "advice", "code", "place", "fault", "numbers")
    return {
        "schema": SCHEMA,
        "version": SCHEMA_VERSION,
        "normscope": __version__,
        "findings": [{name: getattr(finding, name) for name in names} for finding in found],
        "training": trainings(tree),
        "skipped": skipped(tree),
    }


def trainings(tree: xr.DataTree) -> dict[str, dict[str, Any]]:
    """The trainings of a diagnosis, or of that of a check, "as it is" and "mended", as far as there are: the number of
    `steps`, the `end_loss` (mean of the last tenth), the `constant_loss` of the best constant output, the `score` (1 is
    all there is to learn) and whether it `diverged`."""
    node = tree.children.get("as_it_is", tree).children.get("training")
    if node is None:
        return {}
    return {name.replace("_", " "): _trained(run.to_dataset()) for name, run in node.children.items()}


def _trained(run: xr.Dataset) -> dict[str, Any]:
    losses = run["loss"].values
    return {
        "steps": len(losses),
        "end_loss": float(losses[-max(1, len(losses) // 10) :].mean()),
        "constant_loss": float(run["constant_loss"]),
        "score": float(run["score"]),
        "diverged": bool(run["diverged"]),
    }


def score_of(tree: xr.DataTree) -> float:
    """The share of what there is to learn that the program as it is learned; NaN where it was not trained."""
    return trainings(tree).get("as it is", {}).get("score", math.nan)


def has_fault(tree: xr.DataTree) -> bool:
    """Whether anything is wrong."""
    return any(finding.fault for finding in as_findings(tree["findings"].to_dataset()))


def _first(finding: Finding, width: int) -> Iterator[str]:
    yield from _wrapped(f"{finding.title[0].upper()}{finding.title[1:]} ({finding.category}).", width)
    yield from _wrapped(finding.sentence, width, "  ", "  ")
    if finding.advice:
        yield from _wrapped(f"To do: {finding.advice}", width, "  ", "  ")
    for line in finding.code.splitlines():
        yield f"    {line}"


def _nothing(tree: xr.DataTree, width: int) -> Iterator[str]:
    """No fault: said as strongly as what was trained allows."""
    run = trainings(tree).get("as it is")
    score, steps = (run["score"], run["steps"]) if run else (math.nan, 0)
    if run is None or math.isnan(score):
        said = "No fault was found, but it was not trained: whether it learns is not known."
    elif run["diverged"]:
        said = f"No fault was found, but it diverges at step {steps}: give a smaller rate, and look at the data."
    elif score < HARDLY and any("There was no time" in line for line in skipped(tree)):
        said = f"No fault was found in the time there was, after {many(steps)} of training: give it more `seconds`."
    elif score < NOT_LEARNING:
        said = f"No fault was found, but it does not learn in {many(steps)}: look at the data, and give it more steps."
    elif score < HARDLY:
        said = (
            f"No fault was found, but it hardly learns: {many(steps)} learn {percent(score)} of what there is to learn."
        )
    elif score < MUCH:
        said = f"No fault was found. {many(steps)} learn {percent(score)} of what there is to learn."
    else:
        said = "No fault was found."
    yield from _wrapped(said, width)


def many(steps: int) -> str:
    """ "1 step", "40 steps"."""
    return f"{steps} step{'s' * (steps != 1)}"


def _wrapped(text: str, width: int, indent: str = "", first: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def finite(value: Any) -> Any:
    """Plain values with null in the place of numbers that are not finite."""
    if isinstance(value, dict):
        return {name: finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

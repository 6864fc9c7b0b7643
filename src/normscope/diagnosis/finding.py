"""One thing found in a model, in words that need no paper, and findings as a Dataset. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr

from normscope.results import labelled


@dataclass(frozen=True)
class Finding:
    """What is wrong, or what limits the rate of a model in which nothing is wrong."""

    name: str
    """One word, the same in every version: "exploding"."""
    title: str
    """A few words: "activations explode along the step"."""
    sentence: str
    """What was measured, and what it means."""
    advice: str
    """What to try; empty where nothing is wrong."""
    fault: bool = True
    """Whether it is wrong, or only what limits every network."""
    numbers: dict[str, float] = field(default_factory=dict)
    """The measured numbers that decided, by the names of the evidence's variables where they have one."""
    category: str = ""
    """One of `fault.CATEGORIES`; empty where nothing is wrong."""
    place: str = ""
    """The layer, parameter, batch or example that is meant; empty for the whole."""
    code: str = ""
    """The advice as lines of Python."""


def findings_dataset(found: Sequence[Finding]) -> xr.Dataset:
    """Findings over `finding` (their names): `title`, `sentence`, `advice`, `fault`, `category`,
    `place`, `code`, and as JSON text the `numbers`."""

    def texts(name: str) -> np.ndarray:
        return np.asarray([getattr(finding, name) for finding in found], dtype=str)

    return labelled(
        {
            "title": ("finding", texts("title"), "what was found", "1"),
            "sentence": ("finding", texts("sentence"), "what was measured", "1"),
            "advice": ("finding", texts("advice"), "what to try", "1"),
            "fault": ("finding", [finding.fault for finding in found], "whether it is wrong", "1"),
            "category": ("finding", texts("category"), "kind of fault", "1"),
            "place": ("finding", texts("place"), "layer, parameter, batch or example", "1"),
            "code": ("finding", texts("code"), "the advice as lines of Python", "1"),
            "numbers": ("finding", [json.dumps(finding.numbers) for finding in found], "what decided", "1"),
        },
        {"finding": (texts("name"), "finding", "1")},
    )


def as_findings(dataset: xr.Dataset) -> list[Finding]:
    """Findings back from their Dataset."""

    def text(name: str, place: int) -> str:
        return str(dataset[name].values[place]) if name in dataset else ""  # results of before have no such

    return [
        Finding(
            name=str(name),
            title=str(dataset["title"].values[i]),
            sentence=str(dataset["sentence"].values[i]),
            advice=str(dataset["advice"].values[i]),
            fault=bool(dataset["fault"].values[i]),
            numbers=json.loads(str(dataset["numbers"].values[i])),
            category=text("category", i),
            place=text("place", i),
            code=text("code", i),
        )
        for i, name in enumerate(dataset["finding"].values)
    ]

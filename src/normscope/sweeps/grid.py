"""In which fields the runs of a sweep differ, and how a run is called among the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from normscope.data.names import STORED_SIZES
from normscope.training.config import DATA_SIZES, RunConfig

FIELDS: tuple[str, ...] = tuple(field.name for field in fields(RunConfig))


def axes_of(configs: Sequence[RunConfig]) -> dict[str, list[Any]]:
    """The fields that vary, in the order of `RunConfig`, with their values in rising order."""
    axes = {name: sorted({value_of(config, name) for config in configs}) for name in FIELDS}
    return {name: values for name, values in axes.items() if len(values) > 1}


def value_of(config: RunConfig, name: str) -> Any:
    """A field's value as a coordinate has it: None for all training images as their number, None for the stored size of
    images as that, milestones as text."""
    value = getattr(config, name)
    if name == "image_size" and value is None:
        return STORED_SIZES[config.data]
    if name == "train_size" and value is None:
        return DATA_SIZES[config.data] - config.held_out
    return ", ".join(map(str, value)) if isinstance(value, tuple) else value


def label(config: RunConfig, axes: Sequence[str]) -> str:
    """What tells a run from the others: "norm batch, lr 0.1, seed 2"."""
    return ", ".join(f"{name} {value_of(config, name)}" for name in axes) or "the only run"

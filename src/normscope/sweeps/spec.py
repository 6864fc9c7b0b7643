"""What a sweep consists of: a TOML file or mapping with a base and axes, or a list of configs.

[base]                      # fields of RunConfig; what is left out is the paper's
net = "resnet20"
epochs = 30

[axes]                      # every combination is a run
norm = ["batch", "none"]
lr = [0.1, 0.003]
seed = [0, 1, 2]
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

from normscope.errors import InvalidConfig, one_line, unknown
from normscope.results import read_bytes
from normscope.training.config import RunConfig, key

PARTS: tuple[str, ...] = ("base", "axes")

MOST_BYTES = 2**20
"""Of a TOML file."""

MOST_RUNS = 100_000
"""Of a sweep: years of training for anybody, and a slip of the pen for most."""

Spec = str | Path | Mapping[str, Any] | RunConfig | Sequence[RunConfig]


def configs_of(spec: Spec) -> list[RunConfig]:
    """Every run of a sweep, each once: a path to a TOML file, a mapping as such a file holds, or the configs.

    Raises:
        InvalidConfig: for an unknown part or key, a value that cannot be, an axis that is empty or has a value twice,
            no runs at all; with the near miss where a name has one. Nothing has been run then.
    """
    if isinstance(spec, str | Path):
        path = Path(spec)
        try:
            return _configs_of_mapping(_read(path))
        except InvalidConfig as error:
            raise InvalidConfig(f"{path}: {error}") from error
    if isinstance(spec, Mapping):
        return _configs_of_mapping(spec)
    configs = [spec] if isinstance(spec, RunConfig) else list(spec)
    for config in configs:
        if not isinstance(config, RunConfig):
            raise InvalidConfig(f"a sweep is a spec or a list of RunConfigs; this list holds a {type(config).__name__}")
    if not configs:
        raise InvalidConfig("no runs: give one config or more")
    return list({key(config): config for config in configs}.values())


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.exists():
            raise InvalidConfig("no such file: give a TOML file with [base] and [axes]")
        return tomllib.loads(read_bytes(path, most=MOST_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:  # of TOML's own errors, too
        reason = getattr(error, "strerror", None) or one_line(error)
        raise InvalidConfig(f"cannot be read as TOML ({reason})") from error


def _configs_of_mapping(spec: Mapping[str, Any]) -> list[RunConfig]:
    for part, values in spec.items():
        if part not in PARTS:
            raise unknown("part", part, PARTS)
        if not isinstance(values, Mapping):
            raise InvalidConfig(f"{part} is {values!r}: give a table, [{part}]")
    base, axes = spec.get("base", {}), spec.get("axes", {})
    known = [field.name for field in fields(RunConfig)]
    for part, values in (("base", base), ("axes", axes)):
        for name in values:
            if name not in known:
                raise unknown(f"key in [{part}]:", name, known)
    for name, values in axes.items():
        if name in base:
            raise InvalidConfig(f"{name} is in [base] and in [axes]: leave it in one of them")
        if not isinstance(values, list | tuple):
            raise InvalidConfig(f"axis {name} is {values!r}: give a list, or move it to [base]")
        if not values:
            raise InvalidConfig(f"axis {name} is empty: give one value or more, or leave it out")
    if not base and not axes:
        raise InvalidConfig("neither [base] nor [axes] says anything: give what to train; an empty spec trains nothing")
    number = math.prod(map(len, axes.values()))
    if number > MOST_RUNS:
        raise InvalidConfig(f"the axes span {number} runs: {MOST_RUNS} are the most of one sweep; give fewer values")
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    configs = [RunConfig.from_mapping({**base, **point}) for point in points]
    for name, values in axes.items():
        if len({getattr(config, name) for config in configs}) < len(values):
            raise InvalidConfig(f"axis {name} has a value twice: {list(values)}")
    return configs

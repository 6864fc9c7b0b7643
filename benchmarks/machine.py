"""On what a benchmark ran: processor, instructions, threads and versions, to print and to keep beside the rows."""

import importlib.metadata
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

RIVALS = {"opacus": "Opacus", "backpack-for-pytorch": "BackPACK", "PyHessian": "PyHessian"}
RIVALS |= {"torch-lr-finder": "torch-lr-finder"}
"""Whom we are compared with, by package. A benchmark leaves out those that are not installed."""


def about() -> dict[str, Any]:
    """The machine and the versions, in plain values. A rival that is not installed has None for a version."""
    import torch  # here, since the list of benchmarks needs none

    instructions = {"bf16": "_is_avx512_bf16_supported", "amx": "_is_amx_tile_supported"}
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        **{name: bool(getattr(torch.cpu, test, lambda: False)()) for name, test in instructions.items()},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("normscope", "torch", "numpy", *RIVALS)},
    }


def headline() -> str:
    """The machine in two lines."""
    known = about()
    load = "" if known["load"] is None else f"; load {known['load']:.1f} before it began"
    bf16 = " and ".join(name for name, has in (("AVX512-BF16", known["bf16"]), ("AMX", known["amx"])) if has)
    cores = f"{known['cores']} cores, {known['capability']}, {bf16 or 'no bf16 instructions'}"
    gpu = f"; {known['gpu']}" if known["gpu"] else ""
    return f"{known['processor']}, {cores}{gpu}\ntorch {known['versions']['torch']}, {known['threads']} threads{load}"


def missing() -> list[str]:
    """The rivals that are not installed."""
    return [name for package, name in RIVALS.items() if version(package) is None]


def version(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name, as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write_json(path: str | Path, found: Any) -> None:
    """Store plain values as JSON, which has no NaN and no infinities: those are null."""
    Path(path).write_text(json.dumps(_finite(found), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

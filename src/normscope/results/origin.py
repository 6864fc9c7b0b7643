"""Where a result comes from: versions, machine, device, threads."""

import platform
from typing import Any

import xarray as xr

from normscope.version import __version__


def provenance(*, device: Any = "cpu", dtype: Any = "float32", **config: Any) -> dict[str, Any]:
    """What a result says of its origin: versions, machine, device, dtype, threads, and the configuration given."""
    import torch

    return {
        "normscope": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        **config,
    }


def provenance_of(dataset: xr.Dataset) -> dict[str, Any]:
    """What of a result's attributes `provenance` gave."""
    return {name: dataset.attrs[name] for name in provenance()}

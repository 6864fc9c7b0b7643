"""Which device is used: a name checked before anything is built on it."""

import torch

from normscope.errors import DeviceError


def usable_device(name: str) -> str:
    """The device's name, `auto` meaning the GPU where there is one; DeviceError for one that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError, ValueError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise DeviceError(f"no device {name!r} here: there is {', '.join(there)}; give one of them or auto") from error
    return name

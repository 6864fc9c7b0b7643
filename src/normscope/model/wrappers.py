"""The module inside a compiled or wrapped one, which is what is measured: hooks see its layers, and it has the same
parameters."""

from typing import Any

import torch
from torch import nn

from normscope.errors import DeviceError, InvalidModel, one_line
from normscope.model.build import build_model

WRAPPERS = ("DataParallel", "DistributedDataParallel")


def eager(model_or_build: Any, *, device: str | None = None) -> Any:
    """The module without `torch.compile` and DataParallel around it, or a build of such modules; moved to the device
    where one is given.

    Raises:
        InvalidModel: neither a module nor a function; a TorchScript module, whose layers cannot be watched; one with a
            part that is compiled.
        DeviceError: no memory left on the device.
    """
    if isinstance(model_or_build, nn.Module):
        return _inside(model_or_build, device)
    if not callable(model_or_build):
        what = type(model_or_build).__name__
        raise InvalidModel(f"the model is of type {what}: give an nn.Module or a function that builds one")

    def build(seed: int) -> nn.Module:
        return _inside(build_model(model_or_build, seed), device)

    build.__name__ = getattr(model_or_build, "__name__", type(model_or_build).__name__)
    return build


def _inside(model: nn.Module, device: str | None) -> nn.Module:
    while True:
        if isinstance(inner := model._modules.get("_orig_mod"), nn.Module) or (
            type(model).__name__ in WRAPPERS and isinstance(inner := model._modules.get("module"), nn.Module)
        ):
            model = inner
        else:
            break
    for path, module in model.named_modules():
        where = f"module {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise InvalidModel(f"{where} is TorchScript, whose layers cannot be watched: give what it was made from")
        if module._compiled_call_impl is not None or "_orig_mod" in module._modules:
            raise InvalidModel(f"{where} is compiled: give the model as it is before that")
    if device is None:
        return model
    try:
        return model.to(device)
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"no memory on {device} for the model: {one_line(error)[:120]}") from error

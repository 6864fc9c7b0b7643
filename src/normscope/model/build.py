"""The model in what somebody gives: a module, plain, compiled or wrapped, or a function `build(seed)` or `build()`."""

import inspect
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from normscope.errors import DeviceError, InvalidModel, NormscopeError, one_line, raised

ModelOrBuild = nn.Module | Callable[..., nn.Module]
"""A model, or a function that builds one: `build(seed)`, or `build()`."""

WRAPPERS = ("DataParallel", "DistributedDataParallel")


def eager(model_or_build: ModelOrBuild, *, device: str | None = None) -> ModelOrBuild:
    """What is measured: the module without `torch.compile` and DataParallel around it, whose layers hooks see and
    whose parameters are the same, or a build of such modules; moved to the device where one is given.

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


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside `torch.compile` and DataParallel; its parts may still be compiled."""
    while True:
        if isinstance(inner := model._modules.get("_orig_mod"), nn.Module) or (
            type(model).__name__ in WRAPPERS and isinstance(inner := model._modules.get("module"), nn.Module)
        ):
            model = inner
        else:
            return model


def uncompiled() -> AbstractContextManager[object]:
    """A context in which compiled parts of a model run as they were written."""
    # Asking torch itself loads its compiler, which takes seconds: nothing can be compiled where that is not loaded.
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def instance_of(model_or_build: ModelOrBuild, seed: int = 0) -> nn.Module:
    """The model itself, or one that is built."""
    return model_or_build if isinstance(model_or_build, nn.Module) else build_model(model_or_build, seed)


def build_model(build: Callable[..., Any], seed: int) -> nn.Module:
    """`build(seed)`, or `build()` where it takes no seed, with torch's generators at `seed`; they are left as found.

    A parameter is taken for the seed if it is called so, or if it is the only one without a default.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = build(**{"seed": seed}) if _takes_seed_by_name(build) else build(*[seed] * _num_required(build))
        except (NormscopeError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:
            raise InvalidModel(f"build raised {raised(error)}") from error
    if not isinstance(model, nn.Module):
        raise InvalidModel(f"build(seed) gave a {type(model).__name__}, not an nn.Module")
    return model


def _takes_seed_by_name(build: Callable[..., Any]) -> bool:
    """Whether there is a parameter called `seed` that can be given by name."""
    parameter = _parameters(build).get("seed")
    return parameter is not None and parameter.kind is not parameter.POSITIONAL_ONLY


def _num_required(build: Callable[..., Any]) -> int:
    """How many positional parameters have no default: none, or one that is the seed."""
    required = [
        p
        for p in _parameters(build).values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 1:
        names = ", ".join(p.name for p in required)
        raise InvalidModel(f"build needs {names}: give a function that takes the seed alone")
    return len(required)


def _parameters(build: Callable[..., Any]) -> Any:
    try:
        return inspect.signature(build).parameters
    except (TypeError, ValueError):
        return {}


def _inside(model: nn.Module, device: str | None) -> nn.Module:
    model = unwrapped(model)
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
    except NotImplementedError as error:  # parameters on meta
        raise InvalidModel(f"the model cannot be moved to {device}: {one_line(error)[:120]}") from error

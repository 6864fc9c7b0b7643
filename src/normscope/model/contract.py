"""What holds for every instrument, whatever it is given: gradients are on inside, and what goes wrong is one line."""

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import UnionType
from typing import Any, ParamSpec, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor, nn

from normscope.errors import (
    DeviceError,
    InternalError,
    InvalidBatch,
    InvalidConfig,
    InvalidModel,
    NormscopeError,
    bug,
    one_line,
    raised,
)
from normscope.model.batch import Batch, map_tensors
from normscope.model.build import uncompiled
from normscope.model.loss import refuse_bare_loss

P = ParamSpec("P")
R = TypeVar("R")


def instrument(function: Callable[P, R]) -> Callable[P, R]:
    """An instrument whose first argument is a model or its build, and the second one, if it is called so, a batch.

    Also under `no_grad` and in inference mode it computes the gradients that it needs, and compiled parts run as they
    were written, so that hooks see them. What is raised inside is said in
    one line, with the original as its cause: as the model's, which is somebody's own code, or as a bug of ours.
    """
    signature = inspect.signature(function)
    model_name, second = [*signature.parameters, ""][:2]
    measures = signature.return_annotation is not nn.Module  # what only changes a copy needs no numbers

    @wraps(function)
    def measured(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                model = given.arguments[model_name]
                _refuse_unreadable(model, swapped=isinstance(given.arguments.get(second), nn.Module), measured=measures)
                if not isinstance(model, nn.Module) and signature.parameters[model_name].annotation is nn.Module:
                    raise InvalidModel(f"{function.__name__} takes an nn.Module: give what the function builds")
                if second == "batch":
                    given.arguments["batch"] = _readable_batch(given.arguments["batch"])
                refuse_bare_loss(given.arguments.get("loss_fn"))
                for name, value in given.arguments.items():
                    _refuse_no_number(name, value, signature.parameters[name].annotation)
                with _dense_gradients(model), _same_random(), uncompiled():
                    return function(*given.args, **given.kwargs)
        except (NormscopeError, KeyboardInterrupt, GeneratorExit):
            raise
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise DeviceError(f"out of memory: give a smaller batch ({one_line(error)[:120]})") from error
        except BaseException as error:  # somebody's own code may raise anything, or exit
            if said := bug(error):
                raise InternalError(said) from error
            raise InvalidModel(f"{function.__name__} does not work on this model: {raised(error)}") from error

    return measured


def _refuse_no_number(name: str, value: Any, annotation: Any) -> None:
    """Raise InvalidConfig for an argument that is annotated as a number and is none: text, a list, 10.0 for a count."""
    kinds = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
    if value is None or not {int, float, type(None)}.issuperset(kinds):
        return
    what, method = ("number", "__float__") if float in kinds else ("whole number", "__index__")
    if not hasattr(value, method):
        raise InvalidConfig(f"{name} is {value!r:.40}: give a {what}")


@contextmanager
def _dense_gradients(model: Any) -> Iterator[None]:
    """Inside, embeddings give the same gradient as an ordinary tensor, where they were asked for a sparse one."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    sparse = [module for module in modules if vars(module).get("sparse") is True]
    try:
        for module in sparse:
            vars(module)["sparse"] = False
        yield
    finally:
        for module in sparse:
            vars(module)["sparse"] = True


@contextmanager
def _same_random() -> Iterator[None]:
    """Put Python's and numpy's random states back, which models and loaders of somebody's own may draw from."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _refuse_unreadable(model: Any, *, swapped: bool = False, measured: bool = True) -> None:
    """Raise the error for what nothing can be measured of: no model, none whose layers or numbers can be seen.

    Raises:
        InvalidModel: neither a module nor a function; TorchScript, whole or in part; parameters without numbers, or
            complex.
        InvalidConfig: where torch makes all tensors without numbers.
    """
    if torch.empty(0).is_meta:  # torch 2.6 cannot name its default device after set_default_device(None)
        raise InvalidConfig("torch's default device is meta, where no tensor has numbers: set_default_device('cpu')")
    if not callable(model):
        hint = "model and batch are swapped" if swapped else "give an nn.Module or a function that builds one"
        raise InvalidModel(f"the model is of type {type(model).__name__}: {hint}")
    if not isinstance(model, nn.Module):
        return
    for path, module in model.named_modules():
        where = f"module {path!r}" if path else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise InvalidModel(f"{where} is TorchScript, whose layers cannot be watched: give what it was made from")
        if type(module).__module__.startswith("torch.ao.nn.quantized") and measured:
            raise InvalidModel(f"{where} is quantized, and has no gradients: give the model as it was before that")
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta and measured:
                raise InvalidModel(f"{where} is on meta: {name} has no numbers; move it with .to_empty() and fill it")
            if parameter is not None and parameter.is_complex() and measured:
                raise InvalidModel(
                    f"{where} has a complex parameter, {name}: gradients are measured of real ones; keep it as real "
                    "ones, with torch.view_as_complex in forward"
                )


def _readable_batch(batch: Batch) -> Batch:
    """The batch with tensors that autograd takes no interest in; the same object where it has no others.

    Raises:
        InvalidBatch: a model in the place of the batch, a tensor without numbers.
    """
    if isinstance(batch, nn.Module):
        raise InvalidBatch(f"the batch is a model ({type(batch).__name__}): give (inputs, labels) or a mapping")
    tensors: list[Tensor] = []
    try:
        map_tensors(batch, lambda tensor: tensors.append(tensor) or tensor)
    except RecursionError as error:
        raise InvalidBatch("the batch's lists and mappings lie too deep in each other: give fewer") from error
    if any(tensor.is_meta for tensor in tensors):
        raise InvalidBatch("a tensor of the batch is on meta, where none has numbers: give it on the model's device")
    if not any(map(_is_of_autograd, tensors)):
        return batch
    return map_tensors(batch, lambda tensor: tensor.detach().clone() if _is_of_autograd(tensor) else tensor)


def _is_of_autograd(tensor: Tensor) -> bool:
    return tensor.requires_grad or tensor.is_inference()

"""Which layers of a model are watched, as it is registered or as a mini-batch calls it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from normscope.errors import InvalidModel
from normscope.model.batch import on_device
from normscope.model.build import ModelOrBuild, eager, instance_of
from normscope.model.layers import LayerCall, record_calls, watched_modules
from normscope.model.loss import LossFn, checked_loss, readable_errors, without_graph
from normscope.model.mini_batches import Batches, mini_batches
from normscope.model.output import first_tensor
from normscope.model.state import untouched


@dataclass(frozen=True)
class Call:
    """One watched layer, or one call of it."""

    name: str
    type: str
    weight: tuple[int, ...]
    """The shape of its largest own parameter."""
    output: tuple[int, ...] = ()
    """The shape of what it gives; empty where it was not called."""


def registered(model_or_build: ModelOrBuild) -> list[Call]:
    """The watched layers in the order of registration."""
    return [_call(path, module) for path, module in watched_modules(_model(model_or_build)).items()]


def calls(model_or_build: ModelOrBuild, batches: Batches, *, loss_fn: LossFn | None = None) -> list[Call]:
    """The watched calls of one mini-batch in execution order, in training mode; the model comes back untouched."""
    source = eager(model_or_build)
    of_seed, _ = mini_batches(batches, 1)
    model = instance_of(source)
    parameter = next(model.parameters(), None)
    batch = on_device(next(of_seed(0)), torch.device("cpu") if parameter is None else parameter.device)

    def passed() -> list[Call]:
        found: list[Call] = []

        def on_call(call: LayerCall) -> None:
            found.append(_call(call.name, call.module, tuple(call.output.shape)))

        with untouched(model), record_calls(model, on_call):
            model.train()
            checked_loss(model, batch, loss_fn)
        return found

    return without_graph(passed)


def num_outputs(model_or_build: ModelOrBuild, inputs: Tensor) -> int:
    """How many outputs a model has for each example of these inputs: the last dimension, or dimension 1 of images.

    Raises:
        InvalidBatch: where the model does not take the inputs.
        InvalidModel: where its output is no tensor over examples.
    """
    model = _model(model_or_build)
    parameter = next(model.parameters(), None)
    with untouched(model), torch.no_grad(), readable_errors():
        model.train()
        output = first_tensor(model(inputs if parameter is None else inputs.to(parameter.device)))
    if output is None or output.ndim < 2:
        raise InvalidModel("the model gives no outputs over (examples, classes): random labels cannot be drawn for it")
    return output.shape[1] if output.ndim != 3 else output.shape[-1]


def _model(model_or_build: ModelOrBuild) -> nn.Module:
    return instance_of(eager(model_or_build))


def _call(name: str, module: nn.Module, output: tuple[int, ...] = ()) -> Call:
    own = [tuple(p.shape) for p in module.parameters(recurse=False) if p.ndim >= 2]
    weight = max(own, key=lambda shape: torch.Size(shape).numel(), default=())
    return Call(name, type(module).__name__, weight, output)

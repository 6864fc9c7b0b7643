"""What a forward pass on a batch calls, in which order, and what shapes come out."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from normscope.model.batch import Batch
from normscope.model.layers import LayerCall, record_calls
from normscope.model.loss import LossFn, readable_errors, without_graph
from normscope.model.output import Output, call
from normscope.model.state import untouched
from normscope.surgery.places import is_norm


@dataclass(frozen=True)
class Calls:
    """The calls of one forward pass."""

    order: list[nn.Module] = field(default_factory=list)
    """The module of each call, in the order in which the calls end."""
    shapes: dict[nn.Module, list[torch.Size]] = field(default_factory=dict)
    """The shape of the output of each call of a module."""


def calls_of(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None) -> Calls:
    """Pass the batch through the model, in the mode that it is in, leaving it untouched.

    Raises:
        InvalidBatch: where the model does not take this batch.
    """

    def passed() -> Calls:
        calls = Calls()

        def on_call(call: LayerCall) -> None:
            calls.order.append(call.module)
            calls.shapes.setdefault(call.module, []).append(call.output.shape)

        with untouched(model), record_calls(model, on_call, "*"), readable_errors():
            forward(model, batch, loss_fn)
        return calls

    return without_graph(passed)


def forward(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None) -> Output:
    """`loss_fn(model, batch)`; without it, the model of `(inputs, labels)`, of a mapping's items or of a tensor."""
    return call(model, batch) if loss_fn is None else loss_fn(model, batch)


def output_layer(model: nn.Module, calls: Calls | None) -> tuple[str, nn.Module | None]:
    """Path and module of the last layer with a weight of two dimensions or more: the last that is called or, without
    calls, registered. ("", None) where there is no such layer."""
    paths = {module: path for path, module in model.named_modules() if owns_layer_weight(path, module)}
    last = next((m for m in reversed(list(paths) if calls is None else calls.order) if m in paths), None)
    return ("", None) if last is None else (paths[last], last)


def owns_layer_weight(path: str, module: nn.Module) -> bool:
    """Whether a module is a layer with a weight of two dimensions or more; norms and bare parameters are none."""
    if is_norm(path, module) or "parametrizations" in path.split("."):
        return False
    own = module.named_parameters(recurse=False)
    return is_parametrized(module, "weight") or any("weight" in name and p.ndim >= 2 for name, p in own)

"""Norms of the weights, put on the layers of a copy that is its own: the second half of `with_norm`."""

from typing import Any

import torch
from torch import Tensor, nn

from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.batch import Batch
from normscope.model.loss import LossFn, readable_errors, without_graph
from normscope.model.state import untouched
from normscope.nets.attachment import OUTPUT_NORM, detach, is_attached
from normscope.nets.weight_norms import WEIGHT_NORMS, parametrize_weight
from normscope.surgery.calls import forward
from normscope.surgery.operation import Operation
from normscope.surgery.refusals import has_weight_of_its_own


def norm_to_place(kind: str) -> str:
    """The norm that `with_norm` first puts behind the layers of a norm of the weights: so that what may not be changed
    is refused as for any other. One that takes any shape, where none stays."""
    behind = WEIGHT_NORMS.get(kind, kind)
    return "tanh" if kind in WEIGHT_NORMS and behind == "none" else behind


def check_place(kind: str, where: Any) -> None:
    """Raise InvalidConfig for a place where a norm of the weights cannot be."""
    if where in ("swap", "final"):
        raise InvalidConfig(
            f"norm {kind!r} changes the weights of layers and takes no norm's place: say where='everywhere', or name "
            "layers"
        )


def norm_weights(operation: Operation, kind: str, batch: Batch, loss_fn: LossFn | None) -> None:
    """Parametrize the weight of each layer that a norm was put behind, and take off those norms that do not stay.

    With a batch, weight norm's g is set from it as its authors do: so that each channel of each layer has standard
    deviation 1 on it. Without, layers stay as they are at first.
    """
    layers = list(operation.placed)
    for layer in layers:
        if not is_attached(layer, OUTPUT_NORM):
            raise InvalidConfig(f"norm {kind!r} is of layers' weights, and a norm is named: name layers")
        if not has_weight_of_its_own(layer):
            raise InvalidModel(
                f"layer {operation.path(layer)!r} ({type(layer).__name__}) has no weight of its own, or one that is "
                f"computed from others: norm {kind!r} cannot be put on it"
            )
        try:
            parametrize_weight(layer, kind)
        except InvalidConfig as error:
            raise InvalidConfig(f"at {operation.path(layer)!r}: {error}") from None
        if WEIGHT_NORMS[kind] == "none":
            detach(layer, OUTPUT_NORM)
            del operation.placed[layer]
        else:  # weight norm's g is the scale already
            layer.get_submodule(OUTPUT_NORM).get_parameter("weight").requires_grad_(False)
    if kind == "weight_mean" and batch is not None:
        _set_scale(operation.model, layers, batch, loss_fn)


def _set_scale(model: nn.Module, layers: list[nn.Module], batch: Batch, loss_fn: LossFn | None) -> None:
    """Divide g by the standard deviation of each channel in one forward pass, in which every layer sees what those in
    front of it give once they are divided. A channel that is constant keeps its g."""
    found: dict[nn.Module, Tensor] = {}

    def divided(layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        dim = -1 if isinstance(layer, nn.Linear) else 1
        std = output.movedim(dim, -1).flatten(0, -2).std(0, correction=0)
        found[layer] = torch.where(std > 0, std, 1.0).detach()
        return output / (found[layer] if dim == -1 else found[layer].reshape(-1, *[1] * (output.dim() - 2)))

    handles = [layer.register_forward_hook(divided, prepend=True) for layer in layers]

    def passed() -> None:
        with untouched(model), readable_errors():
            model.train()
            forward(model, batch, loss_fn)

    try:
        without_graph(passed)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad():
        for layer, std in found.items():
            g = layer.get_parameter("parametrizations.weight.original0")
            g.div_(std.reshape(g.shape))

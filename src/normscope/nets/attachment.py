"""A norm attached to a layer: a child of the layer, and a hook that applies it.

Why a hook, and neither a new layer in the layer's place nor a subclass of it: the layer stays the object that it is,
so that its weight keeps its name (`conv1.weight`; the norm's is `conv1.output_norm.weight`), code that asks for its
type or reads its attributes goes on working, and torch's fused transformer layers, which read weights past any
module's forward, see a hook and step aside. It is copied, pickled, moved and saved with the layer.

`layers.record_calls` runs before it, so what is measured at the layer is the layer's own output, in front of the norm,
as in a network that was written with norms.
"""

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

OUTPUT_NORM = "output_norm"
"""What the norm behind a layer is called, as its child."""

INPUT_NORM = "input_norm"
"""What the norm in front of a layer is called, as its child."""


def attach_behind(layer: nn.Module, norm: nn.Module) -> None:
    """Apply `norm` to each output of `layer` from now on."""
    layer.register_module(OUTPUT_NORM, norm)
    _keep_handle(layer, OUTPUT_NORM, layer.register_forward_hook(_normalize_output))


def attach_in_front(layer: nn.Module, norm: nn.Module) -> None:
    """Apply `norm` to each first input of `layer` from now on."""
    layer.register_module(INPUT_NORM, norm)
    _keep_handle(layer, INPUT_NORM, layer.register_forward_pre_hook(_normalize_input, with_kwargs=True))


def is_attached(layer: nn.Module, name: str) -> bool:
    """Whether `layer`'s child `name` is a norm that was attached to it here."""
    return isinstance(getattr(layer, f"{name}_hook", None), RemovableHandle)


def detach(layer: nn.Module, name: str) -> None:
    """Undo an attachment."""
    getattr(layer, f"{name}_hook").remove()
    delattr(layer, f"{name}_hook")
    delattr(layer, name)


def _keep_handle(layer: nn.Module, name: str, handle: RemovableHandle) -> None:
    # On the layer, because a handle that is unpickled in another process keeps torch from giving the hook's number
    # to a later hook there, which would silently take its place.
    setattr(layer, f"{name}_hook", handle)


def _normalize_output(layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return getattr(layer, OUTPUT_NORM)(output)


def _normalize_input(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    norm = getattr(layer, INPUT_NORM)
    if inputs:
        return (norm(inputs[0]), *inputs[1:]), named
    return inputs, {**named, "input": norm(named["input"])}

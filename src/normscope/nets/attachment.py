"""A norm attached to a layer: a child of the layer, and a hook that applies it.

Why a hook, and neither a new layer in the layer's place nor a subclass of it: the layer stays the object that it is,
so that its weight keeps its name (`conv1.weight`; the norm's is `conv1.output_norm.weight`), code that asks for its
type or reads its attributes goes on working, and torch's fused transformer layers, which read weights past any
module's forward, see a hook and step aside. It is copied, pickled, moved and saved with the layer.

`layers.record_calls` runs before it, so what is measured at the layer is the layer's own output, in front of the norm,
as in a network that was written with norms.
"""

from typing import Any

from torch import nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from normscope.model.output import Output

OUTPUT_NORM = "output_norm"
"""What the norm behind a layer is called, as its child."""

INPUT_NORM = "input_norm"
"""What the norm in front of a layer is called, as its child."""

OUTPUT_SCALAR, INPUT_SCALAR = "output_scalar", "input_scalar"
"""What a learned number behind and in front of a layer or norm is called, as its child."""


def attach_behind(layer: nn.Module, norm: nn.Module) -> None:
    """Apply `norm` to each output of `layer` from now on."""
    layer.register_module(OUTPUT_NORM, norm)
    _keep_handle(layer, OUTPUT_NORM, layer.register_forward_hook(_normalize_output))


def attach_in_front(layer: nn.Module, norm: nn.Module) -> None:
    """Apply `norm` to each first input of `layer` from now on."""
    layer.register_module(INPUT_NORM, norm)
    _keep_handle(layer, INPUT_NORM, layer.register_forward_pre_hook(_normalize_input, with_kwargs=True))


def attach_scalars(layer: nn.Module, *, in_front: nn.Module | None = None, behind: nn.Module | None = None) -> None:
    """Apply a module of a learned number to each first input, or to each output (the first of several), or both."""
    if in_front is not None:
        layer.register_module(INPUT_SCALAR, in_front)
        _keep_handle(layer, INPUT_SCALAR, layer.register_forward_pre_hook(_scale_input, with_kwargs=True))
    if behind is not None:
        layer.register_module(OUTPUT_SCALAR, behind)
        _keep_handle(layer, OUTPUT_SCALAR, layer.register_forward_hook(_scale_output))


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


def _normalize_output(layer: nn.Module, _inputs: object, output: Output) -> Any:
    return _with_first_output(getattr(layer, OUTPUT_NORM), output)


def _scale_output(layer: nn.Module, _inputs: object, output: Output) -> Any:
    return _with_first_output(getattr(layer, OUTPUT_SCALAR), output)


def _with_first_output(module: nn.Module, output: Output) -> Any:
    """A recurrent net gives its outputs, perhaps packed, in front of its state."""
    if isinstance(output, PackedSequence):
        return output._replace(data=module(output.data))
    return (_with_first_output(module, output[0]), *output[1:]) if isinstance(output, tuple) else module(output)


def _normalize_input(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return _with_first(getattr(layer, INPUT_NORM), inputs, named)


def _scale_input(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return _with_first(getattr(layer, INPUT_SCALAR), inputs, named)


def _with_first(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if inputs:
        return (module(inputs[0]), *inputs[1:]), named
    return inputs, {**named, "input": module(named["input"])}

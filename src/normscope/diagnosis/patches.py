"""Changes to a model in place: another activation behind a layer, other weights, no dropout."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normscope.diagnosis.program import Patch
from normscope.model.layers import own_parameters, watched_modules
from normscope.per_example.dropout import WithoutDropout

Function = Callable[[Tensor], Tensor]


def output_through(layer: str, function: Function) -> Patch:
    """The model's output is this function of what its last layer gives, whatever was made of that before."""

    def patch(model: nn.Module) -> None:
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            kept[:] = [output.clone()]

        model.get_submodule(layer).register_forward_hook(keep, prepend=True)
        model.register_forward_hook(lambda _m, _i, output: function(kept[0]) if kept else output)

    return patch


def activation_behind(layers: tuple[str, ...], function: Function) -> Patch:
    """What these layers give goes through the function."""

    def patch(model: nn.Module) -> None:
        def through(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            return function(output)

        for layer in layers:
            model.get_submodule(layer).register_forward_hook(through)

    return patch


def activation_in_place(layers: tuple[str, ...], following: tuple[str, ...], function: Function) -> Patch:
    """What each of these layers gives reaches the one that follows through the function, in place of what was there."""

    def patch(model: nn.Module) -> None:
        for layer, after in zip(layers, following, strict=True):
            kept: list[Tensor] = []

            def keep(_m: nn.Module, _i: object, output: Tensor, kept: list[Tensor] = kept) -> None:
                kept[:] = [output.clone()]

            def give(_m: nn.Module, inputs: tuple[object, ...], kept: list[Tensor] = kept) -> tuple[object, ...]:
                return (function(kept[0]), *inputs[1:])

            model.get_submodule(layer).register_forward_hook(keep, prepend=True)
            model.get_submodule(after).register_forward_pre_hook(give)

    return patch


def without_dropout(model: nn.Module) -> None:
    """Dropout passes its input on, that of modules and that of functions in the model's forward pass."""
    forward = model.forward

    def quiet(*args: Any, **named: Any) -> Any:
        with WithoutDropout():
            return forward(*args, **named)

    model.forward = quiet  # type: ignore[method-assign]
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0


def sizes_kept(model: nn.Module) -> None:
    """Weights drawn anew, normal with variance 2 over what goes into a unit (1 in the last layer); biases 0."""
    layers = list(watched_modules(model).values())
    with torch.no_grad():
        for module in layers:
            for parameter in own_parameters(module):
                if parameter.ndim >= 2 and parameter.is_floating_point():
                    gain = 1.0 if module is layers[-1] else 2.0
                    parameter.normal_(0.0, math.sqrt(gain / parameter[0].numel()))
                elif parameter.is_floating_point():
                    parameter.zero_()

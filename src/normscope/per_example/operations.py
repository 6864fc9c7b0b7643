"""The operations that `taps` listens to, and how each is met in a forward pass: for every function there is one that
finds, in the arguments of a call, the input and the operands that may be parameters, and the rule of its backward
pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.per_example.patches import Convolution
from normscope.per_example.rules import Convolve, Embed, Linear, Rule, ScaleAndShift
from normscope.runtime.torch_state import Args, Function, Kwargs


@dataclass(frozen=True)
class Heard:
    """A call with its parts told apart."""

    x: Tensor
    operands: tuple[Tensor | None, ...]
    rule: Rule
    call: Callable[[], Tensor] | None = None
    """What to call in place of the function, where that would give a view of a parameter."""


Meet = Callable[[Function, Args, Kwargs], Heard | None]
"""Tells the parts of a call apart; None for one that is not of its kind."""


def _linear(func: Function, args: Args, kwargs: Kwargs) -> Heard | None:
    x, weight, bias = _named(args, kwargs, "input", "weight", "bias")
    return Heard(x, (weight, bias), Linear())


def _convolution(transposed: bool) -> Meet:
    def meet(func: Function, args: Args, kwargs: Kwargs) -> Heard | None:
        names = ["input", "weight", "bias", "stride", "padding"]
        names += ["output_padding", "groups", "dilation"] if transposed else ["dilation", "groups"]
        given = dict(zip(names, _named(args, kwargs, *names), strict=True))
        kernel = tuple(given["weight"].shape[2:])
        if given["input"].ndim != len(kernel) + 2:
            return None

        def each(name: str, default: int) -> tuple[int, ...]:
            value = default if given.get(name) is None else given[name]
            return (value,) * len(kernel) if isinstance(value, int) else tuple(value) * (len(kernel) // len(value))

        dilation = each("dilation", 1)
        if isinstance(given["padding"], str):
            spread = [rate * (size - 1) for rate, size in zip(dilation, kernel, strict=True)]
            if given["padding"] == "same" and any(amount % 2 for amount in spread):
                return None
            given["padding"] = [amount // 2 for amount in spread] if given["padding"] == "same" else 0
        groups = given["groups"] or 1
        how = Convolution(
            kernel, each("stride", 1), each("padding", 0), dilation, groups, transposed, each("output_padding", 0)
        )
        return Heard(given["input"], (given["weight"], given["bias"]), Convolve(how))

    return meet


def _embedding(func: Function, args: Args, kwargs: Kwargs) -> Heard | None:
    names = ("weight", "input", "padding_idx", "scale_grad_by_freq")
    weight, tokens, padding_idx, by_frequency = _named(args, kwargs, *names)
    if by_frequency:
        return None  # counts words over the whole batch
    return Heard(tokens, (weight,), Embed(-1 if padding_idx is None else padding_idx))


def _norm(*names: str, channel_dim: int | None) -> Meet:
    def meet(func: Function, args: Args, kwargs: Kwargs) -> Heard | None:
        given = dict(zip(names, _named(args, kwargs, *names), strict=True))
        if func is torch.batch_norm and given["training"]:
            return None  # couples the examples
        plain = given | {"weight": None} | ({"bias": None} if "bias" in given else {})

        def normalize(x: Tensor) -> Tensor:
            return func(*(plain | {"input": x}).values())

        return Heard(given["input"], (given["weight"], given.get("bias")), ScaleAndShift(normalize, channel_dim))

    return meet


def _product(func: Function, args: Args, kwargs: Kwargs) -> Heard | None:
    found = _x_and_operand(args, kwargs)
    return found and Heard(found[0], (found[1], None), ScaleAndShift(None))


def _sum(func: Function, args: Args, kwargs: Kwargs) -> Heard | None:
    found = _x_and_operand(args, kwargs)
    return found and Heard(found[0], (None, found[1]), ScaleAndShift(None))


def _expansion(func: Function, args: Args, kwargs: Kwargs) -> Heard | None:
    operand = args[0]
    if kwargs or not operand.requires_grad:
        return None
    expanded = operand.detach().expand(*args[1:])
    return Heard(expanded, (None, operand), ScaleAndShift(None), expanded.clone)


def _x_and_operand(args: Args, kwargs: Kwargs) -> tuple[Tensor, Tensor] | None:
    """Which of two factors or summands is a parameter (a leaf, or a view of one), where it broadcasts against the
    other."""
    if len(args) != 2 or kwargs or not all(isinstance(arg, Tensor) for arg in args):
        return None
    leaves = [arg.requires_grad and (arg if arg._base is None else arg._base).is_leaf for arg in args]
    if sum(leaves) != 1:
        return None
    x, operand = args if leaves[1] else reversed(args)
    if torch.broadcast_shapes(x.shape, operand.shape) != x.shape or x.dtype != torch.result_type(x, operand):
        return None
    return x, operand


def _named(args: Args, kwargs: Kwargs, *names: str) -> list[Any]:
    """The arguments of these names, in this order; None for one that was not given."""
    given = dict(zip(names, args, strict=False)) | kwargs
    return [given.get(name) for name in names]


OPERATIONS: dict[Any, Meet] = {
    F.linear: _linear,
    torch.conv1d: _convolution(False),
    torch.conv2d: _convolution(False),
    torch.conv3d: _convolution(False),
    torch.conv_transpose1d: _convolution(True),
    torch.conv_transpose2d: _convolution(True),
    torch.conv_transpose3d: _convolution(True),
    torch.embedding: _embedding,
    torch.layer_norm: _norm("input", "normalized_shape", "weight", "bias", "eps", "cudnn_enable", channel_dim=None),
    torch.rms_norm: _norm("input", "normalized_shape", "weight", "eps", channel_dim=None),
    torch.group_norm: _norm("input", "num_groups", "weight", "bias", "eps", "cudnn_enabled", channel_dim=1),
    torch.batch_norm: _norm(
        "input",
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "training",
        "momentum",
        "eps",
        "cudnn_enabled",
        channel_dim=1,
    ),
    torch.instance_norm: _norm(
        "input",
        "weight",
        "bias",
        "running_mean",
        "running_var",
        "use_input_stats",
        "momentum",
        "eps",
        "cudnn_enabled",
        channel_dim=1,
    ),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__), _product),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__), _sum),
    Tensor.expand: _expansion,
}
"""How each function is met, by the function that a `TorchFunctionMode` is shown."""

COMPOSITES = (
    F.embedding,
    F.layer_norm,
    F.rms_norm,
    F.group_norm,
    F.batch_norm,
    F.instance_norm,
    F.multi_head_attention_forward,
)
"""Functions in Python that a `TorchFunctionMode` is shown whole, although they call the above."""

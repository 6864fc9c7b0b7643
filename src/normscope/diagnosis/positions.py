"""Does a model of sequences know the order of what it is given? Told by giving it in another order.

Without positions, attention gives a set: f(x in any order) = f(x), for any weights. A model that is to tell sequences
apart by their order then learns nothing, whatever its rate.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normscope.diagnosis.module_calls import module_calls
from normscope.diagnosis.sequences import some_of
from normscope.model.batch import Batch
from normscope.model.loss import LossFn

SAME = 1e-4
"""Outputs are the same where they differ by less than this share of their size."""

FEWEST = 3
"""Positions of a sequence, at least."""


def blind_to_order(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None, *, seed: int = 0) -> str:
    """The path of the first module that gives every position its features, where outputs do not depend on the order of
    the positions at all; "" where they do, or where there are none."""
    some = some_of(batch)
    if not isinstance(some, tuple | list) or len(some) != 2 or not isinstance(some[0], Tensor):
        return ""
    x = some[0]
    tokens = x.ndim == 2 and not x.is_floating_point()
    if not (tokens or (x.ndim == 3 and x.is_floating_point())) or x.shape[1] < FEWEST:
        return ""
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(seed)).to(x.device)
    if bool((x == x[:, order]).all()):
        return ""

    def whole(tensor: Tensor) -> Tensor | None:
        return tensor if tensor.shape[0] == len(x) else None

    given, moved = (module_calls(model, type(some)([i, some[1]]), loss_fn, seed, whole) for i in (x, x[:, order]))
    if given is None or moved is None:
        return ""
    outputs, other = given[-1][2], moved[-1][2]
    places = outputs.ndim > 2 and outputs.shape[1] == x.shape[1]
    if outputs.shape != other.shape or places or not float(outputs.std(0).max()) > 0:
        return ""
    if not float((outputs - other).abs().max()) <= SAME * float(outputs.abs().max()):
        return ""
    return next((path for path, _, y in given if path and y.ndim == 3 and y.shape[:2] == x.shape[:2]), "")


def with_positions(path: str) -> Callable[[nn.Module], None]:
    """A patch: sines and cosines of the position (Vaswani et al. 2017, section 3.5) on top of what this module gives,
    at its size."""

    def patch(model: nn.Module) -> None:
        def add(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            return output + output.detach().square().mean().sqrt() * sinusoids(output)

        model.get_submodule(path).register_forward_hook(add)

    return patch


def sinusoids(like: Tensor) -> Tensor:
    """(positions, features) for a tensor (examples, positions, features): root mean square 1."""
    length, width = like.shape[1:]
    places = torch.arange(length, device=like.device, dtype=torch.float32)[:, None]
    rates = torch.exp(-math.log(1e4) * (torch.arange(width, device=like.device) // 2 * 2) / width)
    angles = places * rates
    even = torch.arange(width, device=like.device) % 2 == 0
    return (math.sqrt(2) * torch.where(even, angles.sin(), angles.cos())).to(like.dtype)

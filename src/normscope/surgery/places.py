"""The norms that a model has, and where the channels are that each of them normalizes."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from normscope.nets.batch_norm_parts import PartialBatchNorm
from normscope.nets.norms import ChannelRMSNorm, DynamicTanh
from normscope.surgery.work_behind import numbers_for, without_work

_NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, ChannelRMSNorm, DynamicTanh, PartialBatchNorm)

_CHANNELS_FIRST = (_BatchNorm.forward, _InstanceNorm.forward, nn.GroupNorm.forward, nn.SyncBatchNorm.forward)
"""A subclass with a forward of its own may have its channels anywhere."""

_SPATIAL_DIMS = {
    nn.BatchNorm2d: 2,
    nn.BatchNorm3d: 3,
    nn.InstanceNorm1d: 1,
    nn.InstanceNorm2d: 2,
    nn.InstanceNorm3d: 3,
}
"""What a class says about the number of positions' dims; the others take any."""


@dataclass(frozen=True)
class Place:
    """What a norm normalizes, in the terms of `norms.make_norm`; `spatial_dims` is None where it is not known."""

    num_channels: int
    channel_dim: int
    spatial_dims: int | None


def existing_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The norms of a model by path; one that is registered twice stands under each of its paths."""
    return {path: m for path, m in model.named_modules(remove_duplicate=False) if is_norm(path, m)}


def is_norm(path: str, module: nn.Module) -> bool:
    """Whether a module is a norm: one of torch's or of `normscope.nets.norms`, or somebody's own.

    Their own are known by a class called ...Norm (or ...Norm2d) that holds nothing but vectors of one length: a
    weight, perhaps a bias and statistics.
    """
    if isinstance(module, _NORMS):
        return True
    if not re.search(r"Norm(\dd)?$", type(module).__name__) or "parametrizations" in path.split("."):
        return False  # weight and spectral norm change the weight, not the activations
    vectors = [tensor for tensor in _tensors(module) if tensor.ndim]
    alone = next(module.children(), None) is None
    return alone and bool(vectors) and all(t.ndim == 1 and len(t) == len(vectors[0]) for t in vectors)


def place_of(norm: nn.Module, shape: torch.Size | None = None) -> Place | None:
    """What a norm normalizes: by its class or, where that does not say, by the shape that comes out of it.

    None where neither says.
    """
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm) and len(norm.normalized_shape) > 1:
        channels, *positions = norm.normalized_shape
        if type(norm).forward not in (nn.LayerNorm.forward, nn.RMSNorm.forward) or len(positions) == 1:
            return None  # two dims may be (channels, length) as well as (tokens, features)
        return Place(channels, 1, len(positions))
    channels = _num_channels(norm)
    dim = _channel_dim(norm)
    if dim is None and shape is not None:
        fitting = [dim for dim in (1, -1) if len(shape) > 1 and shape[dim] == channels]
        dim = fitting[0] if len(fitting) == 1 or (len(shape) == 2 and fitting) else _only_dim(norm, channels)
    spatial = next((dims for family, dims in _SPATIAL_DIMS.items() if isinstance(norm, family)), None)
    return None if dim is None else Place(channels, dim, spatial if dim == 1 else None)


def _channel_dim(norm: nn.Module) -> int | None:
    declared = getattr(norm, "channel_dim", None)  # as the norms of `normscope.nets.norms` do
    if declared in (1, -1):
        return declared
    if type(norm).forward in (nn.LayerNorm.forward, nn.RMSNorm.forward):
        return -1
    return 1 if type(norm).forward in _CHANNELS_FIRST or _computes_what_its_family_does(norm) else None


def _computes_what_its_family_does(norm: nn.Module) -> bool:
    """Whether a norm with a forward of its own, past what else it holds, is one of torch's with channels first."""
    family = next((cls for cls in type(norm).__mro__ if getattr(cls, "forward", None) in _CHANNELS_FIRST), None)
    if family is None:
        return False
    spatial = next((dims for cls, dims in _SPATIAL_DIMS.items() if isinstance(norm, cls)), 1)
    x = numbers_for(norm, torch.Size([2, _num_channels(norm), *[3] * spatial]))
    if x is None:
        return False
    try:
        with torch.no_grad():
            return torch.equal(without_work(norm)(x), family.forward(without_work(norm), x))
    except Exception:  # of somebody's own, on numbers of ours
        return False


def _only_dim(norm: nn.Module, channels: int) -> int | None:
    """1 where it takes (batch, channels, positions) only, -1 where (batch, tokens, channels) only; else None."""

    def takes(*shape: int) -> bool:
        x = numbers_for(norm, torch.Size(shape))
        try:
            with torch.no_grad():
                return x is not None and without_work(norm)(x).shape == x.shape
        except Exception:  # of somebody's own, on numbers of ours
            return False

    first, last = takes(2, channels, channels + 1), takes(2, channels + 1, channels)
    return None if first == last else 1 if first else -1


def _num_channels(norm: nn.Module) -> int:
    for name in ("num_features", "num_channels"):
        if isinstance(getattr(norm, name, None), int):
            return int(getattr(norm, name))
    if isinstance(norm, nn.LayerNorm | nn.RMSNorm):
        return norm.normalized_shape[0]
    return next(len(tensor) for tensor in reversed(_tensors(norm)) if tensor.ndim == 1)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]

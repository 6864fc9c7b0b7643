"""A mini-batch, torch's random state and a model's weights as arrays with names, for the flight record."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.model.batch import Batch


def batch_arrays(batch: Batch) -> dict[str, np.ndarray]:
    """Every tensor of a batch by its place ("0", "1", "input_ids", "0.mask"), and the random state of the CPU."""
    found: dict[str, np.ndarray] = {}
    for path, tensor in tensors_of(batch).items():
        found[f"batch/{path}"] = array_of(tensor)
    found["random_state"] = torch.random.get_rng_state().numpy()
    return found


def weight_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    """Parameters and buffers by the names of `state_dict`; those that are shared once."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: array_of(tensor) for name, tensor in named.items()}


def put_weights(model: nn.Module, arrays: Mapping[str, Any]) -> None:
    """Put weights back that `weight_arrays` gave, in place."""
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, array in arrays.items():
            if name in named:
                named[name].copy_(torch.as_tensor(array).reshape(named[name].shape))


def tensors_of(batch: Batch, path: str = "") -> dict[str, Tensor]:
    """The tensors inside a batch by their place."""
    if isinstance(batch, Tensor):
        return {path or "all": batch}
    rows = batch.items() if isinstance(batch, Mapping) else enumerate(batch) if isinstance(batch, tuple | list) else ()
    return {k: v for key, part in rows for k, v in tensors_of(part, f"{path}.{key}" if path else str(key)).items()}


def largest_numbers(batch: Batch) -> dict[str, float]:
    """The largest entry in size of each tensor of a batch, by its place."""
    found: dict[str, float] = {}
    for place, tensor in tensors_of(batch).items():
        entries = dense(tensor)
        if entries.numel():
            found[place] = float((entries if entries.is_complex() else entries.double()).abs().amax())
    return found


def dense(tensor: Tensor) -> Tensor:
    """A tensor without its graph, every entry of it."""
    tensor = tensor.detach()
    return tensor if tensor.layout == torch.strided else tensor.to_dense()


def array_of(tensor: Tensor) -> np.ndarray:
    """A tensor as an array of its own; bfloat16, which numpy has not, as float32."""
    tensor = dense(tensor)
    if tensor.dtype == torch.bfloat16 or "float8" in str(tensor.dtype):
        tensor = tensor.float()
    return tensor.cpu().numpy().copy()

"""The network of a run: fresh, or with the weights that a finished run left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope.data import ImageData
from normscope.errors import ResultError, one_line
from normscope.nets import build_net
from normscope.nets.names import BRANCH_INITS
from normscope.surgery import with_init
from normscope.training.config import RunConfig, key
from normscope.training.tensor_files import encoded_tensors, read_tensors


def fresh_network(config: RunConfig, data: ImageData) -> nn.Module:
    """The network before its first step, on the data's device, channels_last, in training mode."""
    drawn = BRANCH_INITS.get(config.init, config.init)
    net = network_for(data, config.net, norm=config.norm, init=drawn, seed=config.seed)
    if config.init not in BRANCH_INITS:
        return net
    batch = data.train_images[:2], data.train_labels[:2]  # shows where the branches are, and no more
    return with_init(net, config.init, seed=config.seed, batch=batch)


def network_for(data: ImageData, name: str, **options: Any) -> nn.Module:
    """A fresh network of the paper for these images, on their device, channels_last; `options` as in `build_net`."""
    net = build_net(name, **data.net_shape(), **options)
    return net.to(device=data.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def trained_network(config: RunConfig, data: ImageData, weights: str | Path) -> nn.Module:
    """The network as a finished run left it, in evaluation mode; `weights` is the run's safetensors file.

    Raises:
        ResultError: where there is no such file, it is damaged, or it is of another run.
    """
    path = Path(weights)
    if not path.is_file():
        raise ResultError(f"no weights {path}: train first")
    net = fresh_network(config, data)
    try:
        tensors, about = read_tensors(path)
        if about.get("key", key(config)) != key(config):
            raise ValueError(f"but those of run {about['key']}")
        net.load_state_dict(tensors)
    except Exception as error:
        raise ResultError(
            f"{path} does not hold the weights of {config.net} ({one_line(error)[:120]}): delete it and its run's "
            "result, and train again"
        ) from error
    return net.eval()


def encoded_weights(net: nn.Module, config: RunConfig) -> bytes:
    """All parameters and buffers of a run's network, as a safetensors file holds them."""
    return encoded_tensors(plain_tensors(net.state_dict()), {"key": key(config)})


def plain_tensors(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same numbers on the CPU, in the order of their dims, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

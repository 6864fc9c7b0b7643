"""The networks of batch norm's ladder: each rung built from the same weights and shown the same first mini-batch."""

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from normscope.data import load_data
from normscope.paper.exhibit import Setting, depth_of
from normscope.paper.ladder import RUNGS

IMAGE_SIZE = 16
"""Pixels a side that larger images are averaged to, as where figure 1 is trained to the end at reduced size."""

BUILT = tuple(RUNGS)[:13]
"""The rungs that are measured."""

SMALL_LR = {20: 0.01, 56: 0.003}
"""By depth, the rate that the network without norm trains at too; the paper's 1e-4 for deeper ones."""


def at_reduced_size(setting: Setting) -> Setting:
    """The setting with images of `IMAGE_SIZE` pixels a side, where its own are larger."""
    if setting.data.train_images.shape[-1] <= IMAGE_SIZE:
        return setting
    data = load_data(setting.data.name, data_dir=setting.data_dir, device=setting.device, image_size=IMAGE_SIZE)
    return replace(setting, data=data)


def small_lr(setting: Setting) -> float:
    """The one rate at which all rungs of a network take their first updates."""
    depth = depth_of(setting.net)
    return next((lr for most, lr in SMALL_LR.items() if depth <= most), 1e-4)


def build(setting: Setting, rung: str, seed: int) -> nn.Module:
    """A rung's network, after one forward pass on the seed's first mini-batch: running averages and the statistics of a
    first batch are then this one's."""
    net = setting.build(rung, seed)
    see(net, setting.first_batch(seed))
    return net


@torch.no_grad()
def see(net: nn.Module, batch: Any) -> None:
    """One forward pass in training mode."""
    net.train()
    net(batch[0])

"""The networks of batch norm's ladder: each rung built from the same weights and shown the same first mini-batch."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from normscope.data import load_data
from normscope.errors import InvalidConfig
from normscope.model.batch import Batch
from normscope.nets.names import BRANCH_INITS, INITS, NET_NORMS
from normscope.nets.weight_norms import WEIGHT_NORMS
from normscope.paper.exhibit import Setting, depth_of
from normscope.paper.ladder import RUNGS
from normscope.surgery import with_init, with_norm
from normscope.surgery.residual import with_small_residual

IMAGE_SIZE = 16
"""Pixels a side that larger images are averaged to, as where figure 1 is trained to the end at reduced size."""

WITH_RATES = tuple(RUNGS)
"""The rungs whose rates are searched: all."""

AT_START = tuple(rung for rung in RUNGS if rung != "zero_residual")
"""The rungs that are measured at the start: the exhibit on initializations has the other."""

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


def rungs_to_measure(setting: Setting, exhibit: str, rungs: Sequence[str]) -> list[str]:
    """All of these; for a setting that trains nothing, those of an unfinished measurement of the exhibit whose parts
    are there for all seeds.

    Raises:
        InvalidConfig: none is.
    """
    if setting.trains:
        return list(rungs)
    kept = {path.stem for path in setting.parts.glob(f"{exhibit}-*.nc")} if setting.parts is not None else set()
    there = [rung for rung in rungs if all(f"{exhibit}-{rung}-seed{seed}" in kept for seed in setting.seeds)]
    if not there:
        raise InvalidConfig(f"no rung of {exhibit} is measured with all seeds yet: measure some without --no-train")
    return there


def build(setting: Setting, rung: str, seed: int) -> nn.Module:
    """A rung's network, after one forward pass on the seed's first mini-batch: running averages and the statistics of a
    first batch are then this one's, and weight norm's scale is set from it. All have the Xavier weights of the seed but
    Fixup, which is He's."""
    batch = setting.first_batch(seed)
    init = {"init": rung} if rung in INITS else {}
    net = setting.build(rung if rung in NET_NORMS else "none", seed, **init)
    if rung in WEIGHT_NORMS:
        net = with_norm(net, rung, "everywhere", batch=batch)
    elif rung in BRANCH_INITS:
        net = with_init(net, rung, seed=seed, batch=batch)
    elif rung == "depth_scaled":
        net = with_small_residual(net, batch=batch)
    see(net, batch)
    return net


@torch.no_grad()
def see(net: nn.Module, batch: Batch) -> None:
    """One forward pass in training mode."""
    net.train()
    net(batch[0])

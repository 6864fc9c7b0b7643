"""Networks by name: `build_net("resnet110", norm="batch", seed=0)`."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from normscope.errors import InvalidConfig, unknown
from normscope.nets.inits import init_
from normscope.nets.mlp import MLP
from normscope.nets.names import INITS, NET_NORMS, family_and_depth
from normscope.nets.plain import PlainCNN
from normscope.nets.resnet import SHORTCUTS, ResNet


def build_net(
    name: str,
    *,
    norm: str = "none",
    init: str = "xavier_uniform",
    init_scale: float = 1.0,
    shortcut: str = "projection",
    in_channels: int = 3,
    num_classes: int = 10,
    image_size: int = 32,
    width: int | None = None,
    bias: bool | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a network, on the CPU, in float32 and training mode, with every random number fixed by `seed`.

    - `name`: "resnetN" or "plainN" with N = 6n + 2, or "mlpN" with N linear layers.
    - `norm`: see `NET_NORMS`. "final" is a BatchNorm1d on the input of the last layer, which is the pooled
      features in a resnet or plain network and the last hidden units in an MLP. Without norm the norm
      layers are `nn.Identity`.
    - `init`: see `normscope.nets.inits`; of all layers but the last, whose weights and biases are torch's default.
      `init_scale` multiplies the same layers' weights.
    - `shortcut`: "projection" or "pad", where a resnet's stages change the shape; other networks have none.
    - `image_size`: height and width in pixels, which fix an MLP's first layer; the others take any size.
    - `width`: channels of the first stage (16 by default) or units of a hidden layer (128).
    - `bias`: of all layers but the last; None means where no norm with a bias of its own stands behind, since
      a second one would be redundant. Biases start at zero unless `init` is "default".

    Networks of the same seed and init share the bits of every layer of the same name and shape, whatever
    their norm, shortcut and depth (but for the weights that zero_residual clears). Torch's global generators
    are left as found.

    Raises `InvalidConfig` where a name, a depth or a number cannot be.

    Example:
        >>> net = ns.build_net("resnet20", norm="batch", in_channels=1, seed=0)
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    family, depth = family_and_depth(name)
    if norm not in NET_NORMS:
        raise unknown("norm", norm, NET_NORMS)
    if init not in INITS:
        raise unknown("init", init, INITS)
    if shortcut not in SHORTCUTS:
        raise unknown("shortcut", shortcut, SHORTCUTS)
    if shortcut != "projection" and family != "resnet":
        raise InvalidConfig(f"shortcut {shortcut!r} is for resnets: {name} has no shortcuts")
    if init == "zero_residual" and family != "resnet":
        raise InvalidConfig(f"init 'zero_residual' is for resnets: {name} has no residual branches")
    sizes = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size, "width": width}
    for size_name, size in sizes.items():
        if size is not None and size < 1:
            raise InvalidConfig(f"{size_name} must be at least 1, not {size}")

    final_norm = norm == "final"
    norm = "none" if final_norm else norm
    makers = {
        "resnet": partial(ResNet, in_channels=in_channels, shortcut=shortcut, width=width or 16),
        "plain": partial(PlainCNN, in_channels=in_channels, width=width or 16),
        "mlp": partial(MLP, in_features=in_channels * image_size**2, width=width or 128),
    }
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        net = makers[family](depth, norm=norm, final_norm=final_norm, num_classes=num_classes, bias=bias)
    init_(net, "default", seed=seed, keep_output_layer=False)
    return init_(net, init, scale=init_scale, seed=seed)

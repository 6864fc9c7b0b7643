"""What networks, norms, initializations and shortcuts are called; no torch, so that a config is checked and listed
without it."""

from __future__ import annotations

import re

from normscope.errors import InvalidConfig, unknown

NET_FAMILIES: tuple[str, ...] = ("resnet", "plain", "mlp")
"""A network's name is one of these and its depth: resnet110, plain20, mlp4."""

NORMS: tuple[str, ...] = ("none", "batch", "group", "layer", "rms", "instance", "tanh")
"""See `nets.norms`."""

PARTS: tuple[str, ...] = ("batch_mean", "batch_std", "batch_detached", "batch_first", "batch_running", "batch_ghost")
"""Batch norm with one part of it changed: see `nets.batch_norm_parts`."""

NET_NORMS: tuple[str, ...] = (*NORMS, *PARTS, "final")
"""What a network's norm may be: a name of `NORMS` or `PARTS`, or "final", one BatchNorm in front of the last layer."""

INITS: tuple[str, ...] = (
    "default",
    "xavier_uniform",
    "xavier_normal",
    "kaiming_normal",
    "orthogonal",
    "zero_residual",
)
"""See `nets.inits`."""

BRANCH_INITS: dict[str, str] = {"skipinit": "xavier_uniform", "fixup": "kaiming_normal"}
"""Those that bring learned numbers into each residual branch, and how their weights are drawn: see
`surgery.branch_init`."""


def family_and_depth(name: str) -> tuple[str, int]:
    """The parts of a network's name; `InvalidConfig` where it has none."""
    match = re.fullmatch(rf"({'|'.join(NET_FAMILIES)})(\d{{1,4}})", name)
    if match is None:
        known = ("resnet20", "resnet56", "resnet110", "plain20", "plain56", "mlp4", "and other depths")
        raise unknown("net", name, known)
    return match[1], int(match[2])


def check_net_name(name: str) -> None:
    """Raise `InvalidConfig` for a name that `build_net` does not take, without building anything."""
    family, depth = family_and_depth(name)
    if family != "mlp":
        blocks_per_stage(depth, family)
    elif depth < 1:
        raise InvalidConfig(f"MLP depth must be at least 1, not {depth}")


def blocks_per_stage(depth: int, family: str) -> int:
    """n of depth 6n + 2; raises `InvalidConfig` with the nearest depths where there is no such n."""
    if depth >= 8 and depth % 6 == 2:
        return depth // 6
    if depth < 8:
        raise InvalidConfig(f"{family} depth must be 6n+2 with n at least 1, not {depth}: 8 is nearest")
    below = depth - (depth - 2) % 6
    raise InvalidConfig(f"{family} depth must be 6n+2, not {depth}: {below} and {below + 6} are nearest")

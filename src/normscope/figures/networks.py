"""Several networks in one picture: who loops over them, and where what leaves the axes is drawn."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from normscope.errors import InvalidConfig
from normscope.figures.style import NAMES, color_of

IN_TIME = ("checkpoint", "step")
"""Dims along a training: of a colour's shades the palest is the earliest."""

PALEST = 0.65
"""How far the earliest shade is from the colour, towards white."""


@dataclass(frozen=True)
class Network:
    """One network in a picture."""

    dataset: xr.Dataset
    """Over `seed`, its first dimension, and what the figure itself draws along."""
    label: str
    color: str


def each_network(dataset: xr.Dataset, *, along: str = "", unnamed: str = "") -> Iterator[Network]:
    """One network after the other along `norm`, `checkpoint` and `step`: a colour a norm, a shade a time.

    Args:
        along: a dimension that the figure draws along itself.
        unnamed: the label of a network without a norm.
    """
    if "seed" not in dataset.dims:
        dataset = dataset.expand_dims("seed")
    dataset = dataset.transpose("seed", ...)
    times = [dim for dim in IN_TIME if dim in dataset.dims and dim != along]
    shades = int(np.prod([dataset.sizes[dim] for dim in times])) if times else 1
    for i in range(dataset.sizes.get("norm", 1)):
        of_norm = dataset.isel(norm=i) if "norm" in dataset.dims else dataset
        norm = str(of_norm["norm"].values) if "norm" in of_norm.coords else ""
        color, name = color_of(norm, i) if norm else "C0", NAMES.get(norm, norm)
        for k, place in enumerate(np.ndindex(*[dataset.sizes[dim] for dim in times])):
            one = of_norm.isel(dict(zip(times, place, strict=True)))
            when = [f"{dim} {one[dim].values}" if dim in one.coords else dim for dim in times]
            label = ", ".join(part for part in (name, *when) if part) or unnamed
            yield Network(one, label, _paler(color, 1 - (k + 1) / shades) if times else color)


def _paler(color: str, share: float) -> str:
    """The colour mixed with white; at a share of 0 as it is."""
    red, green, blue = (1 - (1 - part) * (1 - PALEST * share) for part in to_rgb(color))
    return to_hex((red, green, blue))


def beyond(
    ax: Axes, places: np.ndarray, network: Network, label: str, *, marker: str = "^", lower: bool = False
) -> None:
    """Mark what lies outside of the axes, diverged or missing: on the upper edge, or on the lower one."""
    if len(places):
        heights = np.full(len(places), 0.0 if lower else 1.0)
        edge = ax.get_xaxis_transform()
        ax.plot(places, heights, marker, color=network.color, ms=5, transform=edge, clip_on=False, label=label)


def refuse_several(array: xr.DataArray, drawn: set[str]) -> None:
    """A heat map shows one network.

    Raises:
        InvalidConfig: where there are others.
    """
    if extra := set(map(str, array.dims)) - drawn:
        raise InvalidConfig(f"one picture shows one network: choose along {', '.join(sorted(extra))}")

"""Searches for the largest rate of unnormalized ResNets: several at once, and each one kept as soon as it is done."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr
from torch import Tensor, nn

from normscope.data import ImageData
from normscope.data.batches import batches
from normscope.errors import NormscopeError
from normscope.rates.stable_lr import stable_lr
from normscope.results import keep, load_if_kept
from normscope.runtime.jobs import side_by_side, usable_workers
from normscope.runtime.progress import Bar, progress
from normscope.training.network import network_for

LR_RANGE = (1e-5, 10.0)
"""Where rates are searched."""

PROTOCOL = 1
"""Raised whenever the same search means other numbers: older results then no longer count as its own."""


@dataclass(frozen=True, eq=False)
class RateSearch:
    """What fixes one search: a network by its depth and seed, and the descents, with momentum, that try the rates."""

    depth: int
    seed: int
    data: ImageData
    batch_size: int
    steps: int

    def carry_out(self, bar: Bar) -> xr.Dataset:
        """Search. The bar moves by `depth` units: a step takes as long as the network is deep."""
        with bar.part(f"ResNet-{self.depth}, seed {self.seed}", by=self.depth):
            found = stable_lr(
                self._build,
                self._walk,
                optimizer="momentum",
                steps=self.steps,
                seeds=1,
                lr_range=LR_RANGE,
                recommend=False,
            )
        return found[["lr_stable", "lr_usable", "lr_stable_found", "lr_usable_found", "train_steps"]]

    def _build(self) -> nn.Module:
        return network_for(self.data, f"resnet{self.depth}", norm="none", seed=self.seed)

    def _walk(self, _: int) -> list[tuple[Tensor, Tensor]]:
        endless = batches(self.data, self.batch_size, seed=self.seed)
        return [next(endless) for _ in range(self.steps)]

    def path(self, folder: Path) -> Path:
        """Of the result in a folder of searches."""
        return folder / f"resnet{self.depth}-seed{self.seed}.nc"

    def known(self) -> dict[str, Any]:
        """The attributes by which a result is known to be this search's."""
        return {
            "data": self.data.describe(),
            "batch_size": self.batch_size,
            "steps": self.steps,
            "lr_range": list(LR_RANGE),
            "device": str(self.data.device),
            "protocol": PROTOCOL,
        }


def searched(searches: Sequence[RateSearch], folder: Path) -> list[xr.Dataset]:
    """What each of them found: those that the folder keeps, and those carried out now, the deepest first."""
    found = dict[RateSearch, xr.Dataset]()
    for search in searches:
        if (kept := load_if_kept(search.path(folder), search.known())) is not None:
            found[search] = kept
    missing = sorted((search for search in searches if search not in found), key=lambda search: -search.depth)
    jobs = [search.carry_out for search in missing]
    with (
        side_by_side(jobs, usable_workers(None, len(jobs))) as results,
        progress("depth", total=sum(search.depth for search in missing)) as bar,
    ):
        for place, result in results(bar):
            if isinstance(result, NormscopeError):
                raise result
            search = missing[place]
            found[search] = keep(result, search.path(folder), search.known())
    return [found[search] for search in searches]

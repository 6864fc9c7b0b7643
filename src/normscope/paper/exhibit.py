"""What an exhibit of the paper is: a set-up, a measurement, a picture and verdicts, in one file each.

Every module of `paper.exhibits` that defines `EXHIBIT` is one: there is no list to keep.
"""

import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from normscope.errors import InvalidConfig, unknown
from normscope.results import attribute, keep, load_if_kept, provenance, with_attributes
from normscope.runtime.progress import Bar, progress
from normscope.statistics.claim import Claim, Scope
from normscope.statistics.verdict import AT_REDUCED_SIZE, THE_PAPERS, Verdict

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure
    from torch import nn

    from normscope.data import ImageData
    from normscope.training.config import RunConfig

EXHIBIT = "exhibit"
"""The attribute of a result that says which exhibit it is of; older results lack it."""

NORM_TITLES = {
    "batch": "with batch norm",
    "frozen": "batch norm, statistics as constants",
    "none": "without",
    "final": "batch norm before the last layer only",
}
"""How the networks are called in pictures and text, by their `norm`."""


@dataclass(frozen=True)
class Setting:
    """What an exhibit is measured on. Networks and batches are fixed by the seed and paired: the same seed gives the
    same shared weights and the same batches whatever the norm."""

    data: "ImageData"
    seeds: tuple[int, ...] = (0, 1, 2)
    device: str = "cpu"
    net: str = "resnet110"
    batch_size: int = 128
    """The paper's mini-batch."""
    scale: str = "quick"
    """How large the exhibits are that train networks to the end: see `paper.scale`. They have data, network and
    mini-batch of their own, and say so by `training_config`."""
    runs: Path | None = None
    """The folder that keeps their runs and searches; needed to train any."""
    data_dir: Path | None = None
    """Where CIFAR-10 lies, for those that train on it whatever `data` is."""
    parts: Path | None = None
    """The folder that keeps what of an unfinished exhibit is measured, network by network; None to keep nothing."""
    protocol: int = 1
    """The exhibit's that is measured: parts of another one are measured again."""
    trains: bool = True
    """False to take those runs of the protocol that are finished and train none: see `exhibits.figure1_reduced`."""
    ray: str | None = None
    """The address of a Ray cluster that trains the runs, as for `sweep`; None for this machine's processes."""

    def build(self, norm: str, seed: int, **options: Any) -> "nn.Module":
        """A fresh network on the device, in the memory format that is fastest there; `options` as in `build_net`."""
        from normscope.training.network import network_for

        return network_for(self.data, options.pop("net", self.net), norm=norm, seed=seed, **options)

    def batches(self, seed: int, batch_size: int | None = None) -> "Iterator[tuple[Any, Any]]":
        """Augmented training mini-batches without end, in the order that the seed fixes."""
        import torch

        from normscope.data.batches import batches

        for images, labels in batches(self.data, batch_size or self.batch_size, seed=seed):
            yield images.contiguous(memory_format=torch.channels_last), labels

    def first_batch(self, seed: int) -> tuple[Any, Any]:
        """The first mini-batch of training."""
        return next(self.batches(seed))

    def train(self, configs: "Sequence[RunConfig]") -> "xr.Dataset":
        """Carry out the runs that are not kept yet, on all processors, and give all of them as one Dataset."""
        from normscope.sweeps.sweep import sweep

        return sweep(configs, self.folder_of_runs(), data_dir=self.data_dir, ray=self.ray)

    def folder_of_runs(self) -> Path:
        """`runs`; InvalidConfig where the setting has none."""
        if self.runs is None:
            raise InvalidConfig("nowhere to keep the runs: give the setting a folder `runs`")
        return self.runs

    def training_data(self) -> "ImageData":
        """What the exhibits that train do it on, by the setting's scale."""
        from normscope.data import load_data
        from normscope.paper.scale import scale_of

        scale = scale_of(self.scale)
        return load_data(
            scale.data,
            data_dir=self.data_dir,
            device=self.device,
            train_size=scale.train_size,
            held_out=scale.held_out,
            image_size=scale.image_size,
        )

    def config(self) -> dict[str, Any]:
        """What fixes the result, in plain values: it goes into the results and decides whether they can be kept."""
        return {
            "net": self.net,
            "data": self.data.describe(),
            "seeds": list(self.seeds),
            "batch_size": self.batch_size,
        }

    @cached_property
    def training_config(self) -> dict[str, Any]:
        """`config` of the exhibits that train: what their scale says, and the data that they train on."""
        from normscope.paper.scale import scale_of

        fields = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(scale_of(self.scale)).items()
        }
        del fields["reduced"]
        return {**fields, "scale": self.scale, "data": self.training_data().describe(), "seeds": list(self.seeds)}

    def part(self, name: str, measure: "Callable[[], xr.Dataset]") -> "xr.Dataset":
        """Measure one network of an exhibit, or take what an interrupted measurement on this setting has kept."""
        if self.parts is None:
            return measure()
        config = {field: value for field, value in self.config().items() if field != "seeds"}
        known = {"config": config, "protocol": self.protocol, "device": str(self.device)}
        path = self.parts / f"{name}.nc"
        kept = load_if_kept(path, known)
        return keep(measure(), path, known) if kept is None else kept

    def provenance(self, **more: Any) -> dict[str, Any]:
        """The attributes of a result measured on this setting."""
        return provenance(device=self.device, config=self.config(), **more)


@dataclass(frozen=True)
class Exhibit:
    """One figure, table or claim of the paper."""

    name: str
    """As on the command line: "figure3"."""
    title: str
    where: str
    """Where the paper has it: "Figure 3"."""
    place: float
    """Its place in the report, by the argument's order; figures of the paper have their number."""
    paper_saw: str
    """What the paper did and saw, in a few sentences."""
    measure: "Callable[[Setting], xr.Dataset]"
    draw: "Callable[[xr.Dataset], Figure]"
    claims: Sequence[Claim]
    """What is claimed of a result, each with its threshold, before any is measured. One that says no place is made
    where the exhibit is."""
    we_saw: "Callable[[xr.Dataset], str]" = lambda dataset: ""
    """What came out, in a sentence or two with numbers; empty to let the verdicts speak."""
    trains: bool = False
    """Whether it trains networks to the end, at the setting's scale."""
    applies: "Callable[[Setting], bool]" = lambda setting: True
    """Whether there is anything to measure on a setting: not every scale trains everything."""
    scales: Sequence[str] = ()
    """Of those that train: the scales that have it; by default all but those with an exhibit of their own."""
    complete: "Callable[[xr.Dataset], bool]" = lambda dataset: True
    """Whether a result is whole; one that is not is gathered again the next time."""
    by_name: bool = False
    """Whether it is measured only where it is named: it is no part of the paper, and takes long."""
    protocol: int = 1
    """Raised whenever `measure` changes what it measures: older results are then measured again."""

    of_any_network: bool = False
    """Whether what the paper claims here has nothing to do with its network and data."""

    def __post_init__(self) -> None:
        placed = [replace(claim, where=claim.where or self.where) for claim in self.claims]
        object.__setattr__(self, "claims", placed)

    def measured_on(self, setting: Setting) -> bool:
        """Whether there is anything to measure on a setting."""
        if not self.trains:
            return True
        from normscope.paper.scale import scale_of

        own = setting.scale in self.scales if self.scales else not scale_of(setting.scale).own_exhibit
        return own and self.applies(setting)

    def verdicts(self, dataset: "xr.Dataset") -> list[Verdict]:
        """The claims that are made of such a result, judged. Where it is not of the paper's size, the paper's claims
        are of their own kind, "at reduced size"."""
        full = self.of_any_network or (
            dataset.attrs.get("scale") == "full" if self.trains else on_paper_setting(dataset)
        )
        return [
            claim.judged(dataset, kind=AT_REDUCED_SIZE if claim.kind == THE_PAPERS and not full else None)
            for claim in self.claims
            if claim.scope.holds(dataset)
        ]

    def config(self, setting: Setting) -> dict[str, Any]:
        """What decides whether a result can be kept."""
        return setting.training_config if self.trains else setting.config()


def over_networks(
    setting: Setting,
    name: str,
    measure_one: "Callable[..., xr.Dataset]",
    dims: Mapping[str, Sequence[str]] = MappingProxyType({"norm": ("batch", "none")}),
    *,
    long_names: Mapping[str, str] = MappingProxyType({"norm": "normalization"}),
    **attrs: Any,
) -> "xr.Dataset":
    """Measure every combination of the values of `dims` with every seed, `measure_one(value, ..., seed)`, into one
    Dataset with these dims and `seed` in front; a scalar or a coordinate that is the same in all stays as it is. Shows
    progress under `name`, and keeps what is done as the setting's parts."""
    axes = {**dims, "seed": setting.seeds}

    def measured(place: tuple[Any, ...], bar: Bar) -> "xr.Dataset":
        if len(place) < len(axes):
            dim = list(axes)[len(place)]
            parts = [measured((*place, value), bar) for value in axes[dim]]
            return joined(parts, dim, axes[dim], long_names.get(dim))
        *values, seed = place
        said = f"{', '.join(str(NORM_TITLES.get(value, value)) for value in values)}, seed {seed}"
        bar.advance(said, by=0)
        found = setting.part("-".join([name, *values, f"seed{seed}"]), lambda: measure_one(*place))
        bar.advance(said)
        return found

    with progress(name, math.prod(map(len, axes.values()))) as bar:
        dataset = measured((), bar)
    return with_attributes(dataset, **setting.provenance(**attrs))


def joined(parts: "list[xr.Dataset]", dim: str, values: Any, long_name: str | None = None) -> "xr.Dataset":
    """Datasets side by side along a new dimension with its coordinate."""
    import xarray as xr

    along = xr.DataArray(list(values), dims=dim, attrs={"long_name": long_name or dim.replace("_", " "), "units": "1"})
    return xr.concat(
        parts,
        along.rename(dim),
        data_vars="all",
        coords="minimal",
        compat="equals",
        join="exact",
        combine_attrs="override",
    )


def on_paper_setting(dataset: "xr.Dataset") -> bool:
    """Whether a result was measured on what the paper used, so that its published numbers can be compared."""
    config = attribute(dataset, "config")
    return config["data"]["name"] == "cifar10" and config["net"] == "resnet110"


def depth_of(net: str) -> int:
    """The number of layers in a network's name."""
    return int("".join(filter(str.isdigit, net)))


ON_PAPER_SETTING = Scope("ResNet-110 on CIFAR-10", on_paper_setting)

SHALLOW = 30
"""What goes wrong without batch norm is not asked of networks with at most so many layers: nothing does there."""

DEEP = Scope(
    f"networks of more than {SHALLOW} layers",
    lambda dataset: depth_of(attribute(dataset, "config")["net"]) > SHALLOW,
)


@cache
def exhibits() -> dict[str, Exhibit]:
    """Every exhibit by name, in the report's order."""
    import normscope.paper.exhibits as package

    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    found = [module.EXHIBIT for module in modules if hasattr(module, "EXHIBIT")]
    return {exhibit.name: exhibit for exhibit in sorted(found, key=lambda exhibit: exhibit.place)}


def chosen(names: list[str]) -> list[Exhibit]:
    """The exhibits of these names in the report's order, all where none is named; InvalidConfig for an unknown one."""
    known = exhibits()
    for name in names:
        if name not in known:
            raise unknown("exhibit", name, known)
    return [exhibit for exhibit in known.values() if not names or exhibit.name in names]

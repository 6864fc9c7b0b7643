"""Depth: the shallower an unnormalized ResNet, the larger the learning rate at which it still trains."""

from functools import partial
from itertools import product

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.style import COLORS, figure_of, legend_once, log_ticks_at
from normscope.paper.exhibit import Exhibit, Setting, joined
from normscope.paper.rate_searches import LR_RANGE, RateSearch, searched
from normscope.paper.scale import scale_of
from normscope.results import attribute, provenance_of, shared, with_attributes
from normscope.statistics.claim import RatioClaim

BOUNDARIES = {"lr_stable": "is stable", "lr_usable": "learns"}


def measure(setting: Setting) -> xr.Dataset:
    """The largest stable and usable rate of every depth of the scale, seed by seed: each has a search of its own."""
    scale = scale_of(setting.scale)
    data = setting.training_data()
    places = list(product(scale.depths, setting.seeds))
    searches = [RateSearch(depth, seed, data, scale.batch_size, scale.depth_steps) for depth, seed in places]
    results = searched(searches, setting.folder_of_runs() / "searches")
    found = dict(zip(places, results, strict=True))
    rows = [joined([found[depth, seed] for seed in setting.seeds], "seed", setting.seeds) for depth in scale.depths]
    dataset = joined(rows, "depth", scale.depths, long_name="layers")
    of_searches = shared([provenance_of(result) for result in results])
    config = setting.training_config
    return with_attributes(dataset, **of_searches, config=config, scale=setting.scale, steps=scale.depth_steps)


def rates(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """A boundary over `depth` and `seed`; 0 where no rate passes: it lies below all that were tried."""
    return dataset[name].where(~dataset[f"{name}_found"].isin(["nowhere", "below the range"]), 0.0)


def _over(found: xr.DataArray) -> np.ndarray:
    """What the shallowest network takes over what the deepest does: infinite where the deepest takes no rate at all or
    the shallowest all, minus infinity, below any ratio, the other way round."""
    shallow, deep = found.isel(depth=0).values, found.isel(depth=-1).values
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = shallow / deep
    return np.where(ratio == 0, -np.inf, ratio)


def _known_over(dataset: xr.Dataset, name: str) -> np.ndarray:
    """The ratio of a boundary. A search that found no rate at which the network learns says nothing of that: so few
    steps do not tell slow from never."""
    known = ~dataset[f"{name}_found"].isin(["nowhere", "unfinished"])
    return _over(rates(dataset, name).where(known))


CLAIMS = [
    RatioClaim(
        statement=f"Without BN, the shallowest ResNet {what} up to a rate at least 3 times that of the deepest",
        value=partial(_known_over, name=name),
        above=3,
        paper="the shallower, the larger",
        note=f"the largest rate at which it {what}, known to a factor 1.26; paired by seed",
        detail=lambda dataset: (
            f"ResNet-{int(dataset['depth'][0])} over ResNet-{int(dataset['depth'][-1])}, within "
            f"{dataset.attrs['steps']} steps"
        ),
        no_value="in which one of the two has no such rate",
    )
    for name, what in BOUNDARIES.items()
]


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds, in words."""
    stable, usable = (rates(dataset, name).median("seed") for name in BOUNDARIES)
    said = [
        f"ResNet-{depth} up to {float(stable.sel(depth=depth)):.2g}"
        + (f" (learns up to {at:.2g})" if (at := float(usable.sel(depth=depth))) else " (learns at no rate)")
        for depth in dataset["depth"].values.tolist()
    ]
    scale = scale_of(attribute(dataset, "scale"))
    return (
        f"Without batch norm, the largest stable rate over {dataset.attrs['steps']} steps with momentum (medians over "
        f"seeds): {', '.join(said)}. On {scale.data}, mini-batches of {scale.batch_size}."
    )


def draw(dataset: xr.Dataset) -> Figure:
    """Both boundaries against depth, one point a seed, lines through the medians; a triangle at the lower edge where no
    rate passes."""
    figure, axes = figure_of(1, 1, panel=(5.2, 3.4))
    ax = axes[0, 0]
    depths = dataset["depth"].values
    low, high = 0.5 * LR_RANGE[0], LR_RANGE[1]
    for name, style, label in (("lr_stable", "-o", "stable"), ("lr_usable", "--s", "usable: learns")):
        values = rates(dataset, name).transpose("depth", "seed").clip(low, high)
        ax.plot(depths, values.median("seed"), style[:-1], color=COLORS["none"], label=label)
        places = np.broadcast_to(depths[:, None], values.shape)
        none = values.values <= low
        ax.plot(places[~none], values.values[~none], style[-1], ms=4, color=COLORS["none"])
        ax.plot(places[none], values.values[none], "v", ms=6, color=COLORS["none"])
    log_ticks_at(ax, depths)
    ax.set(yscale="log", xlabel="layers", ylabel="largest learning rate")
    legend_once(ax)
    return figure


EXHIBIT = Exhibit(
    name="depth",
    title="Depth and the largest learning rate, without batch norm",
    where="Variants",
    place=1.6,
    paper_saw=(
        "Unnormalized ResNets of several depths: the shallower the network, the larger the learning rate at which it "
        "still trains."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    trains=True,
)

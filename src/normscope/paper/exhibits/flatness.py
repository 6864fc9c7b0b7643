"""Flat and sharp minima: how sharp is the loss where training at a large and at a small learning rate ends?"""

import math
from collections.abc import Sequence

import xarray as xr
from matplotlib.figure import Figure

from normscope.descent.outcome import Outcome
from normscope.errors import ResultError
from normscope.figures.style import COLORS, NAMES, figure_of, legend_once, log_ticks_at
from normscope.paper.exhibit import Exhibit, Setting
from normscope.paper.exhibits.figure1 import best_lr, rates_compared, small_rate, trained
from normscope.paper.scale import scale_of
from normscope.probes.sharpness import sharpness
from normscope.results import attribute, with_attributes
from normscope.runtime.progress import progress
from normscope.statistics.claim import RatioClaim
from normscope.statistics.verdict import CONTROL
from normscope.sweeps.store import Store
from normscope.training.config import RunConfig
from normscope.training.network import trained_network

NORMS = ("batch", "none")

IMAGES = 256
"""Of the training set, the same for every network, not augmented."""

TOLERANCE, PRODUCTS = 0.02, 30


def measure(setting: Setting) -> xr.Dataset:
    """The largest Hessian eigenvalue at the end of the runs of figure 1 at either network's best and at the small rate,
    beside all runs; NaN at other rates, and where one diverged.

    Raises:
        ResultError: where finished runs have lost their weights, before anything is trained.
    """
    scale = scale_of(setting.scale)
    store = Store(setting.folder_of_runs())
    configs = scale.configs(NORMS, setting.seeds, setting.device)
    _refuse_lost_weights(store, configs)
    runs = trained(setting, NORMS)
    data = setting.training_data()
    batch = data.train_images[:IMAGES], data.train_labels[:IMAGES]
    eigenvalue = xr.full_like(runs["outcome"], math.nan, dtype=float)
    compared = {best_lr(runs, "batch"), best_lr(runs, "none"), scale.small}
    configs = [config for config in configs if config.lr in compared]
    with progress("flatness", len(configs)) as bar:
        for config in configs:
            place = {"norm": config.norm, "lr": config.lr, "seed": config.seed}
            if runs["outcome"].sel(place) != Outcome.DIVERGED.value:
                net = trained_network(config, data, store.weights_path(config))
                found = sharpness(net, batch, tolerance=TOLERANCE, max_products=PRODUCTS)
                eigenvalue.loc[place] = float(found["eigenvalue"].sel(rank=1))
            bar.advance(f"{NAMES[config.norm]}, learning rate {config.lr:g}, seed {config.seed}")
    eigenvalue.attrs = {"long_name": "largest Hessian eigenvalue at the end of training", "units": "1"}
    return with_attributes(runs.assign(eigenvalue=eigenvalue), **runs.attrs, images=IMAGES)


def _refuse_lost_weights(store: Store, configs: Sequence[RunConfig]) -> None:
    lost = [config for config in configs if store.has(config) and not store.weights_path(config).is_file()]
    if lost:
        raise ResultError(
            f"{len(lost)} finished runs lack their weights, which flatness needs: put {store.weights_path(lost[0])} "
            f"and the like back, or delete {store.result_path(lost[0]).name} and the like to train them again"
        )


def learnt(dataset: xr.Dataset) -> xr.DataArray:
    """The eigenvalues of what learns."""
    return dataset["eigenvalue"].where(dataset["outcome"] == Outcome.LEARNS.value)


def _flatter_at_large(dataset: xr.Dataset) -> xr.DataArray:
    """With BN, the eigenvalue at its best rate over that at the small one; NaN where the two are the same."""
    bn, large, small = learnt(dataset).sel(norm="batch"), best_lr(dataset, "batch"), small_rate(dataset)
    return (bn.sel(lr=large, drop=True) / bn.sel(lr=small, drop=True)).where(large != small)


def _flatter_at_small(dataset: xr.Dataset) -> xr.DataArray:
    """At the small rate, the eigenvalue with BN over that without."""
    at_small = learnt(dataset).sel(lr=small_rate(dataset))
    return at_small.sel(norm="batch") / at_small.sel(norm="none")


CLAIMS = [
    RatioClaim(
        statement="With BN, training at its best rate ends where the loss is flatter than training at the small one "
        "does: the Hessian's largest eigenvalue is smaller",
        where="argument 2: flatter minima",
        value=_flatter_at_large,
        below=1,
        no_value="in which one of them does not learn, or the rates are the same",
        note=f"in training mode, on {IMAGES} training images, paired by seed",
        detail=rates_compared,
    ),
    RatioClaim(
        statement="At the same small rate BN ends no flatter: the eigenvalues agree within a factor 3",
        where="argument 2: flatter minima",
        kind=CONTROL,
        value=_flatter_at_small,
        equals=1,
        margin=3,
        no_value="in which one of them does not learn",
        detail=rates_compared,
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds, in words."""
    scale = scale_of(attribute(dataset, "scale"))
    median = dataset["eigenvalue"].median("seed")
    large = best_lr(dataset, "batch")
    at_large, at_small = (float(median.sel(norm="batch", lr=lr)) for lr in (large, scale.small))
    return (
        f"With batch norm the largest eigenvalue at the end is {at_large:.3g} after training at {large:g} and "
        f"{at_small:.3g} after training at {scale.small:g}; without it, at {scale.small:g}, "
        f"{float(median.sel(norm='none', lr=scale.small)):.3g} (medians over seeds). {scale.reduced}"
    )


def draw(dataset: xr.Dataset) -> Figure:
    """The eigenvalue and the test accuracy against the learning rate, and against each other; one point a seed."""
    figure, axes = figure_of(1, 2, panel=(4.6, 3.4))
    accuracy = 100 * dataset["test_accuracy"].isel(epoch=-1)
    for norm in NORMS:
        values = dataset["eigenvalue"].sel(norm=norm).transpose("seed", "lr")
        for seed in values["seed"].values:
            row = values.sel(seed=seed).dropna("lr")
            axes[0, 0].plot(row["lr"], row, "o-", ms=3, lw=0.8, color=COLORS[norm], label=NAMES[norm])
            axes[0, 1].plot(
                row, accuracy.sel(norm=norm, seed=seed, lr=row["lr"]), "o", ms=4, color=COLORS[norm], label=NAMES[norm]
            )
    name = "largest Hessian eigenvalue"
    measured = dataset["eigenvalue"].notnull().any(["norm", "seed"]).values
    log_ticks_at(axes[0, 0], dataset["lr"].values[measured])
    axes[0, 0].set(yscale="log", xlabel="learning rate", ylabel=name)
    axes[0, 1].set(xscale="log", xlabel=name, ylabel="test accuracy [%]")
    legend_once(axes[0, 0])
    return figure


EXHIBIT = Exhibit(
    name="flatness",
    title="Sharpness at the end of training",
    where="Argument 2",
    place=1.8,
    paper_saw=(
        "A large learning rate has more noise, which keeps training away from sharp minima; flat ones generalize "
        "better. The paper cites this, and does not measure it."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    trains=True,
)

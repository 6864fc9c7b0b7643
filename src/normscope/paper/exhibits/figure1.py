"""Figure 1: training with and without batch norm, at large and at small learning rates."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normscope.descent.outcome import Outcome
from normscope.figures.style import COLORS, NAMES, figure_of, legend_once, log_ticks_at
from normscope.paper.exhibit import Exhibit, Setting
from normscope.paper.published import PUBLISHED
from normscope.paper.scale import scale_of
from normscope.results import attribute, provenance_of, with_attributes
from normscope.statistics.claim import Claim
from normscope.training.config import RunConfig

NORMS = ("batch", "none")

TRAINED = 98.0
"""Accuracies are compared at the same small rate only where both networks are trained to the end: to this many per cent
of the training images."""

NOT_LARGE = "with BN best at the smallest rate compared"

KEPT = [
    "train_accuracy",
    "test_accuracy",
    "held_out_accuracy",
    "train_loss",
    "gradient_norm",
    "steps",
    "evaluated",
    "outcome",
]
"""What the exhibits keep of the runs."""


def measure(setting: Setting) -> xr.Dataset:
    """Both networks at every rate of the scale; the results are kept run by run."""
    return trained(setting, NORMS)


def trained(setting: Setting, norms: tuple[str, ...]) -> xr.Dataset:
    """The runs of the scale over `norm`, `lr` (falling), `seed` and `epoch`."""
    return trained_on(setting, scale_of(setting.scale).configs(norms, setting.seeds, setting.device))


def trained_on(setting: Setting, configs: Sequence[RunConfig]) -> xr.Dataset:
    """The runs of these configs over what varies among them, `lr` (falling), `seed` and `epoch`."""
    runs = setting.train(configs)
    if "seed" not in runs.dims:
        runs = runs.expand_dims(seed=list(setting.seeds))
    of_runs = {**provenance_of(runs), "precision": runs.attrs["precision"]}  # and not of who reads them now
    runs = runs.sortby("lr", ascending=False)[KEPT]
    return with_attributes(runs, **of_runs, config=setting.training_config, scale=setting.scale)


def at_the_end(dataset: xr.Dataset, accuracy: str = "test_accuracy") -> xr.DataArray:
    """Accuracy after the last epoch in per cent; that of a run which diverged is that of guessing, by `chance`."""
    end = dataset[accuracy].isel(epoch=-1)
    return 100 * end.where(dataset["outcome"] != Outcome.DIVERGED.value, chance(dataset))


def chance(dataset: xr.Dataset) -> float:
    """The share of the test images that a constant answer gets right: 1/classes."""
    return 1 / attribute(dataset, "config")["data"]["num_classes"]


def best_lr(dataset: xr.Dataset, norm: str) -> float:
    """The rate of the highest held-out accuracy at the end, on average over seeds."""
    mean = at_the_end(dataset, "held_out_accuracy").sel(norm=norm).mean("seed")
    return float(mean["lr"][int(mean.argmax("lr"))])


def learns(dataset: xr.Dataset, norm: str) -> xr.DataArray:
    """Whether a network learns, over `lr` and `seed`."""
    return dataset["outcome"].sel(norm=norm) == Outcome.LEARNS.value


def learnt_by_all(dataset: xr.Dataset, norm: str) -> str:
    """Up to which rate every seed learns, in words."""
    rates = dataset["lr"].values[learns(dataset, norm).all("seed").values]
    return f"up to {rates.max():g}" if len(rates) else "at no rate"


def arms(dataset: xr.Dataset) -> dict[str, tuple[str, float]]:
    """The curves of the figure by name: BN at its best, at the small and at a middle rate; without at the small one, at
    its best, and at BN's best."""
    small = scale_of(attribute(dataset, "scale")).small
    large, alone = best_lr(dataset, "batch"), best_lr(dataset, "none")
    rates = dataset["lr"].values
    middle = float(rates[np.abs(np.log(rates / np.sqrt(large * small))).argmin()])
    found: dict[str, tuple[str, float]] = {}
    for norm, name, lr in (
        ("batch", "BN", large),
        ("batch", "BN", middle),
        ("batch", "BN", small),
        ("none", "without", large),
        ("none", "without", alone),
        ("none", "without", small),
    ):
        found[f"{name}, {lr:g}"] = (norm, lr)
    return found


def small_rate(dataset: xr.Dataset) -> float:
    """The rate of the result's scale at which both networks are compared."""
    return scale_of(attribute(dataset, "scale")).small


def _same_at_small(dataset: xr.Dataset) -> xr.DataArray:
    """Test accuracy without BN less that with it at the small rate, in points; NaN unless both are trained."""
    at = {"lr": small_rate(dataset)}
    both_trained = (at_the_end(dataset, "train_accuracy").sel(at) >= TRAINED).all("norm")
    end = at_the_end(dataset).sel(at)
    return (end.sel(norm="none") - end.sel(norm="batch")).where(both_trained)


def _at_best(dataset: xr.Dataset, norm: str) -> xr.DataArray:
    """Test accuracy at the end at the network's own best rate."""
    return at_the_end(dataset).sel(norm=norm, lr=best_lr(dataset, norm), drop=True)


def _gained_by_large(dataset: xr.Dataset) -> xr.DataArray:
    """What batch norm's best rate ends above its small one, in points; NaN where the two are the same."""
    small = small_rate(dataset)
    gain = _at_best(dataset, "batch") - at_the_end(dataset).sel(norm="batch", lr=small, drop=True)
    return gain.where(best_lr(dataset, "batch") != small)


def _without_at_large(dataset: xr.Dataset) -> xr.DataArray:
    """Test accuracy without BN at batch norm's best rate; NaN where that is the small one."""
    large = best_lr(dataset, "batch")
    return at_the_end(dataset).sel(norm="none", lr=large, drop=True).where(large != small_rate(dataset))


def rates_compared(dataset: xr.Dataset) -> str:
    """For the notes of claims."""
    large, alone = best_lr(dataset, "batch"), best_lr(dataset, "none")
    return f"small rate {small_rate(dataset):g}, BN's best {large:g}, that without {alone:g}"


_ENDS = PUBLISHED["figure1"]["final_test_accuracy_percent"]

CLAIMS = [
    Claim(
        statement=f"At the same small learning rate, both trained to {TRAINED:g} %, the network without BN is as good "
        "as with it, within 3 points",
        value=_same_at_small,
        equals=0,
        margin=3,
        paper=f"{_ENDS['none@0.0001'] - _ENDS['batch@0.0001']:+.1f}",
        unit=" points",
        note="test accuracy without BN less that with it, paired by seed",
        no_value=f"not trained to {TRAINED:g} %",
        detail=rates_compared,
    ),
    Claim(
        statement="With BN the large rate is the better one: its best ends at least 1 point above the small one",
        value=_gained_by_large,
        above=1,
        paper=f"{_ENDS['batch@0.1'] - _ENDS['batch@0.0001']:+.1f}",
        unit=" points",
        no_value=NOT_LARGE,
        detail=rates_compared,
    ),
    Claim(
        statement="With BN at its best rate the test accuracy is above that without at its best",
        value=lambda dataset: _at_best(dataset, "batch") - _at_best(dataset, "none"),
        above=0,
        paper=f"{_ENDS['batch@0.1'] - _ENDS['none@0.0001']:+.1f}",
        unit=" points",
        note="rates chosen on held-out training images",
        detail=rates_compared,
    ),
    Claim(
        statement="Without BN the rate that is best with it is out of reach: the network ends below twice the accuracy "
        "of guessing",
        value=_without_at_large,
        below=20,
        paper="diverges",
        unit=" %",
        no_value=NOT_LARGE,
        detail=rates_compared,
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Means over seeds, in words."""
    end = at_the_end(dataset).mean("seed")
    scale = scale_of(attribute(dataset, "scale"))
    large, alone = best_lr(dataset, "batch"), best_lr(dataset, "none")

    def accuracy(norm: str, lr: float) -> str:
        return f"{float(end.sel(norm=norm, lr=lr)):.1f} %"

    gain = float(end.sel(norm="batch", lr=large) - end.sel(norm="none", lr=scale.small))
    same = float((end.sel(norm="batch") - end.sel(norm="none")).sel(lr=scale.small))
    return (
        f"With batch norm the best rate is {large:g} ({accuracy('batch', large)} of the test images), without "
        f"{alone:g} ({accuracy('none', alone)}). At the small rate, {scale.small:g}, they end at "
        f"{accuracy('batch', scale.small)} and {accuracy('none', scale.small)}: of the {gain:.1f} points between batch "
        f"norm at its best rate and none at the small one, {same:.1f} are there at the same rate. Every seed learns "
        f"{learnt_by_all(dataset, 'batch')} with it and {learnt_by_all(dataset, 'none')} without. {scale.reduced}"
    )


def draw(dataset: xr.Dataset) -> Figure:
    """Train and test accuracy against the share of training, mean and range over seeds; and the end against the rate.

    What diverged ends in a cross at the accuracy of guessing.
    """
    figure, axes = figure_of(1, 3, panel=(4.2, 3.4))
    percent = 100 * dataset["epoch"].values / dataset.sizes["epoch"]
    styles = ["-", "--", ":"]
    seen: dict[str, int] = {}
    for name, (norm, lr) in arms(dataset).items():
        style = styles[seen.setdefault(norm, 0)]
        seen[norm] += 1
        for ax, accuracy in zip(axes.flat, ("train_accuracy", "test_accuracy"), strict=False):
            values = 100 * dataset[accuracy].sel(norm=norm, lr=lr)
            known = values.notnull().any("seed").values  # the test accuracy of an epoch may not have been asked for
            at, values = percent[known], values.isel(epoch=known)
            ax.plot(at, values.mean("seed", skipna=False), style, color=COLORS[norm], label=name)
            low, high = values.min("seed", skipna=False), values.max("seed", skipna=False)
            ax.fill_between(at, low, high, color=COLORS[norm], alpha=0.15, lw=0)
            if (gone := dataset["outcome"].sel(norm=norm, lr=lr) == Outcome.DIVERGED.value).any():
                last = int((dataset["steps"].sel(norm=norm, lr=lr) > 0).sum("epoch").where(gone).max()) - 1
                ax.plot(percent[last], 100 * chance(dataset), "x", color=COLORS[norm], ms=8)
    for ax, title in zip(axes.flat, ("training images", "test images"), strict=False):
        ax.set(xlabel="% of training", ylabel="accuracy [%]", title=title, ylim=(0, 102))
    legend_once(axes[0, 0], title="learning rate (x: diverged)", fontsize="x-small")
    draw_ends(axes[0, 2], dataset)
    return figure


def draw_ends(ax: Axes, dataset: xr.Dataset) -> None:
    """Test accuracy at the end against the rate, one point a seed, a cross where it diverged; lines are means."""
    end = at_the_end(dataset)
    for norm in dataset["norm"].values.tolist():
        values = end.sel(norm=norm).transpose("lr", "seed")
        lost = (dataset["outcome"].sel(norm=norm) == Outcome.DIVERGED.value).transpose("lr", "seed").values
        ax.plot(values["lr"], values.mean("seed"), color=COLORS[norm], label=NAMES[norm])
        lrs = np.broadcast_to(values["lr"].values[:, None], values.shape)
        ax.plot(lrs[~lost], values.values[~lost], "o", ms=3, color=COLORS[norm])
        ax.plot(lrs[lost], values.values[lost], "x", ms=6, color=COLORS[norm])
    log_ticks_at(ax, dataset["lr"].values)
    ax.set(xlabel="learning rate", ylabel="accuracy [%]", title="test images, at the end", ylim=(0, 102))


EXHIBIT = Exhibit(
    name="figure1",
    title="What normalization buys in training",
    where="Figure 1",
    place=1,
    paper_saw=(
        "At the same small learning rate the networks with and without batch norm end at the same test accuracy. With "
        "batch norm the network trains at rates a thousand times larger, and there ends more than ten points higher; "
        "without it such rates diverge."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    trains=True,
)

"""Does what training reaches follow α/|B|, as the noise of SGD does? Learning rate and mini-batch size, within one
network."""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from normscope.descent.outcome import Outcome
from normscope.figures.style import figure_of, legend_once, log_ticks_at
from normscope.paper.exhibit import Exhibit, Setting
from normscope.paper.exhibits.figure1 import at_the_end, trained_on
from normscope.paper.scale import scale_of
from normscope.results import attribute
from normscope.statistics.claim import Claim


def measure(setting: Setting) -> xr.Dataset:
    """The network with batch norm at every rate and mini-batch size of the scale's ladders, one rung a factor of 4."""
    return trained_on(setting, scale_of(setting.scale).noise_configs(setting.seeds, setting.device))


def end(dataset: xr.Dataset, accuracy: str = "test_accuracy") -> xr.DataArray:
    """Accuracy at the end, in per cent, over `lr`, `batch_size` and `seed`; that of guessing where it diverged."""
    return at_the_end(dataset, accuracy).transpose("lr", "batch_size", "seed")


def ratio(dataset: xr.Dataset) -> xr.DataArray:
    """α/|B| over `lr` and `batch_size`."""
    return dataset["lr"] / dataset["batch_size"]


def diagonal(dataset: xr.Dataset) -> xr.DataArray:
    """Test accuracies where α/|B| is that of most combinations, over `rung` and `seed`; `learns` says where it does."""
    values = end(dataset).assign_coords(learns=dataset["outcome"] == Outcome.LEARNS.value)
    values = values.stack(rung=("lr", "batch_size"))
    ratios = np.round(np.log2(ratio(dataset).stack(rung=("lr", "batch_size")).values), 6)
    found, counts = np.unique(ratios, return_counts=True)
    return values.isel(rung=np.flatnonzero(ratios == found[counts.argmax()]))


def rank_correlation(dataset: xr.Dataset, accuracy: str) -> np.ndarray:
    """Spearman's, of an accuracy at the end with α/|B| over all combinations, seed by seed; NaN where all are equal."""
    flat = ratio(dataset).transpose("lr", "batch_size").values.ravel()
    ends = end(dataset, accuracy).transpose("seed", "lr", "batch_size").values.reshape(dataset.sizes["seed"], -1)
    return np.array([spearmanr(flat, one)[0] if np.ptp(one) else np.nan for one in ends])  # pyright: ignore


def apart(dataset: xr.Dataset) -> xr.DataArray:
    """How far the test accuracies lie apart where α/|B| is the same, in points; NaN where none of them learns."""
    same = diagonal(dataset)
    return (same.max("rung") - same.min("rung")).where(same["learns"].any("rung"))


CLAIMS = [
    Claim(
        statement="Rate and mini-batch act alike: at equal α/|B| the test accuracies lie within 3 points of each other",
        where="argument 2: α/|B|",
        value=apart,
        below=3,
        unit=" points",
        no_value="in which none of them learns",
        detail=lambda dataset: f"{diagonal(dataset).sizes['rung']} combinations",
    ),
    Claim(
        statement="Test accuracy rises with the noise, α/|B|: rank correlation above 0.5",
        where="argument 2: α/|B|",
        value=lambda dataset: rank_correlation(dataset, "test_accuracy"),
        above=0.5,
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Means over seeds, in words."""
    values = end(dataset).mean("seed")
    fitted = rank_correlation(dataset, "train_accuracy").mean()
    same = diagonal(dataset).mean("seed")
    return (
        f"Over all combinations the test accuracy lies between {float(values.min()):.1f} and "
        f"{float(values.max()):.1f} %; where α/|B| is the same, "
        f"between {float(same.min()):.1f} and {float(same.max()):.1f} % (means over seeds). Training "
        f"accuracy has a rank correlation of {fitted:.2f} with α/|B|: where it rises as test accuracy does, more noise "
        "may train faster rather than generalize better. "
        f"{scale_of(attribute(dataset, 'scale')).reduced}"
    )


def draw(dataset: xr.Dataset) -> Figure:
    """Test accuracy against α, and against α/|B|, where the lines of all mini-batch sizes should fall together."""
    figure, axes = figure_of(1, 2, panel=(4.6, 3.4), sharey=True)
    values = end(dataset)
    for index, size in enumerate(dataset["batch_size"].values.tolist()):
        for ax, x in zip(axes.flat, (dataset["lr"], dataset["lr"] / size), strict=True):
            row = values.sel(batch_size=size)
            ax.plot(x, row.mean("seed"), "o-", color=f"C{index}", label=f"|B| = {size}")
            ax.fill_between(x, row.min("seed"), row.max("seed"), color=f"C{index}", alpha=0.15, lw=0)
    log_ticks_at(axes[0, 0], dataset["lr"].values)
    axes[0, 0].set(xlabel="learning rate α", ylabel="test accuracy [%]")
    axes[0, 1].set(xscale="log", xlabel="α/|B|")
    legend_once(axes[0, 0])
    return figure


EXHIBIT = Exhibit(
    name="noise_training",
    title="Learning rate and mini-batch size",
    where="Argument 2",
    place=1.7,
    paper_saw=(
        "The noise of SGD grows with α²C/|B|: a large learning rate and a small mini-batch act alike, and more noise "
        "leads to flatter minima, which generalize better."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    trains=True,
)

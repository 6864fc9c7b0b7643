"""Flat and sharp minima where training is carried to the end: the sharpness on the way down, at equal training loss.

The runs of `figure1_reduced` store the largest Hessian eigenvalue λ₁ and the weights' norm ‖w‖ at the first evaluation
at which the loss of the training images is at most 0.05, and at most 0.01: see `training.ending`. So networks are
compared where they fit the images equally well, and not where an epoch count ends. Claims and thresholds were written
on 28 November 2026, while the runs were under way and before any of their sharpness was looked at.
"""

from functools import partial

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from normscope.figures.style import COLORS, NAMES, figure_of, legend_once
from normscope.paper.exhibit import Exhibit, Setting
from normscope.paper.exhibits import figure1_reduced
from normscope.paper.exhibits.figure1_reduced import SCALE, TITLES, begun, finished, passes, planned
from normscope.paper.reduced import ARMS, LARGE, SMALL
from normscope.statistics.claim import Claim
from normscope.statistics.verdict import AT_REDUCED_SIZE, CONTROL

AT_LOSS = 0.01
"""Of the training images, in nats: where networks are compared."""

SAME = 3.0
"""A factor within which two networks count as equally sharp."""

NETS = ("resnet20", "resnet56")

MEASURES = {
    "sharpness": "the largest Hessian eigenvalue λ₁",
    "scaled": "λ₁‖w‖², which does not change with the scale of the weights,",
    "relative": "λ₁ over the loss",
}


KEPT = ("sharpness_at_loss", "weight_norm_at_loss", "clean_train_loss_at_loss", "clean_train_accuracy", "outcome")


def measure(setting: Setting) -> xr.Dataset:
    """What the runs of `figure1_reduced` say of sharpness, over `arm`, `seed` and `loss`; it trains those that lack."""
    return figure1_reduced.measure(setting)[list(KEPT)]


def sharpness_of(dataset: xr.Dataset, arm: str, kind: str) -> np.ndarray:
    """One of `MEASURES` at `AT_LOSS`, one a planned seed; NaN where the run is not finished or never got there, and for
    all seeds of an arm that misses the gate."""
    of = dataset.sel(arm=arm).isel(seed=planned(dataset).sel(arm=arm).values).sel(loss=AT_LOSS)
    values = of["sharpness_at_loss"]
    if kind == "scaled":
        values = values * of["weight_norm_at_loss"] ** 2
    elif kind == "relative":
        values = values / of["clean_train_loss_at_loss"]
    return values.values if passes(dataset, arm) else np.full(of.sizes["seed"], np.nan)


def ratio(dataset: xr.Dataset, arm: str, over: str, kind: str) -> np.ndarray:
    """One arm's over another's, paired by seed."""
    return sharpness_of(dataset, arm, kind) / sharpness_of(dataset, over, kind)


def _claims(net: str) -> list[Claim]:
    small = f"{SMALL[net]:g}"
    large, at_small = f"{net} batch@{LARGE:g}", f"{net} batch@{small}"
    options = {
        "where": "argument 2: flatter minima",
        "scale": "log",
        "unit": " times",
        "awaits": True,
        "no_value": f"not finished, never at a training loss of {AT_LOSS:g}, or of an arm that misses the gate",
        "note": f"where the training loss is first at most {AT_LOSS:g}, paired by seed",
        "scope": begun(net),
    }
    return [
        *(
            Claim(
                statement=f"{TITLES[net]} with BN: {words} is smaller after training at {LARGE:g} than at {small}",
                kind=AT_REDUCED_SIZE if kind == "sharpness" else CONTROL,
                value=partial(ratio, arm=large, over=at_small, kind=kind),
                below=1,
                **options,
            )
            for kind, words in MEASURES.items()
        ),
        Claim(
            statement=f"{TITLES[net]}, both trained at {small}: BN is no flatter, λ₁‖w‖² agrees within a factor "
            f"{SAME:g} with that without",
            kind=CONTROL,
            value=partial(ratio, arm=at_small, over=f"{net} none@{small}", kind="scaled"),
            equals=1,
            margin=SAME,
            **options,
        ),
    ]


CLAIMS = [claim for net in NETS for claim in _claims(net)]


def draw(dataset: xr.Dataset) -> Figure:
    """λ₁ and λ₁‖w‖² where the training loss is first at most 0.01, one point a finished seed, one place an arm; the
    networks of which a run is finished."""
    nets = [net for net in NETS if begun(net).holds(dataset)] or list(NETS[:1])
    figure, axes = figure_of(len(nets), 2, panel=(4.4, 3.2))
    for row, net in enumerate(nets):
        arms = [arm for arm in ARMS if arm.net == net]
        for ax, kind, label in zip(axes[row], ("sharpness", "scaled"), ("λ₁", "λ₁‖w‖²"), strict=True):
            for place, arm in enumerate(arms):
                values = sharpness_of(dataset, arm.name, kind)
                values = values[np.isfinite(values)]
                ax.plot([place] * len(values), values, "o", color=COLORS[arm.norm], label=NAMES[arm.norm])
            ax.set_xticks(range(len(arms)), [f"{arm.lr:g}" for arm in arms])
            ax.set(title=TITLES[net], xlabel="learning rate", ylabel=label, yscale="log", xlim=(-0.5, len(arms) - 0.5))
        legend_once(axes[row, 0], fontsize="x-small")
    return figure


def we_saw(dataset: xr.Dataset) -> str:
    """How many runs got where they are compared."""
    there = np.isfinite(dataset["sharpness_at_loss"].sel(loss=AT_LOSS))
    return (
        f"{int(there.sum())} of {int(finished(dataset).sum())} finished runs came to a training loss of {AT_LOSS:g} "
        f"({int(planned(dataset).sum())} are planned)."
    )


EXHIBIT = Exhibit(
    name="flatness_reduced",
    title="Sharpness at equal training loss",
    where="Argument 2, at reduced size",
    place=1.85,
    paper_saw=(
        "A large learning rate has more noise, which keeps training away from sharp minima; flat ones generalize "
        "better. The paper cites this, and does not measure it."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    trains=True,
    scales=(SCALE,),
    complete=figure1_reduced.EXHIBIT.complete,
)

"""The first ten updates: mostly wrong, then large corrections, or too large ones."""

import math

import numpy as np
import torch
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from normscope.descent.loop import Step, descend
from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.figures.style import COLORS, figure_of
from normscope.paper.exhibit import DEEP, Exhibit, Setting, joined, over_networks
from normscope.probes.output_gradients import common_part, mean_pairwise_cosine, predictions
from normscope.results import labelled
from normscope.statistics.claim import Claim, RatioClaim
from normscope.statistics.verdict import CONTROL

RUNS = {"with BN, 0.1": ("batch", 0.1), "without, 0.0001": ("none", 1e-4), "without, 0.1": ("none", 0.1)}
"""Norm and learning rate: those the paper trained with, and the network without batch norm at the other's rate."""

UPDATES = 10
RUN_COLORS = dict(zip(RUNS, (COLORS["batch"], COLORS["none"], "#e8a13a"), strict=True))
CURVES = {
    "commonest_share": "commonest prediction",
    "error": "error",
    "loss": "loss",
    "gradient_norm": "norm of the gradient",
    "common_part": "common to all images",
}


def measure(setting: Setting) -> xr.Dataset:
    """SGD as in the paper (momentum 0.9, weight decay 5e-4); every value is that of the mini-batch of an update, in the
    network as it is before the update. NaN behind a loss that is not finite, which ends the descent."""
    dims, long_names = {"run": list(RUNS)}, {"run": "batch norm and learning rate"}

    def run_of(run: str, seed: int) -> xr.Dataset:
        return first_updates(setting, *RUNS[run], seed)

    return over_networks(setting, "first_steps", run_of, dims, long_names=long_names, runs=RUNS)


def first_updates(setting: Setting, norm: str, lr: float, seed: int) -> xr.Dataset:
    """One run over `update`, from 0 to 10 taken."""
    net = setting.build(norm, seed)
    logits: list[Tensor] = []
    net.register_forward_hook(lambda _module, _inputs, output: logits.append(output.detach()))
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    found = []
    for step in descend(net, sgd, setting.batches(seed), steps=UPDATES + 1):
        found.append(_before_update(net, step, logits.pop()))
        if not np.isfinite(float(step.loss)):
            break
    taken = joined(found, "update", range(len(found)), long_name="updates taken")
    return taken.reindex(update=range(UPDATES + 1))


def _before_update(net: nn.Module, step: Step, logits: Tensor) -> xr.Dataset:
    """What a mini-batch finds before the update on it. The gradient at the logits is that of the mean cross-entropy,
    (softmax - one-hot label) / |B|, so that the descent's own forward pass gives it."""
    labels, predicted = step.batch[1], predictions(logits)
    gradient = (logits.double().softmax(1) - F.one_hot(labels, logits.shape[1])) / len(labels)
    norm = torch.stack([p.grad.double().norm() for p in net.parameters() if p.grad is not None]).norm()
    shares = torch.bincount(predicted[predicted >= 0], minlength=logits.shape[1]).double() / len(predicted)
    error = (predicted != labels).double().mean()
    if not shares.any():  # logits that are all NaN predict nothing, right or wrong
        shares, error = shares * torch.nan, error * torch.nan
    return labelled(
        {
            "loss": ((), float(step.loss), "loss", "nat"),
            "error": ((), float(error), "share of wrong predictions", "1"),
            "gradient_norm": ((), float(norm), "norm of the gradient of all parameters", "1"),
            "predicted_share": ("label", shares.cpu().numpy(), "share of the images by predicted class", "1"),
            "mean_cosine": ((), mean_pairwise_cosine(gradient), "mean cosine between two images' gradients", "1"),
            "common_part": ((), common_part(gradient), "part of the gradient that all images share", "1"),
        },
        {"label": (np.arange(logits.shape[1]), "label", "1")},
    )


def diverged_at(dataset: xr.Dataset) -> xr.DataArray:
    """After how many updates the loss first is 10³ times its start or not finite; infinite where it never is."""
    relative = dataset["loss"] / dataset["loss"].isel(update=0)
    diverged = ~(relative <= DIVERGENCE_FACTOR)
    return dataset["update"].where(diverged, np.inf).min("update")


def share_of_first_class(dataset: xr.Dataset) -> xr.DataArray:
    """The share, at every update, of the class that was the commonest prediction before the first."""
    shares = dataset["predicted_share"]
    return shares.isel(label=shares.isel(update=0, drop=True).argmax("label"))


def draw(dataset: xr.Dataset) -> Figure:
    """One panel a quantity, one colour a run, one thin line a seed and their median thick."""
    dataset = dataset.assign(commonest_share=dataset["predicted_share"].max("label"))
    figure, axes = figure_of(1, len(CURVES), panel=(2.5, 3.2))
    for ax, (name, title) in zip(axes.flat, CURVES.items(), strict=True):
        for run in RUNS:
            _draw_run(ax, dataset[name].sel(run=run).transpose("seed", "update"), RUN_COLORS[run], run)
        ax.set(xlabel="updates taken", title=title)
        if name in ("loss", "gradient_norm"):
            ax.set_yscale("log")
        else:
            ax.set_ylim(0, 1.03)
    lines = {str(line.get_label()): line for line in axes[0, 0].lines}
    named = {name: line for name, line in lines.items() if not name.startswith("_")}
    figure.legend(named.values(), named.keys(), title="learning rate", loc="outside lower center", ncols=len(named))
    return figure


def _draw_run(ax: Axes, curves: xr.DataArray, color: str, label: str) -> None:
    updates = curves["update"].values
    finite = curves.where(np.isfinite(curves))
    for row in finite.values:
        ax.plot(updates, row, color=color, lw=0.7, alpha=0.6)
    ax.plot(updates, finite.median("seed", skipna=False), color=color, lw=2, marker=".", label=label)
    gone = updates[finite.isnull().any("seed")]
    if len(gone):
        top = ax.get_xaxis_transform()
        ax.plot(gone, np.ones(len(gone)), "^", color=color, transform=top, clip_on=False, label="not finite")


def gradient_ratio(dataset: xr.Dataset) -> xr.DataArray:
    """The norm of the first gradient without batch norm over that with it."""
    norm = dataset["gradient_norm"].isel(update=0)
    return norm.sel(run=SMALL) / norm.sel(run=WITH_BN)


def _left_of_first_class(dataset: xr.Dataset) -> xr.DataArray:
    """The least share, in per cent, that the class first predicted falls to."""
    after = share_of_first_class(dataset.sel(run=SMALL)).isel(update=slice(1, None))
    return 100 * after.min("update", skipna=False)


WITH_BN, SMALL, LARGE = RUNS

UNSURE = math.log(10)
"""The loss of ten classes alike, in nat: that of a network that knows nothing and says so."""

CLAIMS = [
    Claim(
        statement="Wrong, and sure of it: without BN the first mini-batch's loss is at least 10 times that of no "
        "prediction, 2.3 nat",
        where="Text on figure 6",
        value=lambda dataset: dataset["loss"].sel(run=SMALL, update=0),
        above=10 * UNSURE,
        scale="log",
        paper="one class, typically wrong",
        unit=" nat",
        note="nine in ten are wrong by chance alone, so that confidence is judged",
        scope=DEEP,
    ),
    Claim(
        statement="With BN it is not: at most twice that of no prediction",
        where="beside figure 6",
        kind=CONTROL,
        value=lambda dataset: dataset["loss"].sel(run=WITH_BN, update=0),
        below=2 * UNSURE,
        scale="log",
        unit=" nat",
        scope=DEEP,
    ),
    RatioClaim(
        statement="Then large corrections: without BN the first gradient is at least 10 times as large as with BN",
        where="Text on figure 6",
        value=gradient_ratio,
        above=10,
        note="norm over all parameters, paired by seed",
        scope=DEEP,
    ),
    Claim(
        statement="They do correct: at learning rate 1e-4 the class first predicted falls below half of the images "
        f"within {UPDATES} updates, in more than half of the networks",
        where="Text on figure 6",
        of="proportion",
        value=lambda dataset: (_left_of_first_class(dataset) < 50).where(_left_of_first_class(dataset).notnull()),
        above=0.5,
        scope=DEEP,
    ),
    Claim(
        statement="Too large at BN's learning rate: without BN the loss diverges within five updates at 0.1, in more "
        "than half of the networks",
        where="Text on figure 3",
        of="proportion",
        value=lambda dataset: diverged_at(dataset).sel(run=LARGE) <= 5,
        above=0.5,
        paper="the first few updates",
        scope=DEEP,
    ),
    Claim(
        statement=f"With BN the loss does not diverge at 0.1 in the first {UPDATES} updates, in more than half of the "
        "networks",
        where="Text on figure 3",
        of="proportion",
        value=lambda dataset: diverged_at(dataset).sel(run=WITH_BN) > UPDATES,
        above=0.5,
        scope=DEEP,
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds, in words."""
    with_bn, small, large = RUNS
    start = dataset.isel(update=0)
    norms = start["gradient_norm"].median("seed")
    after = share_of_first_class(dataset.sel(run=small)).min("update").median()
    diverged = diverged_at(dataset.sel(run=large))
    count, seeds = int(np.isfinite(diverged).sum()), dataset.sizes["seed"]
    when = f", after {float(diverged.median()):.0f} updates in the median" if count > seeds / 2 else ""
    loss = start["loss"].median("seed")
    return (
        f"Without batch norm the first mini-batch's loss is {float(loss.sel(run=small)):.3g} nat, with it "
        f"{float(loss.sel(run=with_bn)):.2g} (2.3 for no prediction); without it the gradient's norm is "
        f"{float(norms.sel(run=small)):.2g}, with it {float(norms.sel(run=with_bn)):.2g}. At learning rate 1e-4 the "
        f"class first predicted falls to {100 * float(after):.0f} % of the images or fewer (medians over seeds); at "
        f"0.1 the loss diverges within {UPDATES} updates for {count} of {seeds} seeds{when}."
    )


EXHIBIT = Exhibit(
    name="first_steps",
    title="The first ten updates",
    where="Text on figures 3 and 6",
    place=6.2,
    paper_saw=(
        "Without batch norm the network starts by predicting one class, typically the wrong one, which a strong "
        "gradient then corrects: at a large learning rate the loss diverges in the first few updates. With batch norm "
        "the same learning rate goes well."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
)

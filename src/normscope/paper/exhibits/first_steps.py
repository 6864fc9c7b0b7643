"""The first ten updates: mostly wrong, then large corrections, or too large ones."""

from string import ascii_letters

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
from normscope.paper.exhibit import NORM_TITLES, Exhibit, Setting, joined
from normscope.probes.output_gradients import common_part, mean_pairwise_cosine, predictions
from normscope.results import attribute, labelled, with_attributes
from normscope.runtime.progress import progress
from normscope.statistics.verdict import Verdict, judge

RUNS = {"with BN, 0.1": ("batch", 0.1), "without, 0.0001": ("none", 1e-4), "without, 0.1": ("none", 0.1)}
"""Norm and learning rate: those the paper trained with, and the network without batch norm at the other's rate."""

SHALLOW = 30
"""What goes wrong without batch norm is not asked of networks with fewer layers than this."""

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
    rows = []
    with progress("first_steps", len(RUNS) * len(setting.seeds)) as bar:
        for norm, lr in RUNS.values():
            seeds = []
            for seed in setting.seeds:
                seeds.append(first_updates(setting, norm, lr, seed))
                bar.advance(f"{NORM_TITLES[norm]}, learning rate {lr:g}, seed {seed}")
            rows.append(joined(seeds, "seed", setting.seeds))
    dataset = joined(rows, "run", list(RUNS), long_name="batch norm and learning rate")
    return with_attributes(dataset, **setting.provenance(runs=RUNS))


def first_updates(setting: Setting, norm: str, lr: float, seed: int) -> xr.Dataset:
    """One run over `update`, from 0 to 10 taken."""
    net = setting.build(norm, seed)
    logits: list[Tensor] = []
    net.register_forward_hook(lambda _module, _inputs, output: logits.append(output.detach()))
    sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    found = []
    for step in descend(net, sgd, setting.batches(seed), steps=UPDATES + 1):
        found.append(before_update(net, step, logits.pop()))
        if not np.isfinite(float(step.loss)):
            break
    taken = joined(found, "update", range(len(found)), long_name="updates taken")
    return taken.reindex(update=range(UPDATES + 1))


def before_update(net: nn.Module, step: Step, logits: Tensor) -> xr.Dataset:
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


def verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """What the paper says of the first updates without batch norm, if the network is deep, and that with it they go
    well."""
    with_bn, small, _ = RUNS
    result = [
        judge(
            "Mostly wrong: without BN at least 80 % of the first mini-batch is misclassified",
            "Text on figure 6",
            100 * dataset["error"].sel(run=small, update=0),
            above=80,
            paper="one class, typically wrong",
            unit=" %",
        )
    ]
    if depth_of(attribute(dataset, "config")["net"]) > SHALLOW:
        result += correction_verdicts(dataset)
    return [
        *result,
        judge(
            f"With BN the loss does not diverge at 0.1 in the first {UPDATES} updates",
            "Text on figure 3",
            diverged_at(dataset).sel(run=with_bn),
            above=UPDATES,
            unit=" updates",
        ),
    ]


def depth_of(net: str) -> int:
    """The number of layers in a network's name."""
    return int(net.lstrip(ascii_letters))


def correction_verdicts(dataset: xr.Dataset) -> list[Verdict]:
    """How large the corrections are without batch norm: those that help, and those that are too large."""
    with_bn, small, large = RUNS
    norm = dataset["gradient_norm"].isel(update=0)
    first_class = share_of_first_class(dataset.sel(run=small)).isel(update=slice(1, None))
    return [
        judge(
            "Then large corrections: without BN the first gradient is at least 10 times as large as with BN",
            "Text on figure 6",
            norm.sel(run=small) / norm.sel(run=with_bn),
            above=10,
            scale="log",
            unit=" times",
            note="norm over all parameters, paired by seed",
        ),
        judge(
            "They do correct: at learning rate 1e-4 the class first predicted falls below half of the images within "
            f"{UPDATES} updates",
            "Text on figure 6",
            100 * first_class.min("update", skipna=False),
            below=50,
            unit=" %",
        ),
        judge(
            "Too large at BN's learning rate: without BN the loss diverges within five updates at 0.1",
            "Text on figure 3",
            diverged_at(dataset).sel(run=large),
            below=5.5,
            paper="the first few updates",
            unit=" updates",
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
    wrong = float(start["error"].sel(run=small).median())
    return (
        f"Without batch norm {100 * wrong:.0f} % of the first mini-batch is wrong and the gradient's norm is "
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
    verdicts=verdicts,
    we_saw=we_saw,
)

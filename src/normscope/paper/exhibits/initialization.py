"""Is random initialization the cause? The unnormalized network from other starts, beside batch norm."""

import math
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata
from torch import Tensor, nn

from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.descent.step_line import step_line
from normscope.figures.style import COLORS, axis_label, figure_of, legend_once
from normscope.model.loss import output_spread
from normscope.model.state import untouched
from normscope.paper.exhibit import DEEP, Exhibit, Setting, depth_of, over_networks
from normscope.paper.exhibits.figure5 import curves
from normscope.probes.channel_moments import channel_moments
from normscope.probes.sharpness import sharpness
from normscope.results import labelled
from normscope.statistics.claim import Bounded, Claim, RatioClaim, Scope
from normscope.statistics.verdict import CONTROL

REFERENCE = "batch_norm"
"""The one network with batch norm, from `xavier_uniform` weights; all others have no normalization."""

STARTS = (
    "xavier_uniform",
    "xavier_normal",
    "kaiming_normal",
    "orthogonal",
    "default",
    "depth_scaled",
    "zero_residual",
)
"""Of the unnormalized network. All but the last draw every kernel at random, on different scales."""

END = 1e4
"""Step size up to which divergence is looked for."""

EXAMPLES = 16
"""Images of the mini-batch in which spread and Hessian are taken: a product costs as much as ten forward passes."""

TOLERANCE = 0.1
"""Of the sharpness: what is compared differs by decades."""

SECTION = "argument 5: random initialization"


def build(setting: Setting, start: str, seed: int) -> nn.Module:
    """The network of that name.

    "depth_scaled" is `xavier_uniform` with all kernels divided by ⁴√L where there are L residual blocks: the two
    convolutions of a block then divide the variance that it adds to the stream by L.
    """
    if start == REFERENCE:
        return setting.build("batch", seed)
    if start != "depth_scaled":
        return setting.build("none", seed, init=start)
    return setting.build("none", seed, init_scale=max(depth_of(setting.net) // 2 - 1, 1) ** -0.25)


def divergence_step_size(loss: float, gradient_norm: float, loss_at: Any, *, end: float = END) -> float:
    """Where the loss along the gradient first passes 10³ times its start, within 15 %: by decades upwards from a
    tenth of ℓ/‖g‖², at which a straight line would reach zero, and then by bisection. Infinite beyond `end`."""
    if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
        return math.nan
    if gradient_norm == 0:
        return math.inf

    def diverged(step_size: float) -> bool:
        return not float(loss_at(step_size)) <= DIVERGENCE_FACTOR * loss

    step = loss / gradient_norm**2 / 10
    while diverged(step):
        step /= 1000
        if step < 1e-38:
            return math.nan
    while not diverged(step):
        step *= 10
        if step > end:
            return math.inf
    low, high = step / 10, step
    for _ in range(3):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if diverged(middle) else (middle, high)
    return math.sqrt(low * high)


def measure_one(net: nn.Module, batch: tuple[Tensor, Tensor]) -> xr.Dataset:
    """One network at its start on one mini-batch."""
    images, labels = batch
    log_std = curves(channel_moments(net, batch))["log_std"].isel(depth=slice(0, -1))
    log_std = log_std.sel(depth=log_std["depth"] % 2 == 0)  # each block's first convolution: it reads the stream itself
    with step_line(net, batch) as line:
        loss, gradient_norm = float(line.loss), float(line.gradient_norm)
        step = divergence_step_size(loss, gradient_norm, line.loss_at)
    few = images[:EXAMPLES], labels[:EXAMPLES]
    with untouched(net):
        spread = output_spread(net.train(), few)
    sharp = sharpness(net, few, tolerance=TOLERANCE, max_products=8)
    largest, lowest = float(sharp["eigenvalue"][0]), float(sharp["lowest_eigenvalue"])
    known = sharp["lowest_converged"] if abs(lowest) > abs(largest) else sharp["converged"][0]
    return labelled(
        {
            "log_std": ("depth", log_std.values, "log channel std", "nat"),
            "divergence_step_size": ((), step, "step size where the loss passes 10³ times its start", "1"),
            "divergence_distance": ((), step * gradient_norm, "distance in parameters that this step walks", "1"),
            "loss": ((), loss, "loss", "nat"),
            "gradient_norm": ((), gradient_norm, "norm of the gradient", "1"),
            "output_spread": ((), spread, "spread of the outputs over images, share of their size", "1"),
            "sharpness": ((), largest, "largest eigenvalue of the Hessian", "1"),
            "sharpness_converged": ((), bool(sharp["converged"][0]), "sharpness known to the tolerance", "1"),
            "spectral_radius": ((), max(abs(largest), abs(lowest)), "largest absolute eigenvalue of the Hessian", "1"),
            "spectral_radius_converged": ((), bool(known), "largest absolute eigenvalue known to the tolerance", "1"),
            "edge_lr": ((), float(sharp["edge_lr"]), "learning rate at the edge of stability, 2/λ₁", "1"),
            "curvature": ((), float(sharp["curvature"]), "curvature along the gradient", "1"),
        },
        {"depth": (log_std["depth"].values, "layer on the main path", "1")},
    )


def measure(setting: Setting) -> xr.Dataset:
    """Every start with every seed, without normalization; and batch norm from Xavier weights.

    Moments, gradient and divergence on the first mini-batch, spread and Hessian on its first 16 images. Weights are
    paired by seed as far as a start's own numbers allow.
    """
    starts = [s for s in STARTS if s != "zero_residual" or setting.net.startswith("resnet")] + [REFERENCE]

    def from_start(start: str, seed: int) -> xr.Dataset:
        return measure_one(build(setting, start, seed), setting.first_batch(seed))

    dims, long_names = {"init": starts}, {"init": "initialization"}
    return over_networks(
        setting,
        "initialization",
        from_start,
        dims,
        long_names=long_names,
        hessian_examples=EXAMPLES,
        tolerance=TOLERANCE,
    )


def growth(dataset: xr.Dataset) -> xr.DataArray:
    """How fast activations grow with depth: least-squares slope of log std, nat per 100 layers."""
    return 100 * dataset["log_std"].polyfit("depth", 1)["polyfit_coefficients"].sel(degree=1, drop=True)


def rank_correlation(a: xr.DataArray, b: xr.DataArray) -> list[float]:
    """Spearman's over starts without normalization, one a seed; infinities rank last, NaN where one has no value."""
    a, b = (values.drop_sel(init=REFERENCE).transpose("seed", "init") for values in (a, b))
    ranks = zip(rankdata(a.values, axis=1), rankdata(b.values, axis=1), strict=True)
    with np.errstate(invalid="ignore"):
        return [float(np.corrcoef(pair)[0, 1]) for pair in ranks]


def _best_start(dataset: xr.Dataset) -> str:
    """Zero residual branches, where the network has any; else torch's default weights."""
    return "zero_residual" if "zero_residual" in dataset["init"] else "default"


def _step_ratio(dataset: xr.Dataset, start: str | None, over: str) -> Bounded:
    """The step that diverges from one start over that from another; where the first lies beyond the range the ratio is
    a lower bound."""
    steps = dataset["divergence_step_size"]
    larger, smaller = steps.sel(init=start or _best_start(dataset)), steps.sel(init=over)
    return Bounded(larger.clip(max=END) / smaller.where(np.isfinite(smaller)), np.isinf(larger))


def _best_over_xavier(dataset: xr.Dataset, name: str) -> np.ndarray:
    """A quantity from the best start over that from Xavier weights."""
    return (dataset[name].sel(init=_best_start(dataset)) / dataset[name].sel(init="xavier_uniform")).values


def _flatter_with_bn(dataset: xr.Dataset) -> np.ndarray:
    """The Hessian's largest absolute eigenvalue with batch norm over that without, both from Xavier weights."""
    curved = dataset["spectral_radius"].where(dataset["spectral_radius_converged"])
    return (curved.sel(init=REFERENCE) / curved.sel(init="xavier_uniform")).values


_PAIRED = "step size where the loss passes 10³ times its start, paired by seed"

CLAIMS = [
    Claim(
        statement="Without BN, the faster activations grow with depth, the smaller the step that diverges: rank "
        "correlation over starts below −0.5",
        where=SECTION,
        kind=CONTROL,
        value=lambda dataset: rank_correlation(growth(dataset), dataset["divergence_step_size"]),
        below=-0.5,
        note="one correlation a seed",
        detail=lambda dataset: f"over {dataset.sizes['init'] - 1} starts",
        scope=DEEP,
    ),
    *(
        RatioClaim(
            statement=f"Without BN, {words}, a step can be at least 10 times larger than from Xavier weights",
            where=SECTION,
            kind=CONTROL,
            value=partial(_step_ratio, start=start, over="xavier_uniform"),
            above=10,
            note=_PAIRED,
            scope=Scope(DEEP.words, lambda dataset, one=start: DEEP.holds(dataset) and one in dataset["init"]),
        )
        for start, words in {
            "zero_residual": "with the end of each residual branch set to zero",
            "depth_scaled": "with Xavier weights scaled down by the number of blocks",
            "default": "from torch's default weights",
        }.items()
    ),
    RatioClaim(
        statement="Without BN, from the best start, a step can be at least a third of what it can be with BN",
        where=SECTION,
        kind=CONTROL,
        value=partial(_step_ratio, start=None, over=REFERENCE),
        above=1 / 3,
        note=_PAIRED,
        detail=lambda dataset: f"best start: {_best_start(dataset)}",
        scope=DEEP,
    ),
    RatioClaim(
        statement="Without BN, the best start has a gradient at most a tenth of that from Xavier weights",
        where=SECTION,
        kind=CONTROL,
        value=partial(_best_over_xavier, name="gradient_norm"),
        below=0.1,
        note="norm of the gradient, paired by seed",
        scope=DEEP,
    ),
    RatioClaim(
        statement="Without BN, from the best start, the distance α‖g‖ that the parameters can walk is also at least as "
        "long as from Xavier weights",
        where=SECTION,
        kind=CONTROL,
        value=partial(_best_over_xavier, name="divergence_distance"),
        above=1,
        note="up to where the loss passes 10³ times its start, paired by seed",
        scope=DEEP,
    ),
    Claim(
        statement="Without BN, the sharpness at the start tells where a step diverges: rank correlation of 2/λ₁ with "
        "it over starts above 0.5",
        where="not in the paper",
        kind=CONTROL,
        value=lambda dataset: rank_correlation(
            dataset["edge_lr"].where(dataset["sharpness_converged"]), dataset["divergence_step_size"]
        ),
        above=0.5,
        note="one correlation a seed",
        detail=lambda dataset: f"over {dataset.sizes['init'] - 1} starts",
    ),
    RatioClaim(
        statement="From the same Xavier weights, BN makes the loss flatter at the start: the Hessian's largest "
        "absolute eigenvalue is below that without",
        where="not in the paper",
        kind=CONTROL,
        value=_flatter_with_bn,
        below=1,
        note="paired by seed",
        detail=lambda dataset: f"Hessian of {dataset.attrs['hessian_examples']} images",
        scope=DEEP,
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Medians over seeds, in words."""
    steps = dataset["divergence_step_size"].median("seed")

    def step(start: str) -> str:
        value = float(steps.sel(init=start))
        return f"{value:.2g}" if np.isfinite(value) else f"more than {END:.0g}"

    named = {"zero_residual": "zero residual branches", "default": "torch's default weights"}
    named |= {"depth_scaled": "depth-scaled weights"}
    others = [f"{step(start)} from {words}" for start, words in named.items() if start in dataset["init"]]
    sharp, far = dataset["spectral_radius"].median("seed"), dataset["divergence_distance"].median("seed")
    (sharp_none, far_none), (sharp_bn, far_bn) = (
        (f"{float(sharp.sel(init=start)):.2g}", f"{float(far.sel(init=start)):.2g}")
        for start in ("xavier_uniform", REFERENCE)
    )
    return (
        f"Without batch norm the loss passes a thousand times its start at α = {step('xavier_uniform')} from Xavier "
        f"weights, {step('kaiming_normal')} from Kaiming's, {', '.join(others)}; with batch norm, from Xavier "
        f"weights, at {step(REFERENCE)}. Up to there, from Xavier weights, the parameters walk a distance α‖g‖ of "
        f"{far_none} without batch norm and {far_bn} with it; the Hessian's largest eigenvalue, of either sign, is "
        f"{sharp_none} without and {sharp_bn} with it (medians over seeds)."
    )


def draw(dataset: xr.Dataset) -> Figure:
    """Left: log std against depth, one line a start. Right: how far a step can go (filled) and 2/λ₁ (hollow, where it
    converged)."""
    figure, axes = figure_of(1, 2, panel=(5.2, 3.6))
    starts = dataset["init"].values.tolist()
    colors = dict(zip(starts, ("C1", "C2", "C4", "C5", "C6", "C8", "C9"), strict=False))
    colors |= {"xavier_uniform": COLORS["none"], REFERENCE: COLORS["batch"]}
    draw_growth(axes[0, 0], dataset, colors)
    _draw_steps(axes[0, 1], dataset, colors)
    return figure


def draw_growth(ax: Axes, dataset: xr.Dataset, colors: dict[str, str]) -> None:
    """The mean over seeds of log std against depth."""
    for start in dataset["init"].values.tolist():
        line = dataset["log_std"].sel(init=start).mean("seed")
        ax.plot(dataset["depth"], line.where(np.isfinite(line)), color=colors[start], label=words(start))
    ax.set(xlabel=axis_label(dataset["depth"]), ylabel=axis_label(dataset["log_std"]))
    legend_once(
        ax, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0, frameon=False, fontsize="small"
    )


def _draw_steps(ax: Axes, dataset: xr.Dataset, colors: dict[str, str]) -> None:
    """One row a start, one point a seed; what did not diverge is a triangle on the right edge."""
    starts = dataset["init"].values.tolist()
    for row, start in enumerate(starts):
        one = dataset.sel(init=start)
        steps, edges = one["divergence_step_size"].values, one["edge_lr"].where(one["sharpness_converged"]).values
        known = np.isfinite(steps)
        heights = np.full(len(steps), row)
        ax.plot(steps[known], heights[known], "o", color=colors[start], ms=6)
        ax.plot(edges, heights, "o", mfc="none", mec=colors[start], ms=6)
        if np.isinf(steps).any():
            ax.plot(np.full(np.isinf(steps).sum(), END), heights[np.isinf(steps)], ">", color=colors[start], ms=7)
    ax.plot([], [], "o", mfc="none", mec="0.4", label="2/λ₁")
    ax.plot([], [], "o", color="0.4", label="loss at 10³ times its start")
    if np.isinf(dataset["divergence_step_size"]).any():
        ax.plot([], [], ">", color="0.4", label="does not")
    ax.set(xscale="log", xlabel="step size α", yticks=range(len(starts)), yticklabels=[words(s) for s in starts])
    ax.invert_yaxis()
    legend_once(
        ax, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), columnspacing=1.0, frameon=False, fontsize="small"
    )


def words(start: str) -> str:
    """A start's name as it is written in pictures."""
    return "batch norm, Xavier" if start == REFERENCE else start.replace("_", " ")


EXHIBIT = Exhibit(
    name="initialization",
    title="Is random initialization the cause?",
    where="Argument 5",
    place=7.2,
    paper_saw=(
        "The paper traces exploding activations to random initialization: a product of many random matrices is "
        "ill-conditioned. If so, the network without batch norm must take far larger steps from a start that is not "
        "such a product: with the end of every residual branch at zero, or with weights scaled down by depth."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
    protocol=2,
)

"""Do gradients explode backwards with batch norm, and does training tame it? Later theory's claim, against depth."""

import math
from functools import partial

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure

from normscope.descent.loop import descend
from normscope.figures.style import COLORS, figure_of, legend_once
from normscope.paper.exhibit import DEEP, NORM_TITLES, Exhibit, Setting, depth_of, joined, over_networks
from normscope.paper.exhibits.figure3 import LEARNING_RATE
from normscope.probes.gradient_norms import gradient_norms
from normscope.statistics.claim import Claim, RatioClaim
from normscope.statistics.verdict import CONTROL, LATER_WORKS

UPDATES = (0, 1, 3, 10)

FACTOR = math.sqrt(math.pi / (math.pi - 1))
"""By which the rms of a gradient grows from a layer to the one before, in an infinitely wide plain network with ReLU
and batch norm at initialization (Yang et al. 2019): 1.21."""

NETWORKS = {"resnet": ("none", "batch"), "plain": ("batch",)}
"""Kinds of network, of the setting's depth, with their norms."""


def measure(setting: Setting) -> xr.Dataset:
    """The rms of the gradient at every convolution's output, on the mini-batch of updates 0, 1, 3 and 10 of training as
    in figure 3. NaN where the loss is not finite any more."""
    depth = depth_of(setting.net)
    networks = {f"{kind} {NORM_TITLES[norm]}": (kind, norm) for kind, norms in NETWORKS.items() for norm in norms}

    def of_network(name: str, seed: int) -> xr.Dataset:
        kind, norm = networks[name]
        return measure_one(setting, f"{kind}{depth}", norm, seed)

    dims, long_names = {"network": list(networks)}, {"network": "network and normalization"}
    return over_networks(setting, "backward", of_network, dims, long_names=long_names, learning_rate=LEARNING_RATE)


def measure_one(setting: Setting, net_name: str, norm: str, seed: int) -> xr.Dataset:
    """One network over `update` and `depth`."""
    net = setting.build(norm, seed, net=net_name)
    sgd = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE[norm], momentum=0.9, weight_decay=5e-4)
    found = []
    for step in descend(net, sgd, setting.batches(seed), steps=UPDATES[-1] + 1):
        if not np.isfinite(float(step.loss)):
            break
        if step.index in UPDATES:
            of = gradient_norms(net, step.batch)[["activation_gradient_rms"]]
            of = of.isel(layer=np.isfinite(of["depth"].values)).swap_dims(layer="depth").drop_vars("layer")
            found.append(of.isel(depth=slice(0, -1)))  # the last is no convolution
    taken = joined(found, "update", UPDATES[: len(found)], long_name="updates taken")
    return taken.reindex(update=list(UPDATES))


def per_layer(dataset: xr.Dataset) -> xr.DataArray:
    """The factor by which the rms grows from a layer to the one before: the least-squares slope of its logarithm over
    all convolutions."""
    log = xr.apply_ufunc(np.log, dataset["activation_gradient_rms"])
    slope = log.where(np.isfinite(log)).polyfit("depth", 1, skipna=False)["polyfit_coefficients"].sel(degree=1)
    return xr.apply_ufunc(np.exp, -slope)


def growth(dataset: xr.Dataset) -> xr.DataArray:
    """The rms at the first convolution over that at the last one."""
    rms = dataset["activation_gradient_rms"]
    return rms.isel(depth=0, drop=True) / rms.isel(depth=-1, drop=True)


def draw(dataset: xr.Dataset) -> Figure:
    """One panel a network: the rms against depth, medians over seeds, one line an update."""
    names = dataset["network"].values.tolist()
    figure, axes = figure_of(1, len(names), panel=(3.6, 3.2))
    for ax, name in zip(axes.flat, names, strict=True):
        of = dataset["activation_gradient_rms"].sel(network=name).median("seed")
        color = COLORS["none"] if name.endswith(NORM_TITLES["none"]) else COLORS["batch"]
        for alpha, update in zip(np.linspace(1, 0.35, len(UPDATES)), UPDATES, strict=True):
            ax.plot(of["depth"], of.sel(update=update), color=color, alpha=alpha, label=f"after {update} updates")
        if name.startswith("plain"):
            depth, start = of["depth"].values, of.sel(update=0).values
            ax.plot(depth, start[-1] * FACTOR ** (depth[-1] - depth), ":", color="0.3", label="1.21 a layer")
        ax.set(yscale="log", xlabel="layer", title=name)
        legend_once(ax)
    axes.flat[0].set_ylabel("rms of the output's gradient")
    return figure


def _place(dataset: xr.Dataset, kind: str, norm: str) -> dict[str, str]:
    return {"network": f"{kind} {NORM_TITLES[norm]}"}


def _growth_of(dataset: xr.Dataset, kind: str, norm: str, update: int) -> xr.DataArray:
    """`growth` of one network before an update."""
    return growth(dataset).sel(_place(dataset, kind, norm)).sel(update=update)


CLAIMS = [
    Claim(
        statement="Plain network with BN, at initialization: gradients grow backwards by √(π/(π−1)) = 1.21 a layer, "
        "within a factor 1.05",
        where="Yang et al. 2019",
        kind=LATER_WORKS,
        value=lambda dataset: per_layer(dataset).sel(_place(dataset, "plain", "batch")).sel(update=0),
        equals=FACTOR,
        margin=1.05,
        scale="log",
        paper=f"{FACTOR:.2f}, infinitely wide",
        unit=" a layer",
        note="rms of the gradient at the convolutions' outputs, least squares over depth",
        scope=DEEP,
    ),
    RatioClaim(
        statement="ResNet with BN, at initialization: they grow at least tenfold from the last convolution to the "
        "first",
        where="Yang et al. 2019",
        kind=LATER_WORKS,
        value=partial(_growth_of, kind="resnet", norm="batch", update=0),
        above=10,
        scope=DEEP,
    ),
    RatioClaim(
        statement="One update tames it: afterwards they grow at most a third as much",
        where="Yang et al. 2019",
        kind=LATER_WORKS,
        value=lambda dataset: (
            _growth_of(dataset, "resnet", "batch", 1) / _growth_of(dataset, "resnet", "batch", UPDATES[0])
        ),
        below=1 / 3,
        note="ResNet with BN, at a learning rate of 0.1; paired by seed",
        scope=DEEP,
    ),
    RatioClaim(
        statement=f"After {UPDATES[-1]} updates they grow less than tenfold",
        where="Yang et al. 2019",
        kind=LATER_WORKS,
        value=partial(_growth_of, kind="resnet", norm="batch", update=UPDATES[-1]),
        below=10,
        note="ResNet with BN, at a learning rate of 0.1",
        scope=DEEP,
    ),
    RatioClaim(
        statement="Without BN they grow backwards too: at least tenfold at initialization",
        where="argument 4: gradients at initialization",
        kind=CONTROL,
        value=partial(_growth_of, kind="resnet", norm="none", update=0),
        above=10,
        scope=DEEP,
    ),
]


def we_saw(dataset: xr.Dataset) -> str:
    """Geometric means over seeds, in words."""
    said = []
    for name in dataset["network"].values.tolist():
        logs = xr.apply_ufunc(np.log, growth(dataset).sel(network=name))
        values = np.exp(logs.mean("seed").values)
        said.append(f"{name}: " + ", ".join(f"{float(value):.3g}" for value in values))
    return (
        f"From the last convolution to the first the gradient grows, before updates {', '.join(map(str, UPDATES))}, by "
        f"factors of {'; '.join(said)} (geometric means over {dataset.sizes['seed']} seeds)."
    )


EXHIBIT = Exhibit(
    name="backward",
    title="Gradients against depth, and the first updates",
    where="later work",
    place=6.8,
    paper_saw=(
        "The paper measures gradients of weights. Later theory (Yang et al. 2019) says that with batch norm the "
        "gradients of activations explode backwards at initialization, by a factor of 1.21 a layer in plain networks, "
        "and that training soon tames it."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    we_saw=we_saw,
)

"""The norms of the ladder in two small pre-norm transformers, at the start: do they buy what layer norm buys there?"""

from functools import partial

import numpy as np
import torch
import xarray as xr
from matplotlib.figure import Figure
from torch import nn

from normscope.descent.step_line import step_line
from normscope.descent.update import update_of
from normscope.figures.style import figure_of
from normscope.paper.exhibit import Exhibit, Setting, over_networks
from normscope.paper.exhibits.apart import END
from normscope.paper.exhibits.initialization import divergence_step_size
from normscope.paper.ladder import HALF, PREDICTED, RUNGS, Effect, log_of, share_of_effect
from normscope.paper.ladder_map import draw_cells
from normscope.paper.rungs import at_reduced_size, see
from normscope.paper.transformers import CharGPT, ViT, characters, text_batch
from normscope.probes.gradient_norms import gradient_norms
from normscope.probes.output_gradients import output_gradients
from normscope.probes.sharpness import sharpness
from normscope.results import labelled
from normscope.statistics.claim import Claim
from normscope.statistics.verdict import CONTROL

NETWORKS = ("ViT", "char-GPT")

NORMS = (
    *("none", "layer", "rms", "group", "instance", "tanh"),
    *("batch", "batch_mean", "batch_std", "batch_detached", "batch_running", "batch_first", "batch_ghost"),
)

EXAMPLES, FEW = 64, 16
"""Of a mini-batch, and of that whose Hessian is looked at."""

MOST_PRODUCTS = 30
"""For λ₁; it is not known where so many do not reach it."""

EFFECTS = {
    "sgd": Effect("how far the first step along the gradient can go", log_of("divergence_step_size", optimizer="sgd")),
    "adam": Effect("how far Adam's first step can go", log_of("divergence_step_size", optimizer="adam")),
    "edge": Effect("2/λ₁", log_of("edge_lr")),
    "common": Effect("the gradient's common part", lambda dataset: -dataset["common_part"]),
}
"""Signed so that layer norm is to raise them."""

PREDICTIONS: dict[str, dict[str, bool]] = {
    "sgd": {"rms": True, "group": True, "tanh": True, "batch": True, "batch_std": True, "batch_mean": False},
    "adam": {"rms": True, "group": True, "tanh": True, "batch": True, "batch_std": True, "batch_mean": False},
    "edge": {"rms": True, "batch": True, "batch_std": True, "batch_mean": False},
    "common": {"rms": True, "batch": True, "batch_std": False, "batch_mean": True},
}
"""By effect and norm: whether it buys more than half of what layer norm does, in both networks. Written with the file,
before anything was measured."""


def measure(setting: Setting) -> xr.Dataset:
    """Both networks with every norm and seed on one mini-batch: how far a step of the gradient and of Adam's first
    update can go before the loss passes 10³ times its start, 2/λ₁, and the gradient at the outputs. The ViT sees the
    setting's images, the GPT the text of `paper.transformers`."""
    small = at_reduced_size(setting)
    dims = {"network": NETWORKS, "norm": NORMS}
    side = small.data.train_images.shape[-1]
    return over_networks(
        setting, "apart_transformers", partial(measure_one, small), dims, examples=EXAMPLES, image_size=side
    )


def build(setting: Setting, network: str, norm: str, seed: int) -> nn.Module:
    """A fresh network, whose weights the seed fixes whatever its norm."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if network == "char-GPT":
            return CharGPT(norm, num_characters=characters()[1]).to(setting.device)
        channels, side = setting.data.train_images.shape[1:3]
        net = ViT(norm, channels=channels, side=side, num_classes=setting.data.num_classes)
        return net.to(setting.device)


def measure_one(setting: Setting, network: str, norm: str, seed: int) -> xr.Dataset:
    """One network on one mini-batch."""
    net = build(setting, network, norm, seed)
    walk = setting.batches(seed, EXAMPLES)
    inputs, labels = next(walk) if network == "ViT" else text_batch(EXAMPLES, seed)
    batch = inputs.to(setting.device), labels.to(setting.device)
    see(net, batch)
    far = []
    for optimizer in ("sgd", "adam"):
        with step_line(net, batch, direction=update_of(optimizer, net)) as line:
            loss, gradient_norm = float(line.loss), float(line.gradient_norm)
            far.append(divergence_step_size(loss, gradient_norm, line.loss_at, end=END))
    sharp = sharpness(net, tuple(one[:FEW] for one in batch), tolerance=0.05, max_products=MOST_PRODUCTS)
    outputs = output_gradients(net, batch)
    rms = gradient_norms(net, batch)["activation_gradient_rms"]
    blocks = rms.isel(layer=[str(name).endswith(".down") for name in rms["layer"].values])
    edge = float(sharp["edge_lr"]) if bool(sharp["converged"][0]) else float("nan")
    return labelled(
        {
            "divergence_step_size": ("optimizer", np.array(far), "step size where the loss passes 10³ its start", "1"),
            "edge_lr": ((), edge, "learning rate at the edge of stability, 2/λ₁", "1"),
            "common_part": ((), float(outputs["common_part"]), "part of the gradient that all examples share", "1"),
            "loss": ((), loss, "loss", "nat"),
            "gradient_norm": ((), gradient_norm, "norm of the gradient", "1"),
            "block_gradient_rms": ("block", blocks.values, "rms of the gradient at a block's output", "1"),
        },
        {
            "optimizer": (["sgd", "adam"], "optimizer whose first step is walked along", "1"),
            "block": (np.arange(1, blocks.sizes["layer"] + 1), "block", "1"),
        },
    )


def share(dataset: xr.Dataset, network: str, effect: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """A norm's part of an effect and layer norm's whole, both against no norm: (seed,) each."""
    return share_of_effect(EFFECTS[effect].value(dataset.sel(network=network)), norm, whole="layer")


CLAIMS = [
    Claim(
        statement=f"{network}, pre-norm: {RUNGS[norm]} ({norm}) buys {'more' if buys else 'less'} than half of layer "
        f"norm's effect on {EFFECTS[effect].words}",
        kind=CONTROL,
        of="share",
        value=partial(share, network=network, effect=effect, norm=norm),
        above=HALF if buys else None,
        below=None if buys else HALF,
        note=f"predicted on {PREDICTED}, paired by seed",
    )
    for network in NETWORKS
    for effect, predicted in PREDICTIONS.items()
    for norm, buys in predicted.items()
]


def draw(dataset: xr.Dataset) -> Figure:
    """One map a network: shares of layer norm's effects."""
    figure, axes = figure_of(1, len(NETWORKS), panel=(5.6, 5.2))
    norms = dataset["norm"].values.tolist()
    heads = {"sgd": "gradient\nstep", "adam": "Adam's\nfirst step", "edge": "2/λ₁", "common": "gradients\ndiffer"}
    for ax, network in zip(axes.flat, NETWORKS, strict=True):
        cells = {(norm, effect): share(dataset, network, effect, norm) for norm in norms for effect in EFFECTS}
        draw_cells(ax, cells, norms, heads, PREDICTIONS, reference=("none", "layer"))
        ax.set_title(f"{network}: share of layer norm's effect", fontsize="small", pad=34)
        if ax is not axes.flat[0]:
            ax.tick_params(labelleft=False)
    return figure


EXHIBIT = Exhibit(
    name="apart_transformers",
    title="The norms of the ladder in two small transformers",
    where="not in the paper",
    place=8.2,
    paper_saw=(
        "The paper has convolutional networks. Here the norms stand before the branches of a small ViT and of a "
        "character GPT at the start, and what they do is told as a share of what layer norm does there."
    ),
    measure=measure,
    draw=draw,
    claims=CLAIMS,
    of_any_network=True,
    by_name=True,
)

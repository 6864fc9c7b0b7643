"""Batch norm taken apart, at the start: which part of it buys which of its effects?

Every rung of `paper.ladder` from the same Xavier weights and on the same mini-batches, CIFAR-10 averaged to 16 × 16.
"""

import numpy as np
import torch
import xarray as xr
from torch import nn

from normscope.descent.loop import descend
from normscope.descent.step_line import step_line
from normscope.descent.update import update_of
from normscope.paper.exhibit import Exhibit, Setting, joined, over_networks
from normscope.paper.exhibits.figure5 import curves
from normscope.paper.exhibits.figure6 import largest_column
from normscope.paper.exhibits.initialization import divergence_step_size
from normscope.paper.ladder import AT_THE_START, claims
from normscope.paper.ladder_map import draw_map, in_words
from normscope.paper.rungs import AT_START, IMAGE_SIZE, at_reduced_size, build, rungs_to_measure, small_lr
from normscope.probes.channel_moments import channel_moments
from normscope.probes.gradient_cancellation import gradient_cancellation
from normscope.probes.gradient_norms import gradient_norms
from normscope.probes.output_gradients import output_gradients
from normscope.results import labelled

UPDATES = (0, 1, 10)

END = 1e8
"""Steps are followed up to here."""


def measure(setting: Setting) -> xr.Dataset:
    """Figures 5 and 6, table 1 and the gradients' growth on the first mini-batch, before any step; and before updates
    0, 1 and 10 of SGD with momentum 0.9 and weight decay 5e-4, at the one rate at which the network without norm trains
    too, how far the next step can go. Steps are followed up to 1e8. A setting that trains nothing gets the rungs of
    which every seed is measured already."""
    small = at_reduced_size(setting)

    def measure_one(rung: str, seed: int) -> xr.Dataset:
        net = build(small, rung, seed)
        start = _at_the_start(net, small.first_batch(seed))
        return start.merge(steps(net, small, seed), combine_attrs="override")

    dims = {"norm": rungs_to_measure(setting, "apart", AT_START)}
    return over_networks(small, "apart", measure_one, dims, learning_rate=small_lr(small), image_size=IMAGE_SIZE)


def _at_the_start(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> xr.Dataset:
    """What figures 5 and 6 and table 1 show of a network on a mini-batch, over `depth` on the main path."""
    log_std = curves(channel_moments(net, batch))["log_std"].isel(depth=slice(0, -1))
    cancellation = _on_main_path(gradient_cancellation(net, batch)["normalized_ratio"])
    gradients = _on_main_path(gradient_norms(net, batch)["activation_gradient_rms"])
    outputs = output_gradients(net, batch)
    slope = 100 * float(log_std.polyfit("depth", 1)["polyfit_coefficients"].sel(degree=1))
    return labelled(
        {
            "log_std": ("depth", log_std.values, "log channel std", "nat"),
            "std_slope": ((), slope, "rise of log channel std per 100 layers", "nat"),
            "normalized_ratio": ("depth", cancellation.values, "cancellation (a/b)/√n", "1"),
            "activation_gradient_rms": ("depth", gradients.values, "rms of the output's gradient", "1"),
            "common_part": ((), float(outputs["common_part"]), "part of the gradient that all images share", "1"),
            "commonest_share": ((), float(outputs["commonest_share"]), "share of the commonest prediction", "1"),
            "confidence": ((), float(largest_column(outputs)), "median gradient of the largest column, in 1/|B|", "1"),
            "loss": ((), float(outputs["loss"]), "loss", "nat"),
        },
        {"depth": (log_std["depth"].values, "layer on the main path", "1")},
    )


def _on_main_path(of_layers: xr.DataArray) -> xr.DataArray:
    """By `depth`, without the last layer, which is no convolution."""
    of = of_layers.isel(layer=np.isfinite(of_layers["depth"].values)).swap_dims(layer="depth")
    return of.isel(depth=slice(0, -1))


def steps(net: nn.Module, setting: Setting, seed: int) -> xr.Dataset:
    """How far the next update could go before updates 0, 1 and 10, over `update`; NaN behind a loss that is not
    finite."""
    sgd = torch.optim.SGD(net.parameters(), lr=small_lr(setting), momentum=0.9, weight_decay=5e-4)
    found = []
    for step in descend(net, sgd, setting.batches(seed), steps=UPDATES[-1] + 1):
        if not np.isfinite(float(step.loss)):
            break
        if step.index in UPDATES:
            with step_line(net, step.batch, direction=update_of(sgd, net)) as line:
                loss, gradient_norm = float(line.loss), float(line.gradient_norm)
                far = divergence_step_size(loss, gradient_norm, line.loss_at, end=END)
            found.append(
                labelled(
                    {
                        "divergence_step_size": ((), far, "step size where the loss passes 10³ times its start", "1"),
                        "loss_before": ((), loss, "loss before the step", "nat"),
                        "gradient_norm": ((), gradient_norm, "norm of the gradient", "1"),
                    },
                    {},
                )
            )
    taken = joined(found, "update", UPDATES[: len(found)], long_name="updates taken")
    return taken.reindex(update=list(UPDATES))


EXHIBIT = Exhibit(
    name="apart",
    title="Which part of batch norm does what, at the start?",
    where="not in the paper",
    place=8,
    paper_saw=(
        "The paper shows what batch norm does as a whole. Here it is taken apart: centring alone, scaling alone, "
        "statistics that are constants backwards or for ever, and what is used in its place, from the same weights and "
        "on the same mini-batches. Each rung's effect is told as a share of batch norm's own."
    ),
    measure=measure,
    draw=lambda dataset: draw_map(dataset, AT_THE_START),
    claims=claims(AT_THE_START),
    we_saw=lambda dataset: in_words(dataset, AT_THE_START),
    complete=lambda dataset: set(AT_START) <= set(dataset["norm"].values.tolist()),
    by_name=True,
)

"""What can be drawn of a model: how its loss, its activations and its output's gradients are along one step."""

import numpy as np
import xarray as xr
from torch import nn

from normscope.descent.first_update import first_update_line
from normscope.descent.outcome import DIVERGENCE_FACTOR
from normscope.descent.recipe import Recipe
from normscope.descent.step_line import StepLine, crossing, lowest_step_size
from normscope.errors import NormscopeError
from normscope.model.batch import Batch
from normscope.model.layers import LayerCall, depths, record_calls
from normscope.model.vector_norm import norm
from normscope.probes.output_gradients import output_gradients
from normscope.results import labelled, provenance

CURVE_LRS = np.geomspace(1e-8, 1e3, 34)
"""Rates of the one step that is walked along: three a decade; where the loss passes a level is refined."""

STEEP_FROM, STEEP_TO = 10.0, 1e6
"""How steeply the loss rises is read between these two relative losses, or up to that of divergence where it does not
get further."""

FRACTIONS = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Of the step that diverges, where sizes are taken."""


def profile(model: nn.Module, batch: Batch, *, recipe: Recipe, seed: int = 0) -> xr.DataTree:
    """What can be drawn of a model from one mini-batch, in training mode; the model comes back untouched.

    Returns:
        A tree of two: `evidence`, a Dataset over `lr` (one step of the optimizer), `layer` (the watched calls) and
        `fraction` (of the step that diverges), and `output_gradients`, as the probe of that name.

    Raises:
        InvalidModel, InvalidBatch, InvalidConfig, DeviceError: see `first_update.first_update_line`.
    """
    with first_update_line(model, batch, recipe, seed=seed) as (line, growth):
        curve = line.relative_loss(CURVE_LRS.tolist())
        diverging = rate_of(line, curve, DIVERGENCE_FACTOR)
        power = steepness(line, curve)
        overflows = bool(np.isfinite(diverging) and not np.isfinite(line.relative_loss([diverging])[0]))
        walked = diverging if np.isfinite(diverging) else float(CURVE_LRS[-1])
        sizes = [sizes_at(line, model, walked * fraction) for fraction in FRACTIONS]
    names = list(sizes[0])
    parameter = next(p for p in model.parameters() if p.requires_grad)
    dataset = labelled(
        {
            "relative_loss": ("lr", curve, "relative loss after one step", "1"),
            "size_along_step": (
                ("fraction", "layer"),
                [[at.get(name, np.nan) for name in names] for at in sizes],
                "root mean square of the output",
                "1",
            ),
            "start_loss": ((), float(line.loss), "loss before any step", "nat"),
            "lowest_lr": ((), lowest_step_size(CURVE_LRS, curve), "rate of the lowest loss after one step", "1"),
            "diverging_lr": ((), diverging, "rate at which one step passes 10³", "1"),
            "steepness": (
                (),
                power,
                "power of the rate by which the loss rises",
                "1",
            ),
            "overflows": ((), overflows, "the step that diverges overflows", "1"),
            "walked_lr": ((), walked, "rate of the step along which sizes are taken", "1"),
            "amplification": ((), growth.amplification, "settled update over the first", "1"),
        },
        {
            "layer": (names, "layer", "1"),
            "lr": (CURVE_LRS, "learning rate of one step", "1"),
            "fraction": (list(FRACTIONS), "fraction of the step", "1"),
        },
        seed=seed,
        **provenance(device=parameter.device, dtype=parameter.dtype),
    )
    try:
        gradients = output_gradients(model, batch, loss_fn=recipe.loss_fn)
    except NormscopeError:  # a loss that never calls the model itself, a model that gives losses: no output to see
        gradients = no_output()
    return xr.DataTree.from_dict({"evidence": with_depth(dataset), "output_gradients": gradients})


def no_output() -> xr.Dataset:
    """What stands in the place of the gradient at an output that cannot be seen: NaN for one example and one label."""
    names = {
        "commonest_share": "share of the commonest prediction",
        "mean_cosine": "mean cosine of two gradients",
        "common_part": "common part",
    }
    return labelled(
        {
            "gradient": (("example", "label"), [[np.nan]], "gradient at the output", "1"),
            **{name: ((), np.nan, title, "1") for name, title in names.items()},
        },
        {"example": ([0], "example", "1"), "label": ([0], "label", "1")},
    )


def with_depth(dataset: xr.Dataset) -> xr.Dataset:
    """The Dataset with the coordinate `depth(layer)`, each call's place on the main path; NaN on a shortcut."""
    depth = depths([str(name) for name in dataset["layer"].values])
    return dataset.assign_coords(depth=("layer", depth, {"long_name": "layer on the main path", "units": "1"}))


def rate_of(line: StepLine, curve: np.ndarray, level: float) -> float:
    """The rate at which the relative loss first passes `level`, to about 1 %; inf where it does not."""
    return crossing(CURVE_LRS, curve, level, measure=lambda lr: float(line.relative_loss([lr])[0]))


def steepness(line: StepLine, curve: np.ndarray) -> float:
    """d log(loss) / d log(lr) where the loss explodes: about the number of layers whose changes multiply. 0 where it
    does not diverge, or overflows at once."""
    start = rate_of(line, curve, STEEP_FROM)
    for level in (STEEP_TO, DIVERGENCE_FACTOR):
        end = rate_of(line, curve, level)
        if np.isfinite(end) and np.isfinite(line.relative_loss([end])[0]):
            return float(np.log(level / STEEP_FROM) / max(np.log(end / start), 1e-2))
    return 0.0


def sizes_at(line: StepLine, model: nn.Module, lr: float) -> dict[str, float]:
    """The root mean square of every watched call's output at θ + lr · u."""
    sizes: dict[str, float] = {}

    def on_call(call: LayerCall) -> None:
        sizes[call.name] = float(norm(call.output)) / max(call.output.numel(), 1) ** 0.5

    with record_calls(model, on_call):
        line.loss_at(lr)
    return sizes


def diverging_lr(line: StepLine) -> float:
    """The rate at which one step passes 10³; the end of the curve's range where none does."""
    curve = line.relative_loss(CURVE_LRS.tolist())
    return min(rate_of(line, curve, DIVERGENCE_FACTOR), float(CURVE_LRS[-1]))

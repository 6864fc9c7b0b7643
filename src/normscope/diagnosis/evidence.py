"""What is measured of a model before anything is said about it: `measure_evidence`. What it means is for `findings`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from torch import nn

from normscope.descent.loop import descend
from normscope.descent.optimizers import make_optimizer
from normscope.descent.recipe import Recipe
from normscope.diagnosis.batch_tests import coupling, extensivity, feature_imbalance, input_scale, standardized
from normscope.diagnosis.counterfactuals import (
    OUT_OF_SCALE,
    diverging_with_scaled_inputs,
    diverging_without_outsized_layer,
)
from normscope.diagnosis.learnability import NOT_TRIED, Learnability, learnability
from normscope.diagnosis.number_range import range_evidence
from normscope.diagnosis.profile import CURVE_LRS, profile, with_depth
from normscope.diagnosis.signal import Signal, repeated_calls, signal
from normscope.errors import NormscopeError
from normscope.model.batch import Batch
from normscope.model.loss import constant_loss, output_spread, readable_errors
from normscope.model.state import seeded, untouched
from normscope.probes.sharpness import sharpness
from normscope.results.schema import arranged, coord, variable

SIGNAL_BATCHES, COUPLING_BATCHES, UNSEEN_BATCHES = 4, 8, 4
"""Mini-batches that gradients are looked at on, that are joined, and that are kept for judging the short descents."""

LATER_STEPS = 5
"""Units that are silent at the start are looked at again after so many steps."""

SHARPNESS_TOLERANCE, SHARPNESS_PRODUCTS = 0.1, 12
"""The largest eigenvalue to a tenth, which a few products give."""

LARGE_MODEL, FEW_PRODUCTS = 10_000_000, 4
"""Every product keeps a vector as long as the parameters: of models this large they are fewer."""

NO_PRODUCTS = 50_000_000
"""Of models from this size on the eigenvalue is left out: its vectors take more memory than the training itself."""

SHARES_OF_BEST = (1.0, 0.3, 0.1, 0.03)
"""The same where the best rate of short descents is known: it may be the largest that learns, with no room to spare."""

TRIAL_SHARES = (0.3, 0.1, 1.0, 0.03, 3.0)
"""Rates of the short descents, as shares of the step that lowers the loss most, in the order of trying."""


VARIABLES = (
    coord("layer", "layer"),
    variable("size", "layer", "root mean square of the output"),
    variable("gain", "layer", "size of the output over that of the input"),
    variable("gradient_size", "layer", "root mean square of the gradient"),
    variable("silent_share", "layer", "units without a gradient"),
    variable("units", "layer", "units of the layer"),
    variable("silent_share_later", "layer", "units without a gradient after some steps"),
    variable("gradient_size_later", "layer", "root mean square of the gradient after some steps"),
    variable("constant_loss", "", "loss of the best constant", units="nat"),
    variable("trainable_share", "", "trainable share of the parameters"),
    variable("reached_share", "", "share of those that the loss depends on"),
    variable("extensivity", "", "loss of a batch taken twice"),
    variable("coupling", "", "change of an example's output with its batch"),
    variable("input_scale", "", "largest root mean square of an input feature"),
    variable("feature_imbalance", "", "largest over median size of the input features"),
    variable("scaling_gain", "", "diverging rate with scaled inputs over that without"),
    variable("scaled_spread", "", "spread of the outputs with scaled inputs"),
    variable("resized_layer", "", "layer of the outsized gain"),
    variable("resizing_gain", "", "diverging rate with that layer at the median gain over that without"),
    variable("range_layer", "", "layer of the largest number in half precision"),
    variable("range_format", "", "its format"),
    variable("range_share", "", "that number over the format's largest"),
    variable("overflow_layer", "", "layer that leaves the format at the diverging rate"),
    variable("wider_lr", "", "diverging rate in bfloat16"),
    variable("lost_layer", "", "parameter whose gradient float16 loses most of"),
    variable("lost_share", "", "share of it that is lost"),
    variable("sequence_layer", "", "layer along whose sequence sizes grow"),
    variable("forward_growth", "", "growth of outputs along the sequence", units="nat"),
    variable("backward_growth", "", "growth of gradients back along the sequence", units="nat"),
    variable("output_spread", "", "spread of the outputs over examples"),
    variable("output_spread_later", "", "spread of the outputs after some steps"),
    variable("softmax", "", "rows of the output's gradient sum to zero"),
    variable("confidence", "", "largest entry of an example's output gradient"),
    variable("num_outputs", "", "number of outputs"),
    variable("commonest_share", "", "share of the commonest prediction"),
    variable("mean_cosine", "", "mean cosine of two examples' gradients"),
    variable("sharpness", "", "largest eigenvalue of the Hessian"),
)
"""Beside what `profile` draws."""

TRIAL_VARIABLES = (
    variable("one_batch", "", "relative loss after steps on one batch"),
    variable("contrast", "", "what the right targets save on unseen batches"),
    variable("contrast_p", "", "share of the permuted targets that save as much"),
    variable("contrast_detectable", "", "what they would have to save to be found"),
    variable("control", "", "the same of targets that follow the inputs"),
    variable("trial_lr", "", "rate of the short descents"),
    variable("trial_steps", "", "steps on one batch"),
)
"""Of the second stage; NaN and 0 steps where there was none."""


def measure_evidence(
    model: nn.Module, batches: Sequence[Batch], *, recipe: Recipe, seed: int = 0, lr: float | None = None
) -> xr.DataTree:
    """Everything that `findings` reads, in training mode; the model comes back untouched.

    Args:
        batches: different mini-batches, best ten or more, on the model's device.
        recipe: optimizer, loss, and how many steps the short descents take.
        lr: a rate known to be good, for the short descents; None to try some.

    Returns:
        What `profile` gives, with all that the rules ask for in `evidence`. Watched calls that contain others are left
        out there.

    Raises:
        InvalidModel, InvalidBatch, InvalidConfig, DeviceError: see `first_update.first_update_line`.
    """
    loss_fn, first = recipe.loss_fn, batches[0]
    drawn = profile(model, first, recipe=recipe, seed=seed)
    shown, gradients = drawn["evidence"].to_dataset(), drawn["output_gradients"].to_dataset()
    lowest, diverging = float(shown["lowest_lr"]), float(shown["diverging_lr"])
    seen = signal(model, batches[:SIGNAL_BATCHES], loss_fn=loss_fn, seed=seed)
    names = list(seen.calls)
    settled = lowest / float(shown["amplification"]) if np.isfinite(lowest) else float(CURVE_LRS[0])
    later, spread_later = some_steps_later(
        model, batches, settled * min(TRIAL_SHARES) if lr is None else lr, recipe, seed
    )
    scale, imbalance = input_scale(first), feature_imbalance(first)
    suspected = max(scale, 1 / max(scale, 1e-30), imbalance) > OUT_OF_SCALE
    resized, resized_gain = diverging_without_outsized_layer(model, first, seen, recipe, diverging, seed)
    sequence, forward, backward = longest_growth(seen)
    numbers = range_evidence(model, first, recipe, diverging=diverging, overflows=bool(shown["overflows"]), seed=seed)
    rows = gradients["gradient"].values
    values = {
        "layer": names,
        "size": seen.values("size"),
        "gain": seen.values("gain"),
        "gradient_size": seen.values("gradient_size"),
        "silent_share": seen.values("silent_share"),
        "units": seen.values("units"),
        "silent_share_later": _values(later, "silent_share", names),
        "gradient_size_later": _values(later, "gradient_size", names),
        "constant_loss": _constant_loss(model, batches, recipe, seed),
        "trainable_share": seen.trainable_share,
        "reached_share": seen.reached_share,
        "extensivity": or_nan(extensivity, model, first, loss_fn, seed=seed),
        "coupling": or_nan(coupling, model, batches[:COUPLING_BATCHES], loss_fn, seed=seed),
        "input_scale": scale,
        "feature_imbalance": imbalance,
        "scaling_gain": diverging_with_scaled_inputs(model, first, recipe, diverging, seed) if suspected else np.nan,
        "scaled_spread": _spread(model, standardized(first)) if suspected else np.nan,
        "resized_layer": resized,
        "resizing_gain": resized_gain,
        "range_layer": numbers.start.layer,
        "range_format": numbers.start.format,
        "range_share": numbers.start.share,
        "overflow_layer": numbers.overflow.layer,
        "wider_lr": numbers.wider_lr,
        "lost_layer": numbers.lost_layer,
        "lost_share": numbers.lost_share,
        "sequence_layer": sequence,
        "forward_growth": forward,
        "backward_growth": backward,
        "output_spread": _spread(model, first),
        "output_spread_later": spread_later,
        "softmax": is_softmax(rows),
        "confidence": float(np.median(np.abs(rows).max(1))) * len(rows),
        "num_outputs": rows.shape[1],
        "commonest_share": float(gradients["commonest_share"]),
        "mean_cosine": float(gradients["mean_cosine"]),
        "sharpness": _sharpness(model, first, recipe),
    }
    dataset = arranged(VARIABLES, values)
    measured = with_depth(xr.merge([shown.drop_vars("depth").reindex(layer=names), dataset], compat="equals"))
    merged = xr.merge([measured, _of_trial(NOT_TRIED)], compat="equals")
    merged.attrs = shown.attrs
    return xr.DataTree.from_dict({"evidence": merged, "output_gradients": gradients})


def or_nan(measure: Callable[..., float], *given: Any, **options: Any) -> float:
    """What is measured; NaN where the model or its loss does not take what was made of the batches."""
    try:
        return measure(*given, **options)
    except NormscopeError:
        return float("nan")


def trial_rates(evidence: xr.Dataset, lr: float | None) -> list[float]:
    """The rates of short descents, in the order of trying."""
    if lr is not None:
        return [lr * share for share in SHARES_OF_BEST]
    lowest = float(evidence["lowest_lr"])
    settled = lowest / float(evidence["amplification"]) if np.isfinite(lowest) else float(CURVE_LRS[0])
    return [settled * share for share in TRIAL_SHARES]


def with_descents(
    evidence: xr.Dataset,
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    recipe: Recipe,
    seed: int,
    lr: float | None,
    until: float | None = None,
) -> xr.Dataset:
    """The second stage: the evidence with what short descents on one batch and on many came to. It costs most of the
    time, and is asked only of a model in which nothing else is found."""
    tried = short_descents(model, batches, trial_rates(evidence, lr), recipe, seed, until)
    rest = evidence.drop_vars([one.name for one in TRIAL_VARIABLES])
    merged = xr.merge([rest, _of_trial(tried)], compat="equals")
    merged.attrs = evidence.attrs
    return merged


def _of_trial(tried: Learnability) -> xr.Dataset:
    values = {
        "one_batch": tried.one_batch,
        "contrast": tried.contrast.saved,
        "contrast_p": tried.contrast.p,
        "contrast_detectable": tried.contrast.detectable,
        "control": tried.control,
        "trial_lr": tried.lr,
        "trial_steps": tried.steps,
    }
    return arranged(TRIAL_VARIABLES, values)


def longest_growth(seen: Signal) -> tuple[str, float, float]:
    """The layer along whose sequence sizes grow most, by repeated calls or inside one call, and by how many nats
    forwards and backwards."""
    chain = repeated_calls(seen)
    inside = max(
        ((name, call.forward_growth, call.backward_growth) for name, call in seen.calls.items()),
        key=lambda growth: max(growth[1:]),
        default=chain,
    )
    return inside if max(inside[1:]) > max(chain[1:]) else chain


def some_steps_later(
    model: nn.Module, batches: Sequence[Batch], lr: float, recipe: Recipe, seed: int
) -> tuple[Signal, float]:
    """What all calls show after a few steps, when a branch or a last layer that starts at zero has woken up, and the
    spread of the outputs then; an empty signal and NaN where these steps end in no finite loss."""
    with seeded(model, seed), readable_errors():
        optimizer = make_optimizer(recipe.optimizer, model, lr)
        for _ in descend(model, optimizer, batches[:LATER_STEPS], loss_fn=recipe.loss_fn):
            pass
        try:
            seen = signal(model, batches[:SIGNAL_BATCHES], loss_fn=recipe.loss_fn, seed=seed)
        except NormscopeError:
            return Signal(), float("nan")
        return seen, _spread(model, batches[0])


def _values(seen: Signal, name: str, calls: Sequence[str]) -> list[float]:
    """A property of these calls; NaN for those that are not there."""
    return [getattr(seen.calls[call], name) if call in seen.calls else float("nan") for call in calls]


def short_descents(
    model: nn.Module,
    batches: Sequence[Batch],
    lrs: Sequence[float],
    recipe: Recipe,
    seed: int,
    until: float | None = None,
) -> Learnability:
    """The trial on all but a few of the batches, which stay unseen; none do where there are fewer than two."""
    aside = min(UNSEEN_BATCHES, len(batches) // 2)
    return learnability(model, batches[aside:], batches[:aside], lrs, recipe=recipe, seed=seed, until=until)


def is_softmax(rows: np.ndarray) -> bool:
    """Whether an output's gradient is that of a softmax: the entries of each example, of which there are several, sum
    to zero."""
    largest = np.abs(rows).sum(1).max(initial=0)
    return rows.shape[1] > 1 and bool(largest > 0 and (np.abs(rows.sum(1)) <= 1e-3 * largest).all())


def _constant_loss(model: nn.Module, batches: Sequence[Batch], recipe: Recipe, seed: int) -> float:
    with seeded(model, seed):
        return constant_loss(model, batches, recipe.loss_fn)


def _sharpness(model: nn.Module, batch: Batch, recipe: Recipe) -> float:
    """The Hessian's largest eigenvalue, roughly; NaN of a very large model or without a second derivative."""
    if is_very_large(model):
        return float("nan")
    size = sum(p.numel() for p in model.parameters())
    products = FEW_PRODUCTS if size >= LARGE_MODEL else SHARPNESS_PRODUCTS
    try:
        found = sharpness(model, batch, loss_fn=recipe.loss_fn, tolerance=SHARPNESS_TOLERANCE, max_products=products)
    except NormscopeError:
        return float("nan")
    return float(found["eigenvalue"][0])


def is_very_large(model: nn.Module) -> bool:
    """Whether vectors as long as its parameters are too many to keep several."""
    return sum(p.numel() for p in model.parameters()) >= NO_PRODUCTS


def _spread(model: nn.Module, batch: Batch) -> float:
    with untouched(model):
        model.train()
        try:
            return output_spread(model, batch)
        except Exception:  # a model whose call only the caller's loss_fn knows
            return float("nan")

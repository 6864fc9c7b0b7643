"""What is measured of a model before anything is said about it: `measure_evidence`. What it means is for `findings`."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
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
from normscope.model.state import untouched
from normscope.probes.sharpness import sharpness
from normscope.results import labelled

SIGNAL_BATCHES, COUPLING_BATCHES, UNSEEN_BATCHES = 4, 8, 4
"""Mini-batches that gradients are looked at on, that are joined, and that are kept for judging the short descents."""

LATER_STEPS = 5
"""Units that are silent at the start are looked at again after so many steps."""

SHARPNESS_TOLERANCE, SHARPNESS_PRODUCTS = 0.1, 12
"""The largest eigenvalue to a tenth, which a few products give."""

SHARES_OF_BEST = (1.0, 0.3, 0.1, 0.03)
"""The same where the best rate of short descents is known: it may be the largest that learns, with no room to spare."""

TRIAL_SHARES = (0.3, 0.1, 1.0, 0.03, 3.0)
"""Rates of the short descents, as shares of the step that lowers the loss most, in the order of trying."""


def measure_evidence(
    model: nn.Module, batches: Sequence[Any], *, recipe: Recipe, seed: int = 0, lr: float | None = None
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
    dataset = labelled(
        {
            "size": ("layer", seen.values("size"), "root mean square of the output", "1"),
            "gain": ("layer", seen.values("gain"), "size of the output over that of the input", "1"),
            "gradient_size": ("layer", seen.values("gradient_size"), "root mean square of the gradient", "1"),
            "silent_share": ("layer", seen.values("silent_share"), "units without a gradient", "1"),
            "units": ("layer", seen.values("units"), "units of the layer", "1"),
            "silent_share_later": (
                "layer",
                _values(later, "silent_share", names),
                "units without a gradient after some steps",
                "1",
            ),
            "gradient_size_later": (
                "layer",
                _values(later, "gradient_size", names),
                "root mean square of the gradient after some steps",
                "1",
            ),
            "constant_loss": ((), _constant_loss(model, batches, recipe, seed), "loss of the best constant", "nat"),
            "trainable_share": ((), seen.trainable_share, "trainable share of the parameters", "1"),
            "reached_share": ((), seen.reached_share, "share of those that the loss depends on", "1"),
            "extensivity": (
                (),
                or_nan(extensivity, model, first, loss_fn, seed=seed),
                "loss of a batch taken twice",
                "1",
            ),
            "coupling": (
                (),
                or_nan(coupling, model, batches[:COUPLING_BATCHES], loss_fn, seed=seed),
                "change of an example's output with its batch",
                "1",
            ),
            "input_scale": ((), scale, "largest root mean square of an input feature", "1"),
            "feature_imbalance": ((), imbalance, "largest over median size of the input features", "1"),
            "scaling_gain": (
                (),
                diverging_with_scaled_inputs(model, first, recipe, diverging, seed) if suspected else np.nan,
                "diverging rate with scaled inputs over that without",
                "1",
            ),
            "scaled_spread": (
                (),
                _spread(model, standardized(first)) if suspected else np.nan,
                "spread of the outputs with scaled inputs",
                "1",
            ),
            "resized_layer": ((), resized, "layer of the outsized gain", "1"),
            "resizing_gain": (
                (),
                resized_gain,
                "diverging rate with that layer at the median gain over that without",
                "1",
            ),
            "range_layer": ((), numbers.start.layer, "layer of the largest number in half precision", "1"),
            "range_format": ((), numbers.start.format, "its format", "1"),
            "range_share": ((), numbers.start.share, "that number over the format's largest", "1"),
            "overflow_layer": ((), numbers.overflow.layer, "layer that leaves the format at the diverging rate", "1"),
            "wider_lr": ((), numbers.wider_lr, "diverging rate in bfloat16", "1"),
            "lost_layer": ((), numbers.lost_layer, "parameter whose gradient float16 loses most of", "1"),
            "lost_share": ((), numbers.lost_share, "share of it that is lost", "1"),
            "sequence_layer": ((), sequence, "layer along whose sequence sizes grow", "1"),
            "forward_growth": ((), forward, "growth of outputs along the sequence", "nat"),
            "backward_growth": ((), backward, "growth of gradients back along the sequence", "nat"),
            "output_spread": ((), _spread(model, first), "spread of the outputs over examples", "1"),
            "output_spread_later": ((), spread_later, "spread of the outputs after some steps", "1"),
            "softmax": ((), is_softmax(rows), "rows of the output's gradient sum to zero", "1"),
            "confidence": (
                (),
                float(np.median(np.abs(rows).max(1))) * len(rows),
                "largest entry of an example's output gradient",
                "1",
            ),
            "num_outputs": ((), rows.shape[1], "number of outputs", "1"),
            "commonest_share": ((), float(gradients["commonest_share"]), "share of the commonest prediction", "1"),
            "mean_cosine": ((), float(gradients["mean_cosine"]), "mean cosine of two examples' gradients", "1"),
            "sharpness": ((), _sharpness(model, first, recipe), "largest eigenvalue of the Hessian", "1"),
        },
        {"layer": (names, "layer", "1")},
    )
    measured = with_depth(xr.merge([shown.drop_vars("depth").reindex(layer=names), dataset], compat="equals"))
    merged = xr.merge([measured, trial_variables(NOT_TRIED)], compat="equals")
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
    batches: Sequence[Any],
    *,
    recipe: Recipe,
    seed: int,
    lr: float | None,
    until: float | None = None,
) -> xr.Dataset:
    """The second stage: the evidence with what short descents on one batch and on many came to. It costs most of the
    time, and is asked only of a model in which nothing else is found."""
    tried = short_descents(model, batches, trial_rates(evidence, lr), recipe, seed, until)
    rest = evidence.drop_vars([str(name) for name in trial_variables(NOT_TRIED).data_vars])
    merged = xr.merge([rest, trial_variables(tried)], compat="equals")
    merged.attrs = evidence.attrs
    return merged


def trial_variables(tried: Learnability) -> xr.Dataset:
    """What the short descents came to; NaN and 0 steps where there were none."""
    return labelled(
        {
            "one_batch": ((), tried.one_batch, "relative loss after steps on one batch", "1"),
            "contrast": ((), tried.contrast, "what the right targets save on unseen batches", "1"),
            "contrast_error": ((), tried.contrast_error, "standard error of that", "1"),
            "trial_lr": ((), tried.lr, "rate of the short descents", "1"),
            "trial_steps": ((), tried.steps, "steps on one batch", "1"),
        },
        {},
    )


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
    model: nn.Module, batches: Sequence[Any], lr: float, recipe: Recipe, seed: int
) -> tuple[Signal, float]:
    """What all calls show after a few steps, when a branch or a last layer that starts at zero has woken up, and the
    spread of the outputs then; an empty signal and NaN where these steps end in no finite loss."""
    with untouched(model), readable_errors():
        model.train()
        torch.manual_seed(seed)
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
    batches: Sequence[Any],
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


def _constant_loss(model: nn.Module, batches: Sequence[Any], recipe: Recipe, seed: int) -> float:
    with untouched(model):
        model.train()
        torch.manual_seed(seed)
        return constant_loss(model, batches, recipe.loss_fn)


def _sharpness(model: nn.Module, batch: Batch, recipe: Recipe) -> float:
    """The Hessian's largest eigenvalue, roughly; NaN where the loss cannot be differentiated twice."""
    try:
        found = sharpness(
            model, batch, loss_fn=recipe.loss_fn, tolerance=SHARPNESS_TOLERANCE, max_products=SHARPNESS_PRODUCTS
        )
    except NormscopeError:
        return float("nan")
    return float(found["eigenvalue"][0])


def _spread(model: nn.Module, batch: Batch) -> float:
    with untouched(model):
        model.train()
        try:
            return output_spread(model, batch)
        except Exception:  # a model whose call only the caller's loss_fn knows
            return float("nan")

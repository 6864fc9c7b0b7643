"""How wide is the distribution of a gradient's entries, and how heavy are its tails? (Figure 2)

For the entries g_j of a layer's gradient, j = 1 … N, beside their histogram

    kurtosis = E_j (g_j − ḡ)⁴ / (E_j (g_j − ḡ)²)²,    3 for a normal distribution, 6 for a Laplace one, N at most;
    tail index = 1 / mean_{j ≤ k} log(|g|_(j) / |g|_(k+1)),    Hill's estimate from the k largest magnitudes:

a tail that falls as |g|^(−α) has index α, so the heavier the tail the smaller the index.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.layers import LayerCall, depths, own_parameters, record_calls, watched_modules
from normscope.model.loss import LossFn, checked_loss, gradients_by
from normscope.model.state import untouched
from normscope.results.schema import DEPTH, LAYER, coord, measured, variable

TAIL_SHARE = 0.05
"""The tail index is estimated from this share of the entries that are not zero, the largest: for a normal distribution
it gives 6.0."""

NUMBERS = (
    variable("num_below", "layer", "entries below the range shown", "finite entries below `limits`"),
    variable("num_above", "layer", "entries above the range shown", "finite entries above `limits`"),
    variable("num_not_finite", "layer", "entries that are not finite", "NaN or infinite, in no bin"),
    variable("num_zero", "layer", "entries that are exactly zero"),
    variable("num_entries", "layer", "entries of the gradient", "N"),
    variable("minimum", "layer", "smallest entry"),
    variable("maximum", "layer", "largest entry"),
    variable("mean", "layer", "mean over entries"),
    variable("std", "layer", "standard deviation over entries", "biased: over N"),
    variable("kurtosis", "layer", "kurtosis", "fourth central moment over the squared variance: 3 for a normal one"),
    variable("tail_index", "layer", "tail index", "Hill's estimate: the heavier the tail, the smaller"),
)
"""What is said of every layer beside its histogram."""

VARIABLES = (
    LAYER,
    coord("bin", "bin", "its number, from the lowest"),
    coord("edge", "edge of a bin", "its number, one more than there are bins"),
    DEPTH,
    variable("count", "layer bin", "number of entries", "finite entries in the bin"),
    variable("bin_edge", "layer edge", "gradient entry", "where the bin begins; the last one's end is in it"),
    *NUMBERS,
)


def histogram(
    values: np.ndarray, num_bins: int, limits: tuple[float, float] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Counts, (num_bins,), and edges, (num_bins + 1,), of bins of equal width; what is not finite is in no bin.

    The bins reach from the smallest finite value to the largest, or over `limits`; each holds its left edge, the last
    one its right edge too. Where all values are the same, or too close for so many bins, the range is half their
    magnitude to either side (half a unit for zero); where none is finite the edges are NaN.
    """
    finite = values[np.isfinite(values)]
    if limits is None:
        if not len(finite):
            return np.zeros(num_bins, dtype=np.int64), np.full(num_bins + 1, np.nan)
        low, high = float(finite.min()), float(finite.max())
        largest = max(-low, high)
        if high - low <= num_bins * np.spacing(largest):
            low, high = low - (largest or 1) / 2, high + (largest or 1) / 2
        limits = low, high
    return np.histogram(finite, num_bins, limits)


def kurtosis(values: np.ndarray) -> float:
    """Fourth central moment over the squared variance, both over the number of values; NaN where all are the same or
    one is not finite."""
    square = (values - values.mean()) ** 2
    return float(((square / square.mean()) ** 2).mean())  # divided first: a fourth power alone may underflow


def tail_index(values: np.ndarray, share: float = TAIL_SHARE) -> float:
    """Hill's estimate from the largest `share` of the magnitudes that are not zero.

    NaN with fewer than two of those or where one is not finite; infinite where the k + 1 largest are equal.
    """
    magnitudes = np.abs(values[values != 0])
    if len(magnitudes) < 2 or not np.isfinite(magnitudes).all():
        return math.nan
    k = min(max(1, round(share * len(magnitudes))), len(magnitudes) - 1)
    largest = np.partition(magnitudes, len(magnitudes) - k - 1)[-k - 1 :]  # the smallest of them first
    return float(1 / np.log(largest[1:] / largest[0]).mean())


@instrument
def gradient_histogram(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFn | None = None,
    layers: str | Sequence[str] | None = None,
    num_bins: int = 101,
    limits: tuple[float, float] | None = None,
) -> xr.Dataset:
    """Histogram, spread and tail weight of the gradient of every layer's weights (figure 2).

    The gradient is that of the batch's loss in training mode, summed over all uses of the weights; of a layer's
    parameters those with two dimensions or more are taken, together. Nothing is clipped, and the model comes back
    untouched.

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes.
        layers: None for every layer that owns a weight; else shell patterns on module paths ("layer1.*.conv1").
        num_bins: bins of equal width between the smallest and the largest entry of each layer.
        limits: (lowest, highest) to show of all layers instead; what lies beyond is in `num_below` and `num_above`.

    Returns:
        Dataset over `layer`, those with a gradient in execution order: `count(layer, bin)`, `bin_edge(layer, edge)`;
        `num_below`, `num_above`, `num_not_finite`, `num_zero`, `num_entries`; `minimum`, `maximum`, `mean`, `std`
        (over N), `kurtosis` and `tail_index` (all in float64; NaN or infinite where the gradient is); and the
        coordinate `depth(layer)`, its place on the main path (NaN on a shortcut, and for weights that are used without
        a call of their module). The attribute `left_out` lists layers without a gradient: frozen or unused.

    Raises:
        InvalidConfig: fewer than one bin, or limits that are not finite and increasing.
        InvalidModel: where no layer matches or none has a gradient; and see `loss.checked_loss`.

    Example:
        >>> net = ns.build_net("mlp3", in_channels=1, image_size=8, seed=0)
        >>> batch = next(ns.batches(ns.load_data("digits"), 64, seed=0))
        >>> dataset = ns.gradient_histogram(net, batch, num_bins=11)
        >>> bool((dataset["count"].sum("bin") == dataset["num_entries"]).all())
        True
    """
    if num_bins < 1:
        raise InvalidConfig(f"num_bins={num_bins}: it must be at least 1")
    if limits is not None and not (np.isfinite(limits).all() and limits[0] < limits[1]):
        raise InvalidConfig(f"limits={limits}: they must be finite, the lower one first; None takes them from the data")
    gradients, left_out = _layer_gradients(model, batch, loss_fn, layers)
    names = list(gradients)
    counts = np.zeros((len(names), num_bins), dtype=np.int64)
    edges = np.zeros((len(names), num_bins + 1))
    numbers: dict[str, list[float]] = {one.name: [] for one in NUMBERS}
    with np.errstate(all="ignore"):  # NaN and infinity are results
        for i, (_, gradient) in enumerate(gradients.values()):
            entries = gradient.double().cpu().numpy()  # one layer at a time
            counts[i], edges[i] = histogram(entries, num_bins, limits)
            for name, number in _numbers(entries, limits).items():
                numbers[name].append(number)
    parameter = next(model.parameters())
    values = {
        **numbers,
        "count": counts,
        "bin_edge": edges,
        "layer": names,
        "bin": np.arange(num_bins),
        "edge": np.arange(num_bins + 1),
        "depth": [gradients[layer][0] for layer in names],
    }
    attrs = {"left_out": left_out, "tail_share": TAIL_SHARE}
    return measured(VARIABLES, values, device=parameter.device, dtype=parameter.dtype, attrs=attrs)


def _layer_gradients(
    model: nn.Module, batch: Batch, loss_fn: LossFn | None, layers: str | Sequence[str] | None
) -> tuple[dict[str, tuple[float, Tensor]], list[str]]:
    """Depth and flat gradient, (entries,), of every watched layer in execution order, and the layers without one."""
    watched = watched_modules(model, layers)
    called: dict[str, None] = {}

    def on_call(call: LayerCall) -> None:
        called.setdefault(call.name.split("#")[0])

    with untouched(model):
        model.train()
        owned = {
            path: [p for p in own_parameters(module) if p.ndim >= 2 and p.requires_grad]
            for path, module in watched.items()
        }
        wanted = list({p: None for parameters in owned.values() for p in parameters})
        with torch.enable_grad(), record_calls(model, on_call, layers):
            loss = checked_loss(model, batch, loss_fn)
        found = gradients_by(loss, wanted)
    gradient_of = {p: g for p, g in zip(wanted, found, strict=True) if g is not None}
    depth_of = dict(zip(called, depths(list(called)), strict=True))
    gradients: dict[str, tuple[float, Tensor]] = {}
    for path in dict.fromkeys([*called, *watched]):
        parts = [gradient_of[p].flatten() for p in owned[path] if p in gradient_of]
        if parts:
            gradients[path] = depth_of.get(path, math.nan), torch.cat(parts)
    if not gradients:
        some = ", ".join(list(watched)[:3])
        raise InvalidModel(
            f"none of {some} has a gradient: they are frozen, unused or without weights of two dimensions"
        )
    return gradients, [path for path in watched if path not in gradients]


def _numbers(values: np.ndarray, limits: tuple[float, float] | None) -> dict[str, float]:
    """Everything but the histogram."""
    finite = np.isfinite(values)
    low, high = limits or (-math.inf, math.inf)
    return {
        "num_below": int((finite & (values < low)).sum()),
        "num_above": int((finite & (values > high)).sum()),
        "num_not_finite": int((~finite).sum()),
        "num_zero": int((values == 0).sum()),
        "num_entries": len(values),
        "minimum": values.min(),
        "maximum": values.max(),
        "mean": values.mean(),
        "std": values.std(),
        "kurtosis": kurtosis(values),
        "tail_index": tail_index(values),
    }

"""How wide is the distribution of a gradient's entries, and how heavy are its tails? (Figure 2)

For the entries g_j of a layer's gradient, j = 1 … N, beside their histogram

    kurtosis = E_j (g_j − ḡ)⁴ / (E_j (g_j − ḡ)²)²,    3 for a normal distribution, 6 for a Laplace one, N at most;
    tail index = 1 / mean_{j ≤ k} log(|g|_(j) / |g|_(k+1)),    Hill's estimate from the k largest magnitudes:

a tail that falls as |g|^(−α) has index α, so the heavier the tail the smaller the index.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.errors import InvalidConfig, InvalidModel
from normscope.layers import depths, own_parameters, watch, watched_modules
from normscope.objective import LossFn, checked_loss, readable_errors
from normscope.results import labelled, provenance
from normscope.untouched import untouched

TAIL_SHARE = 0.05
"""The tail index is estimated from this share of the entries that are not zero, the largest: for a normal distribution
it gives 6.0."""

VARIABLES = {
    "num_below": ("entries below the range shown", "1"),
    "num_above": ("entries above the range shown", "1"),
    "num_not_finite": ("entries that are not finite", "1"),
    "num_zero": ("entries that are exactly zero", "1"),
    "num_entries": ("entries of the gradient", "1"),
    "minimum": ("smallest entry", "1"),
    "maximum": ("largest entry", "1"),
    "mean": ("mean over entries", "1"),
    "std": ("standard deviation over entries", "1"),
    "kurtosis": ("kurtosis", "1"),
    "tail_index": ("tail index", "1"),
}


def histogram(values: Tensor, num_bins: int, limits: tuple[float, float] | None = None) -> tuple[Tensor, Tensor]:
    """Counts, (num_bins,), and edges, (num_bins + 1,) float64, of bins of equal width; what is not finite is in no bin.

    The bins reach from the smallest finite value to the largest, or over `limits`; each holds its left edge, the last
    one its right edge too. Where all values are the same the range is half a unit to either side, as numpy's; where
    none is finite the edges are NaN.
    """
    finite = values[torch.isfinite(values)].double()
    if limits is None:
        if not len(finite):
            return values.new_zeros(num_bins, dtype=torch.int64), values.new_full(
                (num_bins + 1,), math.nan, dtype=torch.float64
            )
        limits = float(finite.min()), float(finite.max())
        if limits[0] == limits[1]:
            limits = limits[0] - 0.5, limits[1] + 0.5
    edges = torch.from_numpy(np.linspace(*limits, num_bins + 1)).to(values.device)
    inside = finite[(finite >= limits[0]) & (finite <= limits[1])]
    counts = torch.bincount(torch.bucketize(inside, edges[1:-1], right=True), minlength=num_bins)
    return counts, edges


def kurtosis(values: Tensor) -> Tensor:
    """Fourth central moment over the squared variance, both over the number of values; 0-d float64. NaN where all are
    the same or one is not finite."""
    deviations = values.double() - values.double().mean()
    square = deviations.square()
    scale = square.mean()  # divided out before it is squared again, so that tiny gradients do not underflow
    return (square / scale).square().mean()


def tail_index(values: Tensor, share: float = TAIL_SHARE) -> Tensor:
    """Hill's estimate from the largest `share` of the magnitudes that are not zero; 0-d float64.

    NaN with fewer than two of those or where one is not finite; infinite where the k + 1 largest are equal.
    """
    magnitudes = values.double().abs()
    magnitudes = magnitudes[magnitudes != 0]
    if len(magnitudes) < 2 or not bool(torch.isfinite(magnitudes).all()):
        return magnitudes.new_tensor(math.nan)
    k = min(max(1, round(share * len(magnitudes))), len(magnitudes) - 1)
    largest = torch.topk(magnitudes, k + 1).values.log()
    return 1 / (largest[:k] - largest[k]).mean()


def gradient_histogram(
    model: nn.Module,
    batch: Any,
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
        InvalidModel: where no layer matches or none has a gradient; and see `objective.checked_loss`.
    """
    if num_bins < 1:
        raise InvalidConfig(f"num_bins={num_bins}: it must be at least 1")
    if limits is not None and not (np.isfinite(limits).all() and limits[0] < limits[1]):
        raise InvalidConfig(f"limits={limits}: they must be finite, the lower one first; None takes them from the data")
    gradients, left_out = layer_gradients(model, batch, loss_fn, layers)
    counts, edges = [], []
    numbers: dict[str, list[Tensor]] = {name: [] for name in VARIABLES}
    for layer in list(gradients):
        values = gradients[layer][1]
        count, edge = histogram(values, num_bins, limits)
        counts.append(count)
        edges.append(edge)
        for name, number in _numbers(values, limits).items():
            numbers[name].append(number)
    names = list(gradients)
    parameter = next(model.parameters())
    variables: dict[str, Any] = {
        "count": (("layer", "bin"), torch.stack(counts).cpu().numpy(), "number of entries", "1"),
        "bin_edge": (("layer", "edge"), torch.stack(edges).cpu().numpy(), "gradient entry", "1"),
    }
    for name, (long_name, units) in VARIABLES.items():
        variables[name] = ("layer", torch.stack(numbers[name]).cpu().numpy(), long_name, units)
    coords = {
        "layer": (names, "layer", "1"),
        "bin": (np.arange(num_bins), "bin", "1"),
        "edge": (np.arange(num_bins + 1), "edge of a bin", "1"),
    }
    origin = provenance(device=parameter.device, dtype=parameter.dtype)
    dataset = labelled(variables, coords, left_out=left_out, tail_share=TAIL_SHARE, **origin)
    depth = [gradients[layer][0] for layer in names]
    return dataset.assign_coords(depth=("layer", depth, {"long_name": "layer on the main path", "units": "1"}))


def layer_gradients(
    model: nn.Module, batch: Any, loss_fn: LossFn | None, layers: str | Sequence[str] | None
) -> tuple[dict[str, tuple[float, Tensor]], list[str]]:
    """Depth and flat gradient, (entries,), of every watched layer in execution order, and the layers without one."""
    watched = watched_modules(model, layers)
    called: dict[str, None] = {}
    with untouched(model):
        model.train()
        owned = {
            path: [p for p in own_parameters(module) if p.ndim >= 2 and p.requires_grad]
            for path, module in watched.items()
        }
        wanted = list({p: None for parameters in owned.values() for p in parameters})
        with torch.enable_grad(), watch(model, lambda name, *_: called.setdefault(name.split("#")[0]), layers):
            loss = checked_loss(model, batch, loss_fn)
        with readable_errors():
            found = torch.autograd.grad(loss, wanted, allow_unused=True) if wanted else ()
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


def _numbers(values: Tensor, limits: tuple[float, float] | None) -> dict[str, Tensor]:
    """Everything but the histogram, in float64 or as counts, 0-d."""
    exact = values.double()
    finite = torch.isfinite(exact)
    low, high = limits or (-math.inf, math.inf)
    return {
        "num_below": (finite & (exact < low)).sum(),
        "num_above": (finite & (exact > high)).sum(),
        "num_not_finite": (~finite).sum(),
        "num_zero": (exact == 0).sum(),
        "num_entries": torch.tensor(len(exact), device=exact.device),
        "minimum": exact.min(),
        "maximum": exact.max(),
        "mean": exact.mean(),
        "std": exact.std(correction=0),
        "kurtosis": kurtosis(exact),
        "tail_index": tail_index(exact),
    }

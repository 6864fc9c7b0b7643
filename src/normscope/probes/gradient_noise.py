"""How noisy is the gradient of a mini-batch? (the argument about SGD's noise, and the bound on it)

For a mini-batch B of |B| examples and the step size α, the noise of a step is bounded by

    E‖α∇ℓ − α∇_B‖² ≤ α² C / |B|,    C = E‖∇ℓ_i − ∇ℓ‖² over single examples i,

with equality where mini-batches are drawn with replacement. Drawn without, from N examples, the left side is
C/|B| · (N − |B|)/(N − 1), with C = mean‖∇ℓ_i‖² − ‖∇ℓ‖² over those N. From n examples of a larger population
n/(n − 1) · (mean‖∇ℓ_i‖² − ‖mean ∇ℓ_i‖²) is its unbiased estimate.

C exists only where the loss decouples into examples. Under train-mode batch norm it does not: a mini-batch's gradient
has a variance at each |B|, of its own, and a mean that is not the gradient of the large batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.errors import InvalidBatch, InvalidConfig
from normscope.model.batch import Batch, count_examples, take
from normscope.model.contract import instrument
from normscope.model.layers import depths, owns_weight
from normscope.model.loss import LossFn, checked_loss
from normscope.model.state import Saved, untouched
from normscope.model.vector_norm import Gradient, norm_of_each
from normscope.per_example import gradient, per_example, trainable
from normscope.results.schema import LAYER, coord, measured, variable

VARIABLES = (
    coord("example", "example of the batch"),
    LAYER,
    coord("depth", "layer on the main path", "place among layers with a weight; NaN for others", along="layer"),
    variable("squared_norm", "example", "squared norm of an example's gradient", "‖∇ℓ_i‖²; NaN where the loss couples"),
    variable("noise_per_example", "", "gradient noise C of one example", "C, unbiased; NaN where the loss couples"),
    variable(
        "batch_variance",
        "",
        "variance of a mini-batch's gradient",
        "E‖∇_B − E∇_B‖², unbiased; C/|B| where it decouples",
    ),
    variable(
        "batch_bias",
        "",
        "squared bias of a mini-batch's gradient",
        "‖E∇_B − ∇ℓ‖², at times negative; 0 where it decouples",
    ),
    variable(
        "gradient_squared_norm",
        "",
        "squared norm of the gradient",
        "‖∇ℓ‖² of the whole batch, its own noise C/n included",
    ),
    variable(
        "noise_scale", "", "gradient noise scale", "C / ‖∇ℓ‖²: the |B| at which noise equals signal", units="examples"
    ),
    variable("decouples", "", "loss is a mean of losses of single examples", "or their sum; found out by number"),
    variable("decoupling_error", "", "relative distance from a loss that decouples"),
    variable("is_random", "", "loss draws random numbers", "dropout, whose noise is then part of the result"),
    variable("layer_noise_per_example", "layer", "gradient noise C of one example", "a layer's part of C"),
    variable("layer_batch_variance", "layer", "variance of a mini-batch's gradient", "a layer's part"),
    variable("layer_gradient_squared_norm", "layer", "squared norm of the gradient", "a layer's part"),
)

DEFAULT_MINI_BATCHES = 8
"""How many mini-batches the batch is taken apart into, where nothing else is asked for."""


@dataclass(frozen=True)
class MiniBatchNoise:
    """The gradients of mini-batches, parameter by parameter: three tensors (parameters,) in float64."""

    variance: Tensor
    """Unbiased: E‖∇_B − E∇_B‖²."""
    squared_bias: Tensor
    """Unbiased, so that it may be negative: ‖E∇_B − ∇ℓ‖² over mini-batches B of the batch with gradient ∇ℓ."""
    squared_norm: Tensor
    """‖∇ℓ‖²."""


def noise_per_example(squared_norms: Tensor, squared_norm_of_mean: Tensor) -> Tensor:
    """C, unbiased: n/(n − 1) · (mean‖∇ℓ_i‖² − ‖mean ∇ℓ_i‖²), from (..., n) and (...)."""
    n = squared_norms.shape[-1]
    return n / (n - 1) * (squared_norms.mean(-1) - squared_norm_of_mean)


def mini_batch_noise(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFn | None,
    *,
    start: Saved,
    batch_size: int,
    partitions: int,
    seed: int,
) -> MiniBatchNoise:
    """Take the batch apart at random into disjoint mini-batches, `partitions` times over.

    The variance within a partition is unbiased for fresh mini-batches from the population that the batch came from, and
    the mean over partitions is too. The model is used in the mode it is in, and each pass begins at `start`, what
    `untouched` saved: call it inside that.
    """
    parameters, size = trainable(model), count_examples(batch, at_least=2)
    count = size // batch_size

    def gradient_of(batch: Batch) -> Gradient:
        with start.one_pass(draws_on=True):
            loss = checked_loss(model, batch, loss_fn)
        return gradient(loss, parameters)

    whole = gradient_of(batch)
    generator = torch.Generator().manual_seed(seed)
    variance, squares = torch.zeros(2, len(parameters), dtype=torch.float64, device=parameters[0].device)
    deviation = [torch.zeros_like(part) for part in whole]
    for _ in range(partitions):
        order = torch.randperm(size, generator=generator)[: count * batch_size]
        total, within = [torch.zeros_like(part) for part in whole], torch.zeros_like(variance)
        for examples in order.split(batch_size):
            of_mini_batch = gradient_of(take(batch, examples))
            within += _squared_norm_of_each(of_mini_batch)
            total = [so_far + part for so_far, part in zip(total, of_mini_batch, strict=True)]
        mean = [part / count for part in total]
        variance += (within - count * _squared_norm_of_each(mean)) / (count - 1) / partitions
        off = [part - of_whole for part, of_whole in zip(mean, whole, strict=True)]
        squares += _squared_norm_of_each(off)
        deviation = [so_far + part for so_far, part in zip(deviation, off, strict=True)]
    # The partitions' deviations are independent: the mean product of two different ones has no noise of its own in it.
    bias = (_squared_norm_of_each(deviation) - squares) / (partitions * (partitions - 1))
    return MiniBatchNoise(variance, bias, _squared_norm_of_each(whole))


@instrument
def gradient_noise(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFn | None = None,
    batch_size: int | None = None,
    partitions: int = 4,
    training: bool = True,
    seed: int = 0,
) -> xr.Dataset:
    """The noise of a mini-batch's gradient: C per example where the loss decouples, and the variance at |B|.

    Whether it decouples is found out by number. Where it does, one pass over the batch is enough, and
    `batch_variance` is C/|B|. Where it does not, C and all that is per example are NaN; the batch is taken apart at
    random into mini-batches of |B|, and the variance and bias of their gradients are measured. Data augmentation is
    what it was when the batch was made. Dropout draws other masks for every example and mini-batch, and its noise is
    part of the result. The model comes back untouched.

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes; n examples, the more the surer.
        loss_fn: a mean over examples; a sum is found out, and treated as the mean.
        batch_size: |B|; by default an eighth of the batch.
        partitions: how often a batch that does not decouple is taken apart, 2 or more. Each costs a pass over it.
        training: batch norm normalizes by the mini-batch, as in training; False takes the running statistics.
        seed: of the mini-batches, and of whatever random numbers the model draws.

    Returns:
        Over `example`: `squared_norm`, ‖∇ℓ_i‖². Scalars: `noise_per_example` (C, unbiased), `batch_variance`
        (E‖∇_B − E∇_B‖², unbiased), `batch_bias` (‖E∇_B − ∇ℓ‖², unbiased, so at times negative; 0 where the loss
        decouples), `gradient_squared_norm` (‖∇ℓ‖² of the whole batch), `noise_scale` (C / ‖∇ℓ‖² of the population;
        inf where that is not told from 0); `decouples`, `decoupling_error`, `is_random` (dropout). Over `layer`, the
        modules that own parameters: `layer_noise_per_example`, `layer_batch_variance`, `layer_gradient_squared_norm`,
        whose sums are the above, and the coordinate `depth`. Attributes: `batch_size`, `num_examples`, `reduction`,
        `in_one_pass`.

    Raises:
        InvalidBatch: fewer than two examples, or two mini-batches where the loss does not decouple.
        InvalidConfig: a batch size below 1, or fewer than two partitions.
        InvalidModel, InvalidBatch, DeviceError: see `loss.checked_loss`.

    Example:
        >>> net = ns.build_net("mlp3", norm="batch", in_channels=1, image_size=8, seed=0)
        >>> batch = next(ns.batches(ns.load_data("digits"), 64, seed=0))
        >>> bool(ns.gradient_noise(net, batch)["decouples"])  # batch norm couples the examples
        False
        >>> bool(ns.gradient_noise(ns.with_norm(net, "layer"), batch)["decouples"])
        True
    """
    num_examples = count_examples(batch, at_least=2)
    batch_size = max(2, num_examples // DEFAULT_MINI_BATCHES) if batch_size is None else batch_size
    if batch_size < 1 or partitions < 2:
        raise InvalidConfig(f"batch_size={batch_size}, partitions={partitions}: give 1 or more, and 2 or more")
    with untouched(model) as start:
        model.train(training)
        found = per_example(model, batch, loss_fn, start=start, seed=seed)
        if found.squared_norms is not None and found.mean is not None:
            squared_norm = _squared_norm_of_each(found.mean)
            noise = noise_per_example(found.squared_norms, squared_norm)
            variance, bias = noise / batch_size, torch.zeros_like(noise)
            of_examples = found.squared_norms.sum(0)
        else:
            if 2 * batch_size > num_examples:
                raise InvalidBatch(
                    f"the loss couples the examples of a mini-batch, and {num_examples} make fewer than two "
                    f"mini-batches of {batch_size}: give a larger batch, or a smaller batch_size"
                )
            options = {"start": start, "batch_size": batch_size, "partitions": partitions, "seed": seed}
            of_parts = mini_batch_noise(model, batch, loss_fn, **options)
            variance, bias, squared_norm = of_parts.variance, of_parts.squared_bias, of_parts.squared_norm
            noise = torch.full_like(variance, torch.nan)
            of_examples = torch.full((num_examples,), torch.nan)
        layers, owner = _owners(model)
        parameter = trainable(model)[0]
    by_layer = torch.zeros(3, len(layers), dtype=torch.float64)
    by_layer.index_add_(1, torch.tensor(owner), torch.stack([noise, variance, squared_norm]).cpu())
    layer_noise, layer_variance, layer_squared_norm = by_layer.numpy()
    c, of_batch = layer_noise.sum(), layer_squared_norm.sum()
    signal = of_batch - c / num_examples
    values = {
        "squared_norm": of_examples.cpu(),
        "noise_per_example": c,
        "batch_variance": layer_variance.sum(),
        "batch_bias": float(bias.sum()),
        "gradient_squared_norm": of_batch,
        "noise_scale": c / signal if not signal <= 0 else np.inf * c,
        "decouples": found.decouples,
        "decoupling_error": found.error,
        "is_random": found.is_random,
        "layer_noise_per_example": layer_noise,
        "layer_batch_variance": layer_variance,
        "layer_gradient_squared_norm": layer_squared_norm,
        "example": np.arange(num_examples),
        "layer": layers,
        "depth": _depths_of(model, layers),
    }
    attrs = {
        "probe": "gradient_noise",
        "batch_size": batch_size,
        "num_examples": num_examples,
        "reduction": "sum" if found.is_sum else "mean",
        "in_one_pass": found.in_one_pass,
    }
    config = {"training": training, "partitions": partitions, "seed": seed}
    return measured(VARIABLES, values, device=parameter.device, dtype=parameter.dtype, attrs=attrs, **config)


def _owners(model: nn.Module) -> tuple[list[str], list[int]]:
    """The modules that own trainable parameters, by path, and which of them owns each parameter. A parameter of several
    modules belongs to the first; the model itself goes by the name of its class."""
    paths = [name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad]
    layers = list(dict.fromkeys(paths))
    return [path or type(model).__name__ for path in layers], [layers.index(path) for path in paths]


def _depths_of(model: nn.Module, layers: list[str]) -> list[float]:
    """The place on the main path of layers that own a weight of two dimensions or more; NaN for all others."""
    modules = dict(model.named_modules())
    weighted = [layer for layer in layers if owns_weight(modules.get(layer, model))]
    place = dict(zip(weighted, depths(weighted), strict=True))
    return [place.get(layer, float("nan")) for layer in layers]


def _squared_norm_of_each(gradient: Gradient) -> Tensor:
    """Of every parameter's part: (parameters,) in float64."""
    return norm_of_each(gradient).square()

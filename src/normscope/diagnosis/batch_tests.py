"""What a loss and a model do with a batch, tested by number: is the loss a sum, do examples see each other, what would
scaled inputs change?"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from normscope.model.batch import Batch, joined, map_inputs, num_examples
from normscope.model.loss import LossFn, default_loss, readable_errors
from normscope.model.output import Output, output_tensor
from normscope.model.state import untouched
from normscope.per_example.dropout import WithoutDropout


def extensivity(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None, *, seed: int = 0) -> float:
    """ℓ(B and B again) / ℓ(B): 1 for a loss that is a mean over examples, 2 for one that is their sum; also under batch
    norm, whose statistics are the same on both, and without dropout, whose draws are not. NaN where the batch cannot be
    doubled."""
    twice = joined([batch, batch])
    if twice is None:
        return float("nan")
    with untouched(model), torch.enable_grad(), readable_errors(), WithoutDropout():
        model.train()
        losses = []
        for each in (batch, twice):
            torch.manual_seed(seed)
            losses.append(float((loss_fn or default_loss)(model, each).detach().double()))
    return losses[1] / losses[0] if losses[0] else float("nan")


def coupling(model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn | None = None, *, seed: int = 0) -> float:
    """How much an example's output depends on which others share its batch: the root mean square difference between
    its output in its own mini-batch and in all mini-batches joined, over the spread of the outputs.

    0 where examples do not see each other; what random numbers (dropout) change is taken off. NaN where the batches
    cannot be joined or the output does not run over examples.
    """
    together = joined(batches)
    if together is None or len(batches) < 2:
        return float("nan")
    with untouched(model), torch.enable_grad(), readable_errors():
        model.train()
        apart = [_outputs(model, batch, loss_fn, seed) for batch in batches]
        pooled, again = _outputs(model, together, loss_fn, seed), _outputs(model, together, loss_fn, seed + 1)
    if pooled is None or again is None or any(each is None for each in apart):
        return float("nan")
    separate = torch.cat([each for each in apart if each is not None])
    if separate.shape != pooled.shape:
        return float("nan")
    spread = pooled.var(0, correction=0).mean()
    random = (pooled - again).square().mean() / 2
    change = (separate - pooled).square().mean() - 2 * random
    return float((change.clamp(min=0) / spread).sqrt()) if spread > 0 else float("nan")


def input_scale(batch: Batch) -> float:
    """The largest root mean square of any input feature in the batch; NaN where no input is floating-point."""
    sizes: list[float] = []
    map_inputs(batch, lambda x: sizes.append(float(_per_feature(x).square().mean(0).sqrt().max())) or x)
    return max(sizes, default=float("nan"))


def standardized(batch: Batch) -> Batch:
    """The batch with every feature of its floating-point inputs at mean 0 and standard deviation 1 (a constant feature
    at 0), over examples and positions."""

    def standardize(x: Tensor) -> Tensor:
        rows = _per_feature(x)
        mean, std = rows.mean(0), rows.std(0, correction=0)
        shape = [1, -1, *[1] * (x.ndim - 2)] if x.ndim > 3 else [*[1] * (x.ndim - 1), -1]
        scaled = (x.double() - mean.view(shape)) / torch.where(std > 0, std, torch.ones_like(std)).view(shape)
        return scaled.to(x.dtype)

    return map_inputs(batch, standardize)


def feature_statistics(batches: Sequence[Batch]) -> tuple[Tensor, Tensor] | None:
    """Mean and standard deviation of every feature of the floating-point inputs over all batches, (features,) in
    float64; None where there is none, or several."""
    rows: list[Tensor] = []
    for batch in batches:
        before = len(rows)
        map_inputs(batch, lambda x: rows.append(_per_feature(x)) or x)
        if len(rows) != before + 1 or rows[-1].shape[1] != rows[0].shape[1]:
            return None
    if not rows:
        return None
    count = sum(len(r) for r in rows)
    mean = torch.stack([r.sum(0) for r in rows]).sum(0) / count
    square = torch.stack([(r - mean).square().sum(0) for r in rows]).sum(0) / count
    return mean, square.sqrt()


def with_standardized_inputs(batches: Sequence[Batch]) -> list[Batch] | None:
    """All batches with every input feature at mean 0 and standard deviation 1 over all of them; None where their inputs
    are not one floating-point tensor each."""
    statistics = feature_statistics(batches)
    if statistics is None:
        return None
    mean, std = statistics
    constant = std <= 1e-9 * (mean.abs() + std)
    divisor = torch.where(constant, torch.ones_like(std), std)

    def standardize(x: Tensor) -> Tensor:
        shape = [1, -1, *[1] * (x.ndim - 2)] if x.ndim > 3 else [*[1] * (x.ndim - 1), -1]
        return ((x.double() - mean.view(shape)) / divisor.view(shape)).to(x.dtype)

    return [map_inputs(batch, standardize) for batch in batches]


def _per_feature(x: Tensor) -> Tensor:
    """(examples and positions, features) in float64: dim 1 of images is their channels, else the last dim is."""
    return (x.movedim(1, -1) if x.ndim > 3 else x).double().flatten(0, -2) if x.ndim > 1 else x.double()[:, None]


def _outputs(model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int) -> Tensor | None:
    """The model's outputs on a batch, (examples, outputs) in float64, caught on the way to its loss."""
    caught: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: object, output: Output) -> None:
        tensor = output_tensor(output)
        if tensor is not None and tensor.ndim:
            caught.append(tensor.detach().double().clone())

    handle = model.register_forward_hook(hook)
    try:
        torch.manual_seed(seed)
        (loss_fn or default_loss)(model, batch)
    finally:
        handle.remove()
    examples = num_examples(batch)
    if len(caught) != 1 or examples is None or len(caught[0]) != examples:
        return None
    values = caught[0].flatten(1) if caught[0].ndim > 1 else caught[0][:, None]
    return values if bool(torch.isfinite(values).all()) else None


def feature_imbalance(batch: Batch) -> float:
    """The largest root mean square of a floating-point input's features over the median one; NaN without such."""
    ratios: list[float] = []

    def measure(x: Tensor) -> Tensor:
        sizes = _per_feature(x.detach()).square().mean(0).sqrt().cpu().numpy()
        sizes = sizes[sizes > 0]
        if len(sizes):
            ratios.append(float(sizes.max() / np.median(sizes)))
        return x

    map_inputs(batch, measure)
    return max(ratios, default=float("nan"))

"""Do the examples of a mini-batch agree on where to push the output? (Figure 6)

For the outputs z_b (examples b, classes k) of a mini-batch B the rows

    g_b = ∂ℓ_B / ∂z_b,    for a cross-entropy  g_bk = (softmax(z_b)_k − [k = y_b]) / |B|.

If the network predicts one class whatever it sees, almost all rows are the same, and the gradient of every parameter
before them, a sum over the examples, adds up where it would cancel.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from normscope.errors import InvalidModel
from normscope.model.batch import Batch, targets_of
from normscope.model.contract import instrument
from normscope.model.layers import channel_dim
from normscope.model.loss import LossFn, checked_loss, loss_units, readable_errors
from normscope.model.output import Output, output_tensor
from normscope.model.state import untouched
from normscope.results.schema import OF_LOSS, coord, measured, variable

VARIABLES = (
    coord("example", "example", "of the output: positions are examples too"),
    coord("label", "label", "output of the model"),
    variable("gradient", "example label", "gradient of the loss at the output", "g_b = ∂ℓ_B/∂z_b"),
    variable("predicted", "example", "predicted label", "of the largest output; −1 where one is NaN"),
    variable("commonest_share", "", "share of the commonest prediction"),
    variable("mean_cosine", "", "mean cosine between two examples' gradients", "over pairs that are not zero"),
    variable("common_part", "", "part of the gradient that all examples share", "‖mean g‖² / mean ‖g‖²"),
    variable("loss", "", "loss", "ℓ_B(θ)", units=OF_LOSS),
)


def mean_pairwise_cosine(rows: Tensor) -> float:
    """Mean of cos(g_a, g_b) over all pairs a ≠ b of (example, label) rows that are not zero; NaN below two of them."""
    rows = rows.double()
    norms = rows.norm(dim=1)
    units = rows[norms != 0] / norms[norms != 0, None]
    count = len(units)
    if count < 2:
        return float("nan")
    return float((units.sum(0).square().sum() - count) / (count * (count - 1)))


def common_part(rows: Tensor) -> float:
    """‖mean_b g_b‖² / mean_b ‖g_b‖²: how much of the squared (example, label) rows lies in what they share.

    1 if all are the same, 1/|B| on average if they are independent without a mean; NaN if all are zero.
    """
    rows = rows.double()
    return float(rows.mean(0).square().sum() / rows.square().sum(1).mean())


def commonest_share(predicted: Tensor) -> float:
    """Share of the examples that get the commonest prediction; an example without one (−1) counts as another.
    NaN if none has one."""
    known = predicted[predicted >= 0]
    return int(torch.bincount(known).max()) / len(predicted) if len(known) else float("nan")


def predictions(outputs: Tensor) -> Tensor:
    """The class of the largest of the (example, label) outputs, −1 where one of them is NaN."""
    return outputs.argmax(1).where(~outputs.isnan().any(1), -1)


@dataclass(frozen=True)
class CaughtOutput:
    """The output tensor of one call of a model, before anything could change it in place."""

    edge: GradientEdge
    """Where its gradient is to be taken."""
    dim: int
    """The dimension that runs over classes."""
    predicted: Tensor
    """(examples,) see `predictions`."""


@contextmanager
def _output_caught(model: nn.Module, batch: Batch) -> Iterator[list[CaughtOutput]]:
    """Catch the output of every call of the model while the context lasts: its `.logits`, else its first tensor
    that is no scalar."""
    caught: list[CaughtOutput] = []

    def hook(module: nn.Module, _inputs: object, output: Output) -> None:
        tensor = output_tensor(output)
        if tensor is None or not tensor.requires_grad:
            raise InvalidModel(f"{type(module).__name__} gives no output tensor that depends on its parameters")
        dim = _class_dim(module, tensor, batch)
        predicted = predictions(_as_rows(tensor.detach(), dim))
        caught.append(CaughtOutput(get_gradient_edge(tensor), dim, predicted))

    handle = model.register_forward_hook(hook)
    try:
        yield caught
    finally:
        handle.remove()


@instrument
def output_gradients(model: nn.Module, batch: Batch, *, loss_fn: LossFn | None = None) -> xr.Dataset:
    """The gradient of the loss at the model's output, example by example (figure 6).

    One forward pass in training mode and the backward pass of the loss alone; the model comes back untouched. The
    gradient is that of the batch's loss: of a mean over |B| examples, it has the factor 1/|B|.

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes. The output is the model's
            `.logits`, or its first tensor; several positions (tokens, pixels) are flattened into examples, and
            where the loss calls the model several times, the calls' examples follow each other.

    Returns:
        Dataset over `example` and `label`: `gradient`, in the output's precision; `predicted(example)`, the label of
        the largest output, −1 where an output is NaN; and scalars: `commonest_share` (share of the examples that get
        the commonest prediction; NaN for an output of one number), `mean_cosine` (over all pairs of examples whose
        gradient is not zero), `common_part` (‖mean row‖² / mean ‖row‖²) and `loss`.

    Raises:
        InvalidModel: an output, or a loss, that does not depend on the parameters through the output tensor.
        InvalidModel, InvalidBatch, DeviceError: see `loss.checked_loss`.

    Example:
        Where all outputs are 0 the gradient is 1/10 at each label, less 1 at the true one, over |B|.

        >>> model = nn.Linear(5, 10)
        >>> _ = nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        >>> dataset = ns.output_gradients(model, (torch.ones(2, 5), torch.tensor([0, 3])))
        >>> dataset["gradient"].values[1].astype(float).round(3).tolist()
        [0.05, 0.05, 0.05, -0.45, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05]
    """
    with untouched(model), torch.enable_grad(), _output_caught(model, batch) as caught:
        model.train()
        loss = checked_loss(model, batch, loss_fn)
        if not caught:
            raise InvalidModel(f"the loss never calls {type(model).__name__} itself, so it has no output to look at")
        with readable_errors():
            gradients = torch.autograd.grad(loss, [output.edge for output in caught], allow_unused=True)
    used = [(output, g) for output, g in zip(caught, gradients, strict=True) if g is not None]
    if not used:
        raise InvalidModel(f"the loss does not depend on the output tensor of {type(model).__name__}")
    parts = [_as_rows(gradient, output.dim) for output, gradient in used]
    if len({part.shape[1] for part in parts}) > 1:
        raise InvalidModel("the loss calls the model several times with outputs of different sizes")
    rows, predicted = torch.cat(parts), torch.cat([output.predicted for output, _ in used])
    rows = rows.float() if rows.dtype in (torch.bfloat16, torch.float16) else rows
    share = commonest_share(predicted) if rows.shape[1] > 1 else float("nan")
    parameter = next(p for p in model.parameters() if p.requires_grad)
    values = {
        "gradient": rows.cpu().numpy(),
        "predicted": predicted.cpu().numpy(),
        "commonest_share": share,
        "mean_cosine": mean_pairwise_cosine(rows),
        "common_part": common_part(rows),
        "loss": float(loss.detach()),
        "example": np.arange(rows.shape[0]),
        "label": np.arange(rows.shape[1]),
    }
    units = loss_units(batch, loss_fn)
    return measured(VARIABLES, values, device=parameter.device, dtype=parameter.dtype, loss_units=units)


def _class_dim(model: nn.Module, output: Tensor, batch: Batch) -> int:
    """The dimension of the output that runs over classes: the one that its labels lack, as for cross-entropy; where
    the labels do not say, last for (examples, features) and (examples, tokens, features), else dimension 1."""
    labels = targets_of(batch)
    if labels is not None and output.ndim > 2:
        if labels.shape == output.shape[:-1]:
            return output.ndim - 1
        if labels.shape == (output.shape[0], *output.shape[2:]):
            return 1
    return channel_dim(model, output) if output.ndim > 1 else 0


def _as_rows(tensor: Tensor, dim: int) -> Tensor:
    """(examples, classes) of a tensor with its classes along `dim`, each position an example of its own; a vector is
    one number for every example."""
    return tensor[:, None] if tensor.ndim == 1 else tensor.movedim(dim, -1).flatten(0, -2)

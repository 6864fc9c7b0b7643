"""One measurement beside a running training: passes of its own on the eager module, and no trace of them.

One forward and backward pass on the mini-batch, in training mode, for activations and gradients; at most six forward
passes along the optimizer's own next update for the critical multiple; one more in evaluation mode where batch norm
keeps running statistics.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.descent.step_line import step_line
from normscope.model.batch import Batch
from normscope.model.build import uncompiled
from normscope.model.layers import LayerCall, own_parameters, record_calls
from normscope.model.loss import LossFn, default_loss
from normscope.model.output import Output, output_tensor
from normscope.monitoring.attention_logits import AttentionLogits
from normscope.monitoring.critical_multiple import critical_multiple
from normscope.monitoring.next_update import NextUpdate, adam_lag
from normscope.probes.sharpness import sharpness

SCALARS = {
    "measured_loss": ("loss of the measured mini-batch in training mode", "1"),
    "measured_gradient_norm": ("norm of the measured gradient, unclipped", "1"),
    "update_norm": ("norm of the optimizer's next update", "1"),
    "critical_multiple": ("how many times longer the next step could be before the loss rises", "1"),
    "critical_low": ("largest multiple of the next step at which the loss had not risen", "1"),
    "critical_high": ("smallest multiple of the next step at which the loss had risen", "1"),
    "relative_loss_1": ("loss after the next step over the loss before", "1"),
    "relative_loss_4": ("loss after four times the next step over the loss before", "1"),
    "slope": ("derivative of the loss along the next step", "1"),
    "output_logit": ("largest output in size", "1"),
    "attention_logit": ("largest logit in front of a softmax", "1"),
    "batch_norm_gap": ("loss with running statistics over the loss with the batch's own", "1"),
    "sharpness": ("largest eigenvalue of the Hessian of the mini-batch", "1"),
    "seconds": ("duration of the measurement", "s"),
}
"""What is measured once, by name: long name and units. A model without softmax has no `attention_logit`, one without
running statistics no `batch_norm_gap`, and `sharpness` is there where it was asked for."""

SHARPNESS_TOLERANCE, SHARPNESS_PRODUCTS = 1e-2, 30
"""How well λ₁ is known beside a training, and the Hessian-vector products it may take."""

PER_LAYER = {
    "activation_size": ("root mean square of the activations", "1"),
    "not_finite": ("share of activations that are not finite", "1"),
    "layer_gradient_norm": ("norm of the layer's gradient, unclipped", "1"),
    "update_to_weight": ("norm of the layer's next update over that of its weights", "1"),
    "adam_lag": ("root mean square of the gradient over Adam's second moment", "1"),
}
"""What is measured of every layer; `adam_lag` where the optimizer keeps a second moment."""


@dataclass(frozen=True)
class Measurement:
    """What was seen at one step."""

    step: int
    scalars: Mapping[str, float]
    """By the names of `SCALARS`."""
    layers: Sequence[str]
    """In the order of execution; see `model.layers`."""
    per_layer: Mapping[str, np.ndarray]
    """(layer,) float64, by the names of `PER_LAYER`."""
    tried: Mapping[float, float] = field(default_factory=dict)
    """The loss at each multiple of the next update that was tried."""


def measure(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    step: int,
    loss_fn: LossFn | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    clip_norm: float | None = None,
    guess: float | None = None,
) -> Measurement:
    """Measure a model on a mini-batch in training mode; model, optimizer and random state come out bit for bit.

    Args:
        model: the eager module.
        clip_norm: of the training's gradients, if they are clipped.
        guess: the critical multiple of the measurement before.

    Raises:
        InvalidModel, InvalidBatch, DeviceError: see `loss.checked_loss`.
    """
    begun = time.perf_counter()
    layers: dict[str, nn.Module] = {}
    sizes: list[Tensor] = []
    outputs: list[Tensor] = []
    found: dict[str, Tensor] = {}
    attention = AttentionLogits()
    next_update = NextUpdate(optimizer, model, clip_norm)
    places: dict[int, int] = {}
    looked = False

    def on_call(call: LayerCall) -> None:
        layers[call.name] = call.module
        sizes.append(torch.stack([root_mean_square(call.output), _not_finite_share(call.output)]))

    def on_output(_module: nn.Module, _inputs: object, output: Output) -> None:
        tensor = output_tensor(output)
        if tensor is not None and tensor.numel() and tensor.is_floating_point():
            outputs.append(tensor.detach().abs().amax().double())

    def direction(parameters: list[nn.Parameter], starts: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        found["gradients"] = norms(gradients)
        found["lags"] = stacked([adam_lag(optimizer, p, g) for p, g in zip(parameters, gradients, strict=True)])
        updates = next_update(parameters, starts, gradients)
        found["updates"], found["weights"] = norms(updates), norms(starts)
        places.update({id(p): i for i, p in enumerate(parameters)})
        return updates

    def loss(module: nn.Module, given: Batch) -> Tensor:
        nonlocal looked
        with ExitStack() as stack:
            stack.enter_context(autocast())
            if not looked:
                looked = True
                stack.enter_context(record_calls(module, on_call))
                stack.callback(module.register_forward_hook(on_output).remove)
                stack.enter_context(attention)
            return (loss_fn or default_loss)(module, given)

    with _versions_kept(model), uncompiled(), step_line(model, batch, loss, direction=direction) as line:
        start = float(line.loss)
        slope = float(next_update.slope)
        critical = critical_multiple(lambda s: float(line.loss_at(s)), start, slope=slope, guess=guess)
        gap = None
        whole = bool(torch.isfinite(found["updates"]).all())  # else even no step at all is not finite: 0 · inf
        if whole and _keeps_running_statistics(model):
            model.eval()
            gap = float(line.loss_at(0.0))
            model.train()
        size, shares = torch.stack(sizes, 1).cpu().numpy() if sizes else np.zeros((2, 0))
        gradients, updates, weights, lags = (
            found[name].cpu().numpy() for name in ("gradients", "updates", "weights", "lags")
        )
    of_layer = [[places[id(p)] for p in own_parameters(m) if id(p) in places] for m in layers.values()]
    with np.errstate(all="ignore"):
        relative = {s: relative_loss(value, start) for s, value in critical.tried.items()}
        per_layer = {
            "activation_size": size,
            "not_finite": shares,
            "layer_gradient_norm": np.array([length(gradients[own]) for own in of_layer]),
            "update_to_weight": np.array(
                [length(updates[own]) / length(weights[own]) if own else np.nan for own in of_layer]
            ),
            "adam_lag": np.array([lags[own].max() if own else np.nan for own in of_layer]),
        }
    scalars = {
        "measured_loss": start,
        "measured_gradient_norm": length(gradients),
        "update_norm": length(updates),
        "critical_multiple": critical.value,
        "critical_low": critical.low,
        "critical_high": critical.high,
        "relative_loss_1": relative[1.0],
        "relative_loss_4": relative[4.0],
        "slope": slope,
        "seconds": time.perf_counter() - begun,
    }
    if outputs:
        scalars["output_logit"] = float(outputs[-1])
    if (logit := attention.largest()) is not None:
        scalars["attention_logit"] = float(logit)
    if gap is not None:
        scalars["batch_norm_gap"] = relative_loss(gap, start)
    if not np.isfinite(lags).any():
        del per_layer["adam_lag"]
    names = [name.replace("_orig_mod.", "").replace("._orig_mod", "") for name in layers]
    return Measurement(step, scalars, names, per_layer, critical.tried)


def relative_loss(loss: float, start: float) -> float:
    """A loss over the one before; where that is not positive there is no ratio: then only overflow tells, as inf."""
    if start > 0:
        return loss / start
    return 1.0 if np.isfinite(loss) else float("inf")


def root_mean_square(output: Tensor) -> Tensor:
    """√(mean of y²) of one call's output, a float64 scalar on the device that no finite output overflows."""
    y = output.detach()
    return torch.linalg.vector_norm(y, dtype=torch.float64) / max(1, y.numel()) ** 0.5


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of each tensor: (tensor,) float64 on the device."""
    return torch.stack(
        [torch.linalg.vector_norm(t.coalesce().values() if t.is_sparse else t, dtype=torch.float64) for t in tensors]
    )


def stacked(values: Sequence[Tensor | None]) -> Tensor:
    """The scalars as one tensor, NaN for None."""
    known = [value for value in values if value is not None]
    if not known:
        return torch.full((len(values),), float("nan"), dtype=torch.float64)
    missing = torch.full_like(known[0], float("nan"))
    return torch.stack([missing if value is None else value for value in values])


def length(parts: np.ndarray) -> float:
    """The Euclidean length of a whole whose parts have these lengths; overflows to inf only where it must."""
    largest = float(np.max(parts)) if len(parts) else float("nan")
    if not np.isfinite(largest) or largest == 0:
        return largest
    return largest * float(np.sqrt(np.sum((parts / largest) ** 2)))


def _keeps_running_statistics(model: nn.Module) -> bool:
    """Whether some module normalizes with the batch's statistics in training and with running ones in evaluation."""
    return any(isinstance(getattr(module, "running_var", None), Tensor) for module in model.modules())


def _not_finite_share(output: Tensor) -> Tensor:
    """The share of one call's output that is not finite, a float64 scalar on the device."""
    return 1 - torch.isfinite(output.detach()).sum(dtype=torch.float64) / max(1, output.numel())


def measured_sharpness(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFn | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> float:
    """λ₁ of the Hessian of the mini-batch's loss in training mode, to one part in a hundred; see `ns.sharpness`.

    Raises:
        InvalidModel: a loss that cannot be differentiated twice.
    """

    def loss(module: nn.Module, given: Batch) -> Tensor:
        with autocast():
            return (loss_fn or default_loss)(module, given)

    with _versions_kept(model), uncompiled():
        found = sharpness(model, batch, loss_fn=loss, tolerance=SHARPNESS_TOLERANCE, max_products=SHARPNESS_PRODUCTS)
    return float(found["eigenvalue"][0])


@contextmanager
def _versions_kept(model: nn.Module) -> Iterator[None]:
    """Parameters that come back with the same bits also keep the version that autograd saved: so a backward pass still
    to come, of the training's own loss, does not take them for changed."""
    with ExitStack() as kept:  # one by one: torch 2.6 takes no several
        for tensor in dict.fromkeys([*model.parameters(), *model.buffers()]):
            kept.enter_context(torch.autograd._unsafe_preserve_version_counter(tensor))  # pyright: ignore
        yield

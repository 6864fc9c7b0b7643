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
    heard, update = _FirstPass(loss_fn or default_loss, autocast), _Update(optimizer, model, clip_norm)
    gap = None
    with _versions_kept(model), uncompiled(), step_line(model, batch, heard.loss, direction=update.direction) as line:
        start, slope = float(line.loss), float(update.next.slope)
        critical = critical_multiple(lambda s: float(line.loss_at(s)), start, slope=slope, guess=guess)
        if update.is_finite and _keeps_running_statistics(model):  # else even no step at all is not finite: 0 · inf
            model.eval()
            gap = float(line.loss_at(0.0))
            model.train()
    sizes = update.sizes()
    with np.errstate(all="ignore"):
        relative = {s: relative_loss(value, start) for s, value in critical.tried.items()}
    scalars = {
        "measured_loss": start,
        "measured_gradient_norm": length(sizes["gradients"]),
        "update_norm": length(sizes["updates"]),
        "critical_multiple": critical.value,
        "critical_low": critical.low,
        "critical_high": critical.high,
        "relative_loss_1": relative[1.0],
        "relative_loss_4": relative[4.0],
        "slope": slope,
        "seconds": time.perf_counter() - begun,
    }
    if (output := heard.last_output()) is not None:
        scalars["output_logit"] = output
    if (logit := heard.attention.largest()) is not None:
        scalars["attention_logit"] = float(logit)
    if gap is not None:
        scalars["batch_norm_gap"] = relative_loss(gap, start)
    names = [name.replace("_orig_mod.", "").replace("._orig_mod", "") for name in heard.layers]
    return Measurement(step, scalars, names, _per_layer(heard, update.places, sizes), critical.tried)


class _FirstPass:
    """A loss that listens to its first forward pass: the layers' outputs, the model's own, attention's logits."""

    def __init__(self, loss_fn: LossFn, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self.loss_fn, self.autocast = loss_fn, autocast
        self.layers: dict[str, nn.Module] = {}
        self.attention = AttentionLogits()
        self._sizes: list[Tensor] = []
        self._outputs: list[Tensor] = []
        self._over = False

    def loss(self, module: nn.Module, given: Batch) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(self.autocast())
            if not self._over:
                self._over = True
                stack.enter_context(record_calls(module, self._on_call))
                stack.callback(module.register_forward_hook(self._on_output).remove)
                stack.enter_context(self.attention)
            return self.loss_fn(module, given)

    def sizes(self) -> np.ndarray:
        """(2, layer): root mean square of each layer's output, and the share of it that is not finite."""
        return torch.stack(self._sizes, 1).cpu().numpy() if self._sizes else np.zeros((2, 0))

    def last_output(self) -> float | None:
        """The largest number, in size, of what the model gave last; None where it gives none."""
        return float(self._outputs[-1]) if self._outputs else None

    def _on_call(self, call: LayerCall) -> None:
        self.layers[call.name] = call.module
        self._sizes.append(torch.stack([root_mean_square(call.output), _not_finite_share(call.output)]))

    def _on_output(self, _module: nn.Module, _inputs: object, output: Output) -> None:
        tensor = output_tensor(output)
        if tensor is not None and tensor.numel() and tensor.is_floating_point():
            self._outputs.append(tensor.detach().abs().amax().double())


class _Update:
    """The optimizer's next update as the direction of a line, and the sizes of what makes it by parameter."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, clip_norm: float | None) -> None:
        self.optimizer, self.next = optimizer, NextUpdate(optimizer, model, clip_norm)
        self.places: dict[int, int] = {}
        """Where each parameter, by its id, stands in the sizes."""
        self._sizes: dict[str, Tensor] = {}

    def direction(self, parameters: list[nn.Parameter], starts: list[Tensor], gradients: list[Tensor]) -> list[Tensor]:
        lags = [adam_lag(self.optimizer, p, g) for p, g in zip(parameters, gradients, strict=True)]
        self.places = {id(p): i for i, p in enumerate(parameters)}
        self._sizes = {"gradients": norms(gradients), "weights": norms(starts), "lags": stacked(lags)}
        updates = self.next(parameters, starts, gradients)  # which empties the list of gradients
        self._sizes["updates"] = norms(updates)
        return updates

    @property
    def is_finite(self) -> bool:
        return bool(torch.isfinite(self._sizes["updates"]).all())

    def sizes(self) -> dict[str, np.ndarray]:
        """(parameter,) float64 each: norms of `gradients`, `updates` and `weights`, and Adam's `lags`."""
        return {name: values.cpu().numpy() for name, values in self._sizes.items()}


def _per_layer(heard: _FirstPass, places: dict[int, int], sizes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """By the names of `PER_LAYER`; places and sizes as `_Update` has them."""
    gradients, updates, weights, lags = (sizes[name] for name in ("gradients", "updates", "weights", "lags"))
    of_layer = [[places[id(p)] for p in own_parameters(m) if id(p) in places] for m in heard.layers.values()]
    activations, not_finite = heard.sizes()
    with np.errstate(all="ignore"):
        ratios = [length(updates[own]) / length(weights[own]) if own else np.nan for own in of_layer]
    found = {
        "activation_size": activations,
        "not_finite": not_finite,
        "layer_gradient_norm": np.array([length(gradients[own]) for own in of_layer]),
        "update_to_weight": np.array(ratios),
    }
    if np.isfinite(lags).any():
        found["adam_lag"] = np.array([lags[own].max() if own else np.nan for own in of_layer])
    return found


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

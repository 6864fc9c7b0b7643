"""What goes forwards and backwards through every watched call: sizes, silent units, growth along a sequence.

For a call with input x, output y and gradient g = ∂ℓ_B/∂y (examples b, positions p, channels c)

    size = √E y²,    gain = √E y² / √E x²,    gradient size = √E g²,    a unit c is silent where g_bpc = 0 for all b, p.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.model.batch import Batch, num_examples
from normscope.model.layers import LayerCall, channel_dim, record_calls
from normscope.model.loss import LossFn, checked_loss, gradients_by
from normscope.model.output import first_tensor
from normscope.model.state import seeded
from normscope.model.vector_norm import norm

SHORTEST_SEQUENCE = 5
"""Growth along a sequence is fitted to this many places or more."""

STRAIGHT_ENOUGH = 0.8
"""Growth along a sequence counts where a straight line explains this share of the logarithms' variance."""


@dataclass
class CallSignal:
    """What one watched call showed, over all batches."""

    squares_in: float = 0.0
    """Σ over batches of E x²; NaN where the input is not floating-point."""
    squares_out: float = 0.0
    squares_gradient: float = 0.0
    largest_gradient: Tensor | None = None
    """(channel,): the largest |g| of each unit; None where no gradient ever arrives."""
    forward_growth: float = 0.0
    """How many nats the size of the outputs grows along the sequence inside one call."""
    backward_growth: float = 0.0
    """The same for the gradient of the inputs, from the last place to the first."""
    batches: int = 0

    @property
    def size(self) -> float:
        """√E y²."""
        return float(np.sqrt(self.squares_out / max(self.batches, 1)))

    @property
    def gain(self) -> float:
        """√E y² / √E x²; NaN where x is not floating-point or zero."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return float(np.sqrt(np.float64(self.squares_out) / self.squares_in))

    @property
    def gradient_size(self) -> float:
        """√E g²; NaN where no gradient ever arrives."""
        return float("nan") if self.largest_gradient is None else float(np.sqrt(self.squares_gradient / self.batches))

    @property
    def silent_share(self) -> float:
        """Share of the units without a gradient on any example; NaN where no gradient ever arrives."""
        return float("nan") if self.largest_gradient is None else float((self.largest_gradient == 0).double().mean())

    @property
    def units(self) -> float:
        """How many; NaN where no gradient ever arrives."""
        return float("nan") if self.largest_gradient is None else float(self.largest_gradient.numel())


@dataclass
class Signal:
    """What all watched calls showed, in execution order, and which parameters the loss depends on."""

    calls: dict[str, CallSignal] = field(default_factory=dict)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    """The module of each call."""
    trainable_share: float = 1.0
    """Numbers in parameters that require a gradient, over all."""
    reached_share: float = 1.0
    """Numbers in parameters that a gradient arrives at, zero or not, over those that require one."""

    def values(self, name: str) -> np.ndarray:
        """A property of every call, (layer,)."""
        return np.asarray([getattr(call, name) for call in self.calls.values()], dtype=np.float64)


def signal(model: nn.Module, batches: Sequence[Batch], *, loss_fn: LossFn | None = None, seed: int = 0) -> Signal:
    """One forward and backward pass in training mode for each batch; the model comes back untouched.

    Calls that contain other watched calls (a network with a table of positions of its own) are left out.

    Raises:
        InvalidModel, InvalidBatch, DeviceError: see `loss.checked_loss`.
    """
    found = Signal()
    taps: list[Tensor] = []

    def before(inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        # So that the gradient along a sequence is seen also where the data come straight in.
        first = inputs[0] if inputs else None
        if not isinstance(first, Tensor) or first.requires_grad or first.ndim != 3 or not first.is_floating_point():
            return None
        taps.append(first.detach().requires_grad_())
        return (taps[-1], *inputs[1:])

    with seeded(model, seed):
        parameters = [p for p in model.parameters() if p.requires_grad]
        reached: set[nn.Parameter] = set()
        for batch in batches:
            taps.clear()
            examples = num_examples(batch)

            def on_call(call: LayerCall, examples: int | None = examples) -> None:
                found.modules[call.name] = call.module
                seen = found.calls.setdefault(call.name, CallSignal())
                _observe(seen, call.module, call.inputs, call.output, examples)

            with record_calls(model, on_call, before=before):
                loss = checked_loss(model, batch, loss_fn)
            found_here = gradients_by(loss, [*parameters, *taps])
            reached.update(p for p, g in zip(parameters, found_here, strict=False) if g is not None)
        everything = sum(p.numel() for p in model.parameters())
        trainable = sum(p.numel() for p in parameters)
        found.trainable_share = trainable / max(everything, 1)
        found.reached_share = sum(p.numel() for p in reached) / max(trainable, 1)
    return found


def sequence_growth(sizes: Sequence[float] | np.ndarray) -> float:
    """How many nats the sizes grow from the first place of a sequence to the last, by a straight line through their
    logarithms; 0 where they are too few, not all positive and finite, or do not lie on a line."""
    values = np.asarray(sizes, dtype=np.float64)
    if len(values) < SHORTEST_SEQUENCE or not (np.isfinite(values) & (values > 0)).all():
        return 0.0
    logs, places = np.log(values), np.arange(len(values))
    slope, offset = np.polyfit(places, logs, 1)
    spread = logs.var()
    straight = 1 - (logs - slope * places - offset).var() / spread if spread > 0 else 0.0
    return float(slope * (len(values) - 1)) if straight >= STRAIGHT_ENOUGH else 0.0


def repeated_calls(signal: Signal) -> tuple[str, float, float]:
    """The module called most often, and how many nats the size of its outputs grows over its calls, and that of their
    gradients from the last call to the first; ("", 0, 0) where none is called several times."""
    chains: dict[str, list[CallSignal]] = {}
    for name, call in signal.calls.items():
        chains.setdefault(name.split("#")[0], []).append(call)
    best = "", 0.0, 0.0
    for path, chain in chains.items():
        forward = sequence_growth([call.size for call in chain])
        backward = -sequence_growth([call.gradient_size for call in chain])
        if max(forward, backward) > max(best[1:]):
            best = path, forward, backward
    return best


def _observe(call: CallSignal, module: nn.Module, inputs: Any, y: Tensor, examples: int | None) -> None:
    x = first_tensor(inputs)
    known = x is not None and x.is_floating_point()
    call.squares_in += _mean_square(x) if known and x is not None else float("nan")
    call.squares_out += _mean_square(y)
    call.batches += 1
    along = _sequence_dim(y, examples)
    if along is not None:
        call.forward_growth = max(call.forward_growth, sequence_growth(_sizes_along(y, along)))
    dim = channel_dim(module, y)
    if y.requires_grad:

        def on_gradient(gradient: Tensor) -> None:
            largest = gradient.detach().abs().movedim(dim, 0).flatten(1).amax(1)
            seen = call.largest_gradient
            call.largest_gradient = largest if seen is None else torch.maximum(seen, largest)
            call.squares_gradient += _mean_square(gradient)

        y.register_hook(on_gradient)
    if known and x is not None and x.requires_grad and (inputs_along := _sequence_dim(x, examples)) is not None:

        def on_input_gradient(gradient: Tensor) -> None:
            backward = -sequence_growth(_sizes_along(gradient, inputs_along))
            call.backward_growth = max(call.backward_growth, backward)

        x.register_hook(on_input_gradient)


def _sequence_dim(tensor: Tensor, examples: int | None) -> int | None:
    """Which of the first two of three dims runs along a sequence: the one that does not run over examples."""
    if tensor.ndim != 3 or examples is None:
        return None
    return 1 if tensor.shape[0] == examples else 0 if tensor.shape[1] == examples else None


def _sizes_along(tensor: Tensor, dim: int) -> np.ndarray:
    return tensor.detach().double().movedim(dim, 0).flatten(1).square().mean(1).sqrt().cpu().numpy()


def _mean_square(tensor: Tensor) -> float:
    return float(norm(tensor).square()) / max(tensor.numel(), 1)

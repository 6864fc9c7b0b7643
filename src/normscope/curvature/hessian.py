"""The Hessian of a mini-batch's loss, by its products with vectors: H v = ∇(∇ℓ_B(θ) · v)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from normscope.errors import DeviceError, InvalidModel, one_line
from normscope.model.batch import Batch
from normscope.model.loss import LossFn, checked_loss, gradients_by
from normscope.model.state import untouched
from normscope.runtime.interrupts import restoring
from normscope.runtime.torch_state import Args, Function, FunctionMode, Kwargs


@dataclass(frozen=True)
class Hessian:
    """A mini-batch's loss to second order, while the model stands in the context that made it.

    Vectors are (n,), all trainable parameters that the loss depends on, in float32 (float64 where a parameter has it).
    Each parameter's part is in the order in which it lies in memory, so that channels_last stays what it is.
    """

    loss: Tensor
    """ℓ_B(θ): a float64 scalar on the device."""
    gradient: Callable[[], Tensor]
    """(n,) ∇ℓ_B(θ), a new vector at each call: of a large model none is held longer than it is needed."""
    product: Callable[[Tensor], Tensor]
    """H v of a vector (n,), which has to be of a size that the parameters' own precision can hold."""
    size: int
    """n."""
    precision: float
    """Relative rounding of one product: ten units in the last place of the least precise parameter."""


@restoring
def hessian(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None) -> Iterator[Hessian]:
    """The loss, its gradient and products with its Hessian, in training mode; leaves the model untouched.

    One forward pass and one backward pass, whose graph is kept: each product is one backward pass through both. So
    all products see the same dropout. At a kink of ReLU, where there is no second derivative, it is the one of the
    piece that automatic differentiation takes.

    Raises:
        InvalidModel: a loss with a part that cannot be differentiated twice; and see `loss.checked_loss`.
        InvalidBatch, DeviceError: see `loss.checked_loss`.
    """
    with untouched(model):
        model.train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        # Only this kernel of attention can be differentiated twice.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), _full_precision():
            with _TwiceDifferentiable():
                loss = checked_loss(model, batch, loss_fn)
            found = gradients_by(loss, parameters, create_graph=True)
            used = [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]
            if not used:
                raise InvalidModel(f"the loss of {type(model).__name__} depends on no trainable parameter")
            moved = [p for p, _ in used]
            curved = [i for i, (_, g) in enumerate(used) if g.requires_grad]
            slopes = [used[i][1] for i in curved]
            _refuse_first_order_only(model, slopes)
            layout = Layout(moved)

            def product(vector: Tensor) -> Tensor:
                if not slopes:  # a loss linear in its parameters
                    return torch.zeros_like(vector)
                parts = layout.parts(vector)
                along = [parts[i].to(moved[i]) for i in curved]
                with _second_derivative(model):
                    curvature = [*torch.autograd.grad(slopes, moved, along, retain_graph=True, allow_unused=True)]
                return layout.flat(curvature)

            def gradient() -> Tensor:
                return layout.flat([g.detach() for _, g in used])

            precision = 10 * max(torch.finfo(p.dtype).eps for p in moved)
            yield Hessian(loss.detach().double(), gradient, product, sum(layout.sizes), precision)


class _TwiceDifferentiable(FunctionMode):
    """Spells out what torch's own kernel differentiates only once: the hard sigmoid of MobileNetV3."""

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6((args[0] if args else (kwargs or {})["input"]) + 3) / 6
        return func(*args, **(kwargs or {}))


class Layout:
    """Where each parameter lies in a flat vector: one behind the other, each in its own order in memory."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.dtype = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        self.device = parameters[0].device
        self.sizes = [p.numel() for p in parameters]
        self.shapes = [(p.shape, torch.empty_like(p, device="meta").stride()) for p in parameters]

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Each parameter's part of a vector (n,), in its shape: views."""
        pieces = vector.split(self.sizes)
        return [part.as_strided(*shape, part.storage_offset()) for part, shape in zip(pieces, self.shapes, strict=True)]

    def flat(self, parts: list[Tensor] | list[Tensor | None]) -> Tensor:
        """The vector (n,) of these parts, which are let go of one after the other; None stands for zeros."""
        vector = torch.zeros(sum(self.sizes), dtype=self.dtype, device=self.device)
        for place in reversed(self.parts(vector)):
            if (part := parts.pop()) is not None:
                place.copy_(part.to_dense() if part.is_sparse else part)
        return vector


def _refuse_first_order_only(model: nn.Module, slopes: Sequence[Tensor]) -> None:
    """Look for functions marked `once_differentiable`: autograd, asked for the parameters' part only, would take their
    second derivative for zero without a word.

    Raises:
        InvalidModel: where there is one.
    """
    todo = [slope.grad_fn for slope in slopes]
    seen = set(todo)
    while todo:
        node = todo.pop()
        if node is None:
            continue
        if node.name() == "torch::autograd::Error":
            raise InvalidModel(
                f"{type(model).__name__} cannot be differentiated twice: one of its functions is once_differentiable"
            )
        fresh = {following for following, _ in node.next_functions} - seen
        seen |= fresh
        todo.extend(fresh)


@restoring
def _full_precision() -> Iterator[None]:
    """Without TF32, which keeps ten bits of a float32's 23 in products on a GPU."""
    settings: tuple[Any, Any] = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = False
        yield
    finally:
        for setting, allowed in zip(settings, before, strict=True):
            setting.allow_tf32 = allowed


@contextmanager
def _second_derivative(model: nn.Module) -> Iterator[None]:
    """Say in one line what kept a gradient from being differentiated again."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError("out of memory in a second derivative: give a smaller batch") from error
    except RuntimeError as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise DeviceError("out of memory in a second derivative: give a smaller batch") from error
        raise InvalidModel(
            f"{type(model).__name__} cannot be differentiated twice ({one_line(error)}): choose operations that can, "
            "for a recurrent net on a GPU torch.backends.cudnn.enabled = False"
        ) from error

"""Do the summands of a kernel's gradient cancel, or do they all pull the same way? (Table 1)

The gradient of one kernel entry is a sum over examples b and output positions p, each summand the product of an input
value x and a gradient g at the layer's output. For the entry (o, i, k) of a convolution

    d_bp = g_{b,o,p} · x_{b,i,p+k},    a = Σ_bp |d_bp|,    b = |Σ_bp d_bp|,

each averaged over the kernel's entries; a/b is 1 where all summands share their sign, and grows like √n where the
signs of the n summands are independent. Since |g · x| = |g| · |x|, all the a of a layer together are its weight
gradient taken with |g| and |x| in place of g and x: no summand is ever stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn
from torch.nn.grad import conv1d_weight, conv2d_weight, conv3d_weight

from normscope.errors import InvalidModel
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.layers import LayerCall, channel_dim, depths, record_calls, watched_modules
from normscope.model.loss import LossFn, checked_loss, gradients_by
from normscope.model.state import untouched
from normscope.probes.moments.fast import moments
from normscope.results.schema import DEPTH, LAYER, measured, variable

VARIABLES = (
    LAYER,
    DEPTH,
    variable("sum_of_absolutes", "layer", "a, mean over entries of Σ|d|", "a = Σ|d|, a mean over the kernel's entries"),
    variable("absolute_of_sum", "layer", "b, mean over entries of |Σd|", "b = |Σd|, a mean over the kernel's entries"),
    variable("ratio", "layer", "cancellation a/b", "a/b; inf where everything cancels, NaN where all is zero"),
    variable("normalized_ratio", "layer", "cancellation (a/b)/√n", "(a/b)/√n: about 1 for independent signs"),
    variable("num_terms", "layer", "number of summands n", "n: examples times output positions, padding counted"),
    variable("num_entries", "layer", "entries of the kernel"),
)

SMALLEST_SAFE_SUM = 1e-30
"""Below this float32 products start to lose digits, and the sums are taken again in float64."""

WEIGHT_GRADIENT: dict[int, Any] = {1: conv1d_weight, 2: conv2d_weight, 3: conv3d_weight}
"""By the number of spatial dimensions."""

TORCH_FORWARDS = ("torch.nn.modules.conv", "torch.nn.modules.linear")
"""Where the forward of a layer must come from for its terms to be known."""


@dataclass
class Kernel:
    """One kernel's sums so far, over all calls that use it."""

    layer: str
    absolute_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Σ |d|, averaged over the entries."""
    signed_sum: Tensor = field(default_factory=lambda: torch.zeros(()))
    """Σ d of every entry, in the kernel's shape."""
    num_terms: int = 0


def _kernel_gradient(module: nn.Module, inputs: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of a layer's weight, in the weight's shape, from its inputs and the gradient at its output.

    It is bilinear in both, and what it adds up are the terms d of the module's docstring.

    Args:
        module: a convolution of one to three dimensions (grouped, dilated, strided, transposed, padded in any way) or
            a linear map.
        inputs: (batch, in_channels, *positions), or (..., in_features).
        gradient: (batch, out_channels, *positions), or (..., out_features).
    """
    if isinstance(module, nn.Linear):
        return gradient.reshape(-1, module.out_features).T @ inputs.reshape(-1, module.in_features)
    assert isinstance(module, nn.modules.conv._ConvNd)
    spatial = len(module.kernel_size)
    if inputs.ndim == spatial + 1:
        inputs, gradient = inputs[None], gradient[None]
    padding: Any = module.padding
    if isinstance(padding, str) or module.padding_mode != "zeros":
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs, padding = F.pad(inputs, module._reversed_padding_repeated_twice, mode=mode), 0
    if module.transposed:  # the transpose of the convolution that takes outputs to inputs, with the same kernel
        inputs, gradient = gradient, inputs
    shape = (gradient.shape[1], inputs.shape[1] // module.groups, *module.kernel_size)
    return WEIGHT_GRADIENT[spatial](inputs, shape, gradient, module.stride, padding, module.dilation, module.groups)


def num_terms(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    """How many terms d_bp add up to one entry's gradient in one call: examples times positions, zeros of the padding
    counted."""
    if isinstance(module, nn.Linear):
        return inputs.numel() // module.in_features
    assert isinstance(module, nn.modules.conv._ConvNd)
    return inputs.numel() // module.in_channels if module.transposed else output.numel() // module.out_channels


@instrument
def gradient_cancellation(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFn | None = None,
    layers: str | Sequence[str] | None = None,
    frozen_statistics: bool = False,
) -> xr.Dataset:
    """How far the summands of every kernel's gradient cancel (table 1), in execution order.

    One forward and one backward pass in training mode, which takes each layer's sums when it comes by it and keeps
    nothing; the model comes back untouched. A kernel that is used several times has the summands of all its calls.

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes.
        layers: None for all; else shell patterns on module paths ("layer1.*.conv1").
        frozen_statistics: batch norm normalizes by the same batch's mean and variance, but as constants: outputs and
            loss are the same, and the backward pass no longer centres the gradient. The control of the table.

    Returns:
        Dataset over `layer`, every trainable convolution and linear map: `sum_of_absolutes` (a), `absolute_of_sum` (b),
        `ratio` (a/b; inf where everything cancels, NaN where all is zero), `normalized_ratio` ((a/b)/√n), `num_terms`
        (n: examples times output positions, padding counted) and `num_entries`, those of the kernel; and the coordinate
        `depth(layer)`, its place on the main path (NaN on a shortcut). The attribute `left_out` lists layers with
        weights that have no such sums: frozen, unused, or no convolution or linear map with torch's own forward.

    Raises:
        InvalidModel: where no layer matches or none can be measured, or there is no batch norm to freeze; and see
            `loss.checked_loss`.

    Example:
        Inputs and output gradients of one sign: nothing cancels, a = b.

        >>> model = nn.Linear(3, 1)
        >>> dataset = ns.gradient_cancellation(model, torch.ones(4, 3), loss_fn=lambda model, x: model(x).mean())
        >>> float(dataset["ratio"][0]), int(dataset["num_terms"][0])
        (1.0, 4)
    """
    watched = watched_modules(model, layers)
    for smallest in (torch.float32, torch.float64):
        found, kernels = _kernels(model, batch, loss_fn, watched, frozen_statistics, smallest)
        sums = torch.stack([_sums(kernel) for kernel in kernels]).cpu().numpy()
        if np.isfinite(sums).all() and (sums[sums > 0] > SMALLEST_SAFE_SUM).all():
            break
    a, b = sums.T
    n = np.array([kernel.num_terms for kernel in kernels])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = a / b
    names = [kernel.layer for kernel in kernels]
    parameter = next(model.parameters())
    values = {
        "sum_of_absolutes": a,
        "absolute_of_sum": b,
        "ratio": ratio,
        "normalized_ratio": ratio / np.sqrt(n),
        "num_terms": n,
        "num_entries": [kernel.signed_sum.numel() for kernel in kernels],
        "layer": names,
        "depth": depths(names),
    }
    attrs = {
        "frozen_statistics": frozen_statistics,
        "left_out": [path for path in watched if path not in found],
    }
    return measured(VARIABLES, values, device=parameter.device, dtype=parameter.dtype, attrs=attrs)


def _sums(kernel: Kernel) -> Tensor:
    """a and b of a kernel, (2,) float64."""
    return torch.stack([kernel.absolute_sum, kernel.signed_sum.abs().mean(dtype=torch.float64)])


def _kernels(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFn | None,
    watched: dict[str, nn.Module],
    frozen_statistics: bool,
    smallest: torch.dtype,
) -> tuple[set[str], list[Kernel]]:
    """The paths that were measured, and the sums of their kernels, in execution order."""
    terms = Terms(smallest)
    known = {path: module for path, module in watched.items() if _has_known_terms(module)}
    with untouched(model):
        model.train()
        if frozen_statistics:
            _freeze_statistics(model)
        with torch.enable_grad(), record_calls(model, terms.on_call, known):
            loss = checked_loss(model, batch, loss_fn)
            terms.loss_known = True
            # The kernels' own gradients are not asked for, so that autograd computes none of them.
            unseen = [module for module in model.modules() if module not in terms.called]
            others = [p for module in unseen for p in module.parameters(recurse=False) if p.requires_grad]
            if terms.called:
                gradients_by(loss, terms.taps + others)
    kernels = [kernel for kernel in terms.kernels.values() if kernel.num_terms]
    if not kernels:
        some = ", ".join(list(watched)[:3])
        raise InvalidModel(
            f"none of {some} is a trainable convolution or linear map that the loss depends on: name others"
        )
    return terms.measured, kernels


def _has_known_terms(module: nn.Module) -> bool:
    """Whether a module is a trainable convolution or linear map that computes what torch's own does."""
    if not isinstance(module, nn.modules.conv._ConvNd | nn.Linear) or "forward" in vars(module):
        return False
    trainable = any(p.requires_grad for name, p in module.named_parameters() if name != "bias")
    return trainable and type(module).forward.__module__ in TORCH_FORWARDS


@dataclass
class Terms:
    """Adds up the terms of every kernel during a backward pass."""

    smallest: torch.dtype
    """What is added up in, where a layer's own dtype is not wider."""
    kernels: dict[object, Kernel] = field(default_factory=dict)
    """By the weight, which several modules may share, or by the module where the weight is computed."""
    called: set[nn.Module] = field(default_factory=set)
    measured: set[str] = field(default_factory=set)
    """Paths of the modules whose gradient arrived."""
    taps: list[Tensor] = field(default_factory=list)
    """Zeros added to the outputs where no gradient would arrive otherwise: every watched layer lies between the loss
    and one of them, or a parameter of a module that is not watched."""
    loss_known: bool = False
    """A gradient that arrives before is one that the loss itself asks for."""

    def on_call(self, call: LayerCall) -> Tensor | None:
        """Note the terms of a call, once its gradient arrives."""
        if not torch.is_grad_enabled():
            return None
        module, output, path = call.module, call.output, call.name.split("#")[0]
        self.called.add(module)
        inputs = call.inputs[0] if call.inputs else call.named_inputs["input"]
        weight = module._parameters.get("weight")
        kernel = self.kernels.setdefault(module if weight is None else weight, Kernel(path))
        if not inputs.requires_grad or inputs.is_leaf:
            self.taps.append(torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True))
            output = output + self.taps[-1]
        elif output._base is not None:
            output = output.clone()  # changing a view in place takes its hooks out of the backward pass
        saved, version = [inputs.detach()], inputs._version

        def on_gradient(gradient: Tensor) -> None:
            if not self.loss_known:
                raise InvalidModel(
                    f"the loss differentiates inside itself: the gradient of {path} is no sum over outputs' gradients"
                )
            x = saved.pop()
            if x._version != version:
                raise InvalidModel(f"the input of {path} is changed in place after its call: its terms are lost")
            self.measured.add(path)
            self.add(kernel, module, x, gradient)

        output.register_hook(on_gradient)
        return output

    @torch.no_grad()
    def add(self, kernel: Kernel, module: nn.Module, inputs: Tensor, gradient: Tensor) -> None:
        """Add the terms of one call."""
        dtype = torch.promote_types(inputs.dtype, self.smallest)
        with torch.autocast(inputs.device.type, enabled=False):
            x, g = inputs.to(dtype), gradient.to(dtype)
            kernel.signed_sum = kernel.signed_sum + _kernel_gradient(module, x, g)
            absolute = _kernel_gradient(module, x.abs(), g.abs())
            kernel.absolute_sum = kernel.absolute_sum + absolute.mean(dtype=torch.float64)
        kernel.num_terms += num_terms(module, inputs, gradient)


def _freeze_statistics(model: nn.Module) -> None:
    """Hook every batch norm, in training mode, to pass gradients on as if the batch's mean and variance were constants.

    Its own parameters get no gradient.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
        assert isinstance(module, nn.modules.batchnorm._BatchNorm)
        if not module.training and module.running_mean is not None:
            return output  # it stays in evaluation mode: its statistics are constants already
        inputs = args[0] if args else kwargs["input"]
        dim = channel_dim(module, output)
        slope = _inverse_deviation(module, inputs, output, dim)
        if module.weight is not None:
            slope = slope * module.weight.detach()
        along_channels = slope.to(output.dtype).view(-1, *[1] * (output.ndim - 1 - dim))
        return _WithSlope.apply(inputs, [output.detach()], along_channels)  # pyright: ignore[reportReturnType]

    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        raise InvalidModel(f"{type(model).__name__} has no batch norm: there are no statistics to freeze")
    for norm in norms:
        norm.register_forward_hook(hook, prepend=True, with_kwargs=True)


def _inverse_deviation(module: nn.modules.batchnorm._BatchNorm, inputs: Tensor, output: Tensor, dim: int) -> Tensor:
    """1/√(σ² + ε) of every channel: (channels,), from what torch's own backward pass would use, where it keeps that."""
    if output.grad_fn is not None and output.grad_fn.name() == "NativeBatchNormBackward0":
        return output.grad_fn._saved_result2  # pyright: ignore[reportAttributeAccessIssue]
    _, variance = moments(inputs, dim)
    return (variance + module.eps).rsqrt()


class _WithSlope(torch.autograd.Function):
    """A given output, whose derivative by the input is given too."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, output: list[Tensor], slope: Tensor) -> Tensor:
        ctx.dtype = inputs.dtype
        ctx.save_for_backward(slope)
        return output.pop()  # in a list: autograd would take a tensor for another input

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return (gradient * slope).to(ctx.dtype), None, None

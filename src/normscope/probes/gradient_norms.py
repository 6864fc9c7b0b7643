"""How large are the gradients, layer by layer, for weights and for activations: do they explode backwards too?

For every watched call with weight W and output y (of n entries), in one backward pass of the mini-batch's loss ℓ

    weight gradient ‖∂ℓ/∂W‖,    update ratio ‖∂ℓ/∂W‖ / ‖W‖,    activation gradient rms ‖∂ℓ/∂y‖ / √n.

A step of plain SGD with learning rate lr changes W by lr · update ratio, relative to its norm.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.errors import InvalidModel
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.layers import LayerCall, depths, own_parameters, record_calls
from normscope.model.loss import LossFn, checked_loss, gradients_by
from normscope.model.state import untouched
from normscope.model.vector_norm import norm_of_each, norms_of
from normscope.results.schema import DEPTH, LAYER, measured, variable

VARIABLES = (
    LAYER,
    DEPTH,
    variable("weight_gradient_norm", "layer", "norm of the weight's gradient", "‖∂ℓ/∂W‖"),
    variable("weight_norm", "layer", "norm of the weight", "‖W‖"),
    variable("update_ratio", "layer", "update to weight at a learning rate of 1", "‖∂ℓ/∂W‖ / ‖W‖"),
    variable("activation_gradient_norm", "layer", "norm of the output's gradient", "‖∂ℓ/∂y‖"),
    variable("activation_gradient_rms", "layer", "rms of the output's gradient", "‖∂ℓ/∂y‖ / √n"),
    variable("num_weights", "layer", "number of weights"),
    variable("has_weight_gradient", "layer", "weight has a gradient", "False where nothing differentiates it"),
    variable("has_activation_gradient", "layer", "output has one", "False where the loss does not depend on it"),
)


@instrument
def gradient_norms(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFn | None = None,
    layers: str | Sequence[str] | None = None,
    training: bool = True,
) -> xr.Dataset:
    """Norms of the weight's and of the output's gradient for every watched call, in execution order.

    One forward and one backward pass; the model comes back untouched. A layer's weight is all that it owns with two
    dimensions or more (all of its parameters, where a pattern names a layer that has only biases or scales).

    Args:
        batch: `(inputs, labels)`, a mapping, or anything `loss_fn(model, batch)` takes.
        layers: None for every layer that owns a weight; else shell patterns on module paths ("layer1.*.conv1").
        training: batch norm normalizes by the batch, as in training; False takes the running statistics.

    Returns:
        Dataset over `layer`: `weight_gradient_norm`, `weight_norm`, `update_ratio` (their quotient: what SGD with a
        learning rate of 1 changes, relative to the weight), `activation_gradient_norm` and `activation_gradient_rms`
        (over examples, positions and channels; of a mean loss, so with the factor 1/examples), `num_weights`,
        `has_weight_gradient` and `has_activation_gradient` (False where nothing is differentiated: a frozen weight, an
        output that no trainable parameter or no loss depends on; its norms are NaN); and the coordinate `depth`, its
        place on the main path (NaN on a shortcut). A layer's second call repeats the weight's numbers, which belong to
        all its calls together.

    Raises:
        InvalidModel: where no layer matches, and see `loss.checked_loss`.

    Example:
        >>> net = ns.build_net("mlp3", norm="none", in_channels=1, image_size=8, seed=0)
        >>> batch = next(ns.batches(ns.load_data("digits"), 64, seed=0))
        >>> dataset = ns.gradient_norms(net, batch)
        >>> dataset["layer"].values.tolist()
        ['hidden.0.linear', 'hidden.1.linear', 'fc']
        >>> bool((dataset["update_ratio"] > 0).all())
        True
    """
    names: list[str] = []
    modules: list[nn.Module] = []
    sizes: list[int] = []
    of_output: dict[int, Tensor] = {}

    def on_call(call: LayerCall) -> Tensor | None:
        place, output = len(names), call.output
        names.append(call.name)
        modules.append(call.module)
        sizes.append(output.numel())
        if not output.requires_grad:
            return None
        if output is call.result and output._base is not None:
            output = output.clone()  # changing a view in place takes its hooks out of the backward pass
        output.register_hook(lambda gradient: of_output.update({place: _norm(gradient)}))
        return output if output is not call.output else None

    parameters = [p for p in model.parameters() if p.requires_grad]
    with untouched(model), torch.enable_grad(), record_calls(model, on_call, layers):
        model.train(training)
        loss = checked_loss(model, batch, loss_fn)
        used = [(p, g) for p, g in zip(parameters, gradients_by(loss, parameters), strict=True) if g is not None]
        if not used:
            raise InvalidModel(f"the loss of {type(model).__name__} depends on no trainable parameter")
        of_gradient = dict(zip([p for p, _ in used], norm_of_each([g for _, g in used]).tolist(), strict=True))
        weights = [_weights_of(module) for module in modules]
        all_weights = list(dict.fromkeys(p for own in weights for p in own))
        of_weight = dict(zip(all_weights, norm_of_each([p.detach() for p in all_weights]).tolist(), strict=True))
    found = [[of_gradient[p] for p in own if p in of_gradient] for own in weights]
    weight_gradient = np.array([total(each) for each in found])
    weight = np.array([total([of_weight[p] for p in own]) for own in weights])
    activation = np.full(len(names), np.nan)
    if of_output:
        activation[list(of_output)] = torch.stack(list(of_output.values())).cpu().numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        update_ratio = weight_gradient / weight
    parameter = parameters[0]
    values = {
        "weight_gradient_norm": weight_gradient,
        "weight_norm": weight,
        "update_ratio": update_ratio,
        "activation_gradient_norm": activation,
        "activation_gradient_rms": activation / np.sqrt(sizes),
        "num_weights": [sum(p.numel() for p in own) for own in weights],
        "has_weight_gradient": [bool(each) for each in found],
        "has_activation_gradient": [i in of_output for i in range(len(names))],
        "layer": names,
        "depth": depths(names),
    }
    return measured(VARIABLES, values, device=parameter.device, dtype=parameter.dtype, training=training)


def _weights_of(module: nn.Module) -> list[nn.Parameter]:
    """A layer's own parameters with two dimensions or more; all its own, where it has no such."""
    own = own_parameters(module)
    return [parameter for parameter in own if parameter.ndim >= 2] or own


def _norm(tensor: Tensor) -> Tensor:
    """Euclidean norm of all entries, in float64, finite wherever they are: a scalar."""
    return norms_of(tensor.detach().flatten() if tensor.is_contiguous() else _in_memory_order(tensor))


def total(norms: list[float]) -> float:
    """The norm of several parts together; NaN of none."""
    return math.hypot(*norms) if norms and not any(map(math.isnan, norms)) else math.nan


def _in_memory_order(tensor: Tensor) -> Tensor:
    """The entries as they lie in memory, without a copy where they lie there without gaps."""
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.detach().permute(order).flatten()

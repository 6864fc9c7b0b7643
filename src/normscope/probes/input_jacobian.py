"""How unevenly does a network stretch its input? The spectrum of its input-output Jacobian (beside figure 7).

For example b of a batch, with outputs f_b and inputs x, its own Jacobian, and how much that leaves out, are

    J_b = d f_b / d x_b,        outside share = sum_{c != b} ||d f_b / d x_c||^2 / sum_c ||d f_b / d x_c||^2.

Without batch statistics f_b depends on x_b alone and the share is zero. Under batch norm in training mode
every example moves the mean and variance that all are normalized by: J_b includes the way through them, as
the network computes it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from normscope.curvature.singular_values import RESOLUTION, conditioning, effective_rank
from normscope.errors import InvalidBatch, InvalidConfig, InvalidModel
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.loss import LossFn, readable_errors
from normscope.model.output import Output, call, entry
from normscope.model.state import untouched
from normscope.results.schema import coord, measured, variable
from normscope.runtime.progress import progress

OF = "of the input-output Jacobian"

VARIABLES = (
    coord("example", "example of the batch"),
    coord("index", "place, the largest first"),
    variable("singular_value", "example index", f"singular value {OF}", "of J_b, descending"),
    variable("resolved", "example index", "above the rounding of the Jacobian", "False where rounding may hide it"),
    variable("condition_number", "example", f"condition number {OF}", "largest over smallest singular value"),
    variable("condition_is_bound", "example", "the condition number is only a lower bound"),
    variable("effective_rank", "example", f"effective rank {OF}", "(Σs²)² / Σs⁴"),
    variable("outside_share", "example", "share in other examples' inputs", "0 where examples do not see each other"),
)

MAX_OUTPUTS = 4096
"""Every output costs a backward pass; more than this, such as all logits of a text, is hardly meant."""


@instrument
def input_jacobian(
    model: nn.Module,
    batch: Batch,
    *,
    loss_fn: LossFn | None = None,
    num_examples: int = 4,
    training: bool = True,
) -> xr.Dataset:
    """Singular values of d outputs / d inputs of the first `num_examples` examples of a batch.

    Costs a forward pass and one backward pass for each output; where batch statistics couple the examples,
    which is found out by number, one for each output of each example. Leaves no trace.

    Args:
        batch: inputs (batch, ...), `(inputs, labels)`, a mapping for `model(**batch)`, or what `loss_fn`
            takes.
        loss_fn: only says how the model is fed: what it is called with and gives inside `loss_fn(model,
            batch)` are the inputs and outputs. It must be called with exactly one tensor of floating point,
            and give a tensor (batch, ...) or a mapping or object with such `logits`; outputs are flattened
            for each example.
        training: batch norm normalizes by the batch, as in training; False takes the running statistics.

    Returns:
        Over (example, index): `singular_value`, descending, and `resolved`, False where rounding may have
        eaten the value. Over (example): `condition_number` = largest / smallest with `condition_is_bound`,
        True where the smallest is not resolved (or zero, as ReLU leaves it) and the true number is larger;
        `effective_rank` = (sum s^2)^2 / sum s^4; and `outside_share`. A Jacobian or an output that is not
        finite gives NaN.

    Raises:
        InvalidBatch: inputs that cannot be differentiated, such as token numbers, or that the model does not
            take.
        InvalidModel: outputs without one row for each example, too many, or cut off from the inputs.

    Example:
        A linear map's Jacobian is its matrix.

        >>> model = nn.Linear(3, 3)
        >>> _ = nn.init.orthogonal_(model.weight)
        >>> ns.input_jacobian(model, torch.ones(4, 3))["singular_value"].values[0].round(5).tolist()
        [1.0, 1.0, 1.0]
    """
    if num_examples < 1:
        raise InvalidConfig(f"num_examples={num_examples}: it must be at least 1")
    with untouched(model), torch.enable_grad():
        model.train(training)
        leaf, outputs = _forward(model, batch, loss_fn)
        own, share = _own_jacobians(leaf, outputs, min(num_examples, len(leaf)))
    matrices = own.double().cpu().numpy()
    matrices[~outputs[: len(matrices)].detach().isfinite().all(1).cpu().numpy()] = (
        np.nan
    )  # there is no derivative there
    finite = np.isfinite(matrices).all((1, 2))
    values = np.full((len(matrices), min(matrices.shape[1:])), np.nan)
    values[finite] = np.linalg.svd(matrices[finite], compute_uv=False)
    eps = torch.finfo(own.dtype).eps
    condition, is_bound, resolved = conditioning(values, RESOLUTION / torch.finfo(torch.float64).eps * eps)
    result = {
        "singular_value": values,
        "resolved": resolved,
        "condition_number": condition,
        "condition_is_bound": is_bound,
        "effective_rank": effective_rank(values),
        "outside_share": share.cpu().numpy(),
        "example": np.arange(len(values)),
        "index": np.arange(values.shape[1]),
    }
    config = {"training": training, "batch_size": len(leaf)}
    attrs = {"probe": "input_jacobian"}
    return measured(VARIABLES, result, device=own.device, dtype=own.dtype, attrs=attrs, **config)


def _own_jacobians(leaf: Tensor, outputs: Tensor, num_examples: int) -> tuple[Tensor, Tensor]:
    """J_b of the first examples, (num_examples, outputs, inputs), and their outside shares, (num_examples,),
    of outputs (batch, outputs) computed from the leaf (batch, ...)."""

    def pull_back(cotangent: Tensor) -> Tensor:
        with readable_errors():
            (gradient,) = torch.autograd.grad(outputs, leaf, cotangent, retain_graph=True, allow_unused=True)
        if gradient is None:
            raise InvalidModel("the output does not depend on the input as it is given: does forward detach it?")
        return gradient.flatten(1)

    own = leaf.new_empty(num_examples, outputs.shape[1], leaf[0].numel())
    share = torch.zeros(num_examples, dtype=torch.float64, device=leaf.device)
    if not _coupled(outputs, pull_back):
        with progress("input_jacobian", outputs.shape[1]) as bar:
            for k in range(outputs.shape[1]):
                bar.advance("a backward pass an output")
                cotangent = torch.zeros_like(outputs)
                cotangent[:num_examples, k] = 1
                own[:, k] = pull_back(cotangent)[:num_examples]
        return own, share
    with progress("input_jacobian", num_examples * outputs.shape[1]) as bar:
        for b in range(num_examples):
            squares = torch.zeros(len(leaf), dtype=torch.float64, device=leaf.device)
            for k in range(outputs.shape[1]):
                bar.advance("examples depend on each other: a backward pass an output and example")
                cotangent = torch.zeros_like(outputs)
                cotangent[b, k] = 1
                rows = pull_back(cotangent)
                own[b, k] = rows[b]
                squares += rows.double().square().sum(1)
            share[b] = 1 - squares[b] / squares.sum()
    return own, share


def _forward(model: nn.Module, batch: Batch, loss_fn: LossFn | None) -> tuple[Tensor, Tensor]:
    """A leaf in the place of the model's input, and its outputs as (batch, outputs)."""
    leaves: list[Tensor] = []
    outputs: list[Output] = []

    def feed(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if leaves:
            return None  # the model calls itself, or loss_fn calls it again: its first call counts
        arguments = {**dict(enumerate(args)), **kwargs}
        tensors = {k: v for k, v in arguments.items() if isinstance(v, Tensor) and k != "labels"}
        found = [k for k, v in tensors.items() if v.is_floating_point()]
        if len(found) != 1:
            raise InvalidBatch(
                f"{len(found)} of the model's {len(arguments)} arguments are tensors of floating point: "
                "exactly one must be, the input to differentiate by"
            )
        given = tensors[found[0]]
        if not given.ndim or not given.numel():
            raise InvalidBatch("the input is empty or one number: give (batch, ...), one example or more")
        if given.layout != torch.strided:
            raise InvalidBatch(f"the input is {given.layout}: give it dense, as input.to_dense()")
        leaves.append(given.detach().clone().requires_grad_())
        arguments[found[0]] = leaves[0].clone()  # networks may work on their input in place; a leaf forbids it
        return tuple(arguments[i] for i in range(len(args))), {k: arguments[k] for k in kwargs}

    def keep(_module: nn.Module, _args: object, output: Output) -> None:
        outputs.append(output)

    hooks = [model.register_forward_pre_hook(feed, with_kwargs=True), model.register_forward_hook(keep)]
    try:
        with readable_errors():
            if loss_fn is not None:
                loss_fn(model, batch)
            else:
                call(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not outputs:
        raise InvalidModel("loss_fn did not call the model: there is no input and no output to compare")
    logits = entry(outputs[0], "logits")
    return leaves[0], _rows(outputs[0] if logits is None else logits, leaves[0])


def _rows(output: Output, leaf: Tensor) -> Tensor:
    """The outputs flattened to (batch, outputs)."""
    if not isinstance(output, Tensor) or output.ndim < 1 or len(output) != len(leaf):
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InvalidModel(f"the output is {what}, not one row for each of {len(leaf)} examples: wrap the model")
    if not output.requires_grad:
        raise InvalidModel("the output does not depend on the input: is the model under no_grad or detached?")
    outputs = output.flatten(1) if output.ndim > 1 else output[:, None]
    if not 0 < outputs.shape[1] <= MAX_OUTPUTS:
        raise InvalidModel(
            f"{outputs.shape[1]} outputs an example, one backward pass each: wrap the model to give 1 to {MAX_OUTPUTS}"
        )
    return outputs


def _coupled(outputs: Tensor, pull_back: Callable[[Tensor], Tensor]) -> bool:
    """Whether an example's outputs depend on other examples' inputs: every second one is asked."""
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(outputs.shape, generator=generator).to(outputs)
    cotangent[1::2] = 0
    return bool((pull_back(cotangent)[1::2] != 0).any())

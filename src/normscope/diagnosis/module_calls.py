"""What every module of a model gets and gives in evaluation mode, and which is the first to change what it is given."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from normscope.model.batch import Batch
from normscope.model.loss import LossFn, default_loss
from normscope.model.output import Output, first_tensor, output_tensor
from normscope.model.state import seeded

Calls = list[tuple[str, Tensor | None, Tensor]]
"""(path, input, output) of the modules that give a tensor of the wanted shape, in the order in which they end."""

LEAKS = 1e-3
"""From this share of the outputs' size on a change is no rounding."""


def module_calls(
    model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int, shaped: Callable[[Tensor], Tensor | None]
) -> Calls | None:
    """The calls of one batch in float64; None where the model is not called exactly once, or does not take it.

    Args:
        shaped: brings a tensor into the wanted shape; None for one that has no such.
    """
    calls: Calls = []

    def of(value: Any) -> Tensor | None:
        tensor = output_tensor(value)
        if tensor is None or not tensor.ndim or not tensor.is_floating_point():
            return None
        found = shaped(tensor.detach().double())
        return None if found is None else found.clone()

    with seeded(model, seed, training=False):
        for path, module in model.named_modules():

            def hook(_module: nn.Module, inputs: Any, output: Output, path: str = path) -> None:
                if (given := of(output)) is not None:
                    calls.append((path, of(first_tensor(inputs)), given))

            module.register_forward_hook(hook)
        try:
            (loss_fn or default_loss)(model, batch)
        except Exception:  # somebody's own code
            return None
    return calls if sum(not path for path, *_ in calls) == 1 else None


def first_changed(before: Calls, after: Calls, at: Any) -> str:
    """The path of the first module whose output changes at these places though its input there does not; "" for
    none."""
    for (path, x, y), (_, x_after, y_after) in zip(before, after, strict=False):
        if x is None or x_after is None or not bool((x[at].isclose(x_after[at])).all()):
            continue
        if float((y[at] - y_after[at]).abs().max()) > LEAKS * float(y.abs().max()):
            return path
    return ""

"""Calling a model with a batch, and what it gives: logits, a loss, or the first tensor inside."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from normscope.model.batch import Batch

Output = Any
"""What a module gives: a tensor, a nest of them, or an object of somebody's own that holds some."""


def call(model: nn.Module, batch: Batch) -> Output:
    """What the model gives for a mapping's items, a pair's inputs or a tensor."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, tuple | list) and batch else batch)


@contextmanager
def outputs_in_place(model: nn.Module, give: Callable[..., Any]) -> Iterator[list[int]]:
    """The model gives what this gives of the same arguments; yields a list that grows with every call."""
    calls: list[int] = []

    def forward(*inputs: Any, **named: Any) -> Any:
        calls.append(1)
        return give(*inputs, **named)

    own = vars(model).get("forward")
    vars(model)["forward"] = forward
    try:
        yield calls
    finally:
        if own is None:
            del vars(model)["forward"]
        else:
            vars(model)["forward"] = own


def entry(output: Output, name: str) -> Any:
    """A named entry of an output: a mapping's item or an object's attribute; None where there is none."""
    return output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)


def first_tensor(output: Output) -> Tensor | None:
    """The first tensor in a module's output: itself, or inside a tuple, list or mapping."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if hasattr(output, "values") else output if isinstance(output, tuple | list) else ()
    return next((tensor for part in parts if (tensor := first_tensor(part)) is not None), None)


def output_tensor(output: Output) -> Tensor | None:
    """A model's output proper: its `.logits`, else its first tensor that is no scalar, so that its own `.loss` is
    passed over."""
    logits = entry(output, "logits")
    if isinstance(logits, Tensor):
        return logits
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, tuple | list):
        parts = list(output)
    else:
        parts = [output] if isinstance(output, Tensor) else list(getattr(output, "__dict__", {}).values())
    tensors = (first_tensor(part) for part in parts)
    return next((tensor for tensor in tensors if tensor is not None and tensor.ndim), None)

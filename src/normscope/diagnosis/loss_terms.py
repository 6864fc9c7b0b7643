"""What a loss is the sum of: a scalar that was made by adding is taken apart, through factors that are plain numbers.

    ℓ = Σ_k w_k ℓ_k        share of term k:  |w_k ℓ_k| / Σ_j |w_j ℓ_j|

A term is a *penalty* where no module's output is in it and it is the same on another batch: it knows the parameters
alone. Terms have the names that the model gives them in a mapping of losses, else those of their operations.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.model.batch import Batch
from normscope.model.loss import LossFn, default_loss
from normscope.model.output import Output, first_tensor
from normscope.model.state import untouched
from normscope.runtime.torch_state import Args, Function, Kwargs

ADDS = ("add", "add_", "__add__", "__radd__", "__iadd__")
FACTORS = ("mul", "mul_", "__mul__", "__rmul__", "__imul__")
QUOTIENTS = ("div", "div_", "__truediv__", "__itruediv__", "true_divide")

SAME = 1e-6
"""Relative difference between two batches of a term that knows the parameters alone."""


@dataclass(frozen=True)
class Term:
    """One summand."""

    name: str
    share: float
    penalty: bool
    weighted: bool
    """Whether the loss multiplies it by a number of its own."""


class Judged(ABC):
    """A loss whose runs are judged by another number than the one that is minimised."""

    loss_fn: LossFn | None
    """As its user has it."""
    judged: float | None
    """By which, after a call."""

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss."""


@dataclass
class Split(Judged):
    """A loss that is called as it is and keeps its summands: `chosen` names those that a run is judged by."""

    loss_fn: LossFn | None
    chosen: Callable[[str, int], bool] = lambda _name, _place: True
    scale: Callable[[str, int], float] = lambda _name, _place: 1.0
    """By which each term is multiplied in what is minimised."""
    values: list[tuple[str, Tensor, bool]] = field(default_factory=list)
    """Name, value and whether it is weighted, of the last call's terms."""
    judged: float | None = None
    """The sum of the chosen terms in the last call, unscaled."""

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss, its terms multiplied by their scales."""
        named: dict[int, tuple[str, Tensor]] = {}
        handle = model.register_forward_hook(lambda _m, _i, output: named.update(_names(output)))
        try:
            with _Adds() as adds:
                loss = (self.loss_fn or default_loss)(model, batch)
        finally:
            handle.remove()
        self.values = [
            (
                named[id(term)][0] if id(term) in named else _operation(term),
                term if factor == 1 else factor * term,
                factor != 1,
            )
            for term, factor in adds.terms(loss)
        ]
        self.judged = sum(float(v.detach()) for i, (n, v, _) in enumerate(self.values) if self.chosen(n, i))
        factors = [self.scale(name, place) for place, (name, _, _) in enumerate(self.values)]
        if all(factor == 1 for factor in factors):
            return loss
        kept = [f * value for f, (_, value, _) in zip(factors, self.values, strict=True) if f]
        return torch.stack([term.reshape(()) for term in kept]).sum()


def judged(loss_fn: LossFn | None, loss: float) -> float:
    """What a run is judged by, right after its loss was taken."""
    return loss_fn.judged if isinstance(loss_fn, Judged) and loss_fn.judged is not None else loss


def loss_terms(
    model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn | None = None, *, seed: int = 0
) -> tuple[Term, ...]:
    """The terms on the first batch; none where the loss is no sum, or is not the same sum on the second."""
    split, seen = Split(loss_fn), []
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Output) -> None:
        tensor = first_tensor(output)
        if tensor is not None and tensor.requires_grad:
            outputs.append(tensor)

    with untouched(model), torch.enable_grad():
        model.train()
        for module in model.modules():
            module.register_forward_hook(keep)
        for batch in batches[:2]:
            torch.manual_seed(seed)
            try:
                split(model, batch)
                seen.append([(n, float(v.detach()), w, not _depends(v, outputs)) for n, v, w in split.values])
            except Exception:  # somebody's own code
                return ()
    if len(seen) < 2 or len(seen[0]) < 2 or len(seen[0]) != len(seen[1]):
        return ()
    total = sum(abs(value) for _, value, *_ in seen[0])
    if not 0 < total < float("inf"):
        return ()
    return tuple(
        Term(name, abs(value) / total, alone and abs(value - other) <= SAME * abs(value), weighted)
        for (name, value, weighted, alone), (_, other, *_) in zip(*seen, strict=True)
    )


def penalty_share(terms: Sequence[Term]) -> float:
    """Of the loss, what knows the parameters alone."""
    return sum(term.share for term in terms if term.penalty)


class _Adds(TorchFunctionMode):
    """Remembers which numbers were added, and multiplied by plain numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[Tensor, list[tuple[Tensor, float]]]] = {}

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if isinstance(output, Tensor) and output.numel() == 1 and output.requires_grad and not kwargs:
            tensors = [a for a in args if isinstance(a, Tensor)]
            numbers = [a for a in args if isinstance(a, int | float)]
            if name in ADDS and all(t.numel() == 1 for t in tensors) and all(n == 0 for n in numbers):
                self.made[id(output)] = output, [(t, 1.0) for t in tensors]
            elif name in FACTORS and len(tensors) == len(numbers) == 1:
                self.made[id(output)] = output, [(tensors[0], float(numbers[0]))]
            elif name in QUOTIENTS and args[0] is tensors[0] and len(tensors) == len(numbers) == 1 and numbers[0]:
                self.made[id(output)] = output, [(tensors[0], 1 / float(numbers[0]))]
        return output

    def terms(self, loss: Tensor, factor: float = 1.0) -> list[tuple[Tensor, float]]:
        """What a number is the sum of, with its factors."""
        made = self.made.get(id(loss))
        if made is None or any(part is loss for part, _ in made[1]):
            return [(loss, factor)]
        return [term for part, own in made[1] for term in self.terms(part, factor * own)]


def _names(output: Output) -> dict[int, tuple[str, Tensor]]:
    entries = output.items() if hasattr(output, "items") else ()
    return {id(t): (str(name), t) for name, t in entries if isinstance(t, Tensor) and t.numel() == 1}


def _depends(value: Tensor, outputs: Sequence[Tensor]) -> bool:
    if not value.requires_grad:
        return False
    found = torch.autograd.grad(value.reshape(()), list(outputs), retain_graph=True, allow_unused=True)
    return any(g is not None for g in found)


def _operation(term: Tensor) -> str:
    name = type(term.grad_fn).__name__ if term.grad_fn is not None else "constant"
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", re.sub(r"Backward\d*$", "", name)).lower()

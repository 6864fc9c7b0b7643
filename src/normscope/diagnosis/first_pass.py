"""Before anything is measured: one forward and backward pass on every batch that will be used.

Looked at are: is the loss finite, and its gradient; which batch and which example are to blame, which parameters get a
gradient that is not finite, which module makes the first such number of finite ones, or which operation does so on
the way back; does the model take the batch; are the parameters sane; do outputs and targets broadcast against each
other.
"""

import math
import re
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.diagnosis.half_precision import in_float32, watching, wider
from normscope.errors import NormscopeError, raised
from normscope.model.batch import Batch, num_examples, parts_of, take, targets_of
from normscope.model.loss import LossFn, default_loss, gradients_by
from normscope.model.output import Output
from normscope.model.state import seeded
from normscope.model.vector_norm import norm
from normscope.runtime.torch_state import Args, Function, Kwargs

GARBAGE = 1e6
"""No parameter starts as large as this on purpose."""

SECONDS = 4.0
"""Of the processor: batches after that are not looked at."""

WATCHED = 2
"""Batches on which the shapes of outputs and targets are compared."""

PAIRED = ("sub", "rsub", "__sub__", "__rsub__", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "mul", "__mul__")
"""Functions of outputs and targets, element by element."""


@dataclass(frozen=True)
class NotFinite:
    """The first batch whose loss or gradient is not finite."""

    batch: int
    """Its place, from 0."""
    loss: float
    example: int = -1
    """The example of the batch that alone gives it; -1 where none does alone."""
    parameters: tuple[str, ...] = ()
    """Those whose gradient is not finite."""
    module: str | None = None
    """The path of the first module whose output is not finite though its inputs are; "" for the model's own forward."""
    kind: str = ""
    """That module's type."""
    operation: str = ""
    """The operation that is the first to give such a number, forwards or on the way back, by torch's name."""
    others: int = 0
    """How many more batches give it."""
    half: str = ""
    """The half-precision format whose range is left first, and where: "float16 in blocks.3"; empty where a wider format
    gives no finite loss either."""
    data: str = ""
    """Where the batch itself holds NaN or inf: "input 0, feature 3", "targets"; empty where it does not."""


@dataclass(frozen=True)
class Broadcast:
    """Outputs and targets whose shapes pair every example with every other."""

    output: tuple[int, ...]
    target: tuple[int, ...]
    function: str


@dataclass(frozen=True)
class FirstPass:
    """What every batch gave."""

    losses: tuple[float, ...] = ()
    """NaN where the batch was refused."""
    gradients: tuple[float, ...] = ()
    """Euclidean norms."""
    examples: tuple[int, ...] = ()
    refused: dict[int, str] = field(default_factory=dict)
    """What was raised, by the batch's place."""
    not_finite: NotFinite | None = None
    garbage: tuple[tuple[str, float], ...] = ()
    """Parameters that hold numbers not finite or absurdly large, with the worst of each."""
    broadcast: Broadcast | None = None

    @property
    def usable(self) -> list[int]:
        """The places of the batches that can be trained on."""
        pairs = enumerate(zip(self.losses, self.gradients, strict=True))
        return [i for i, (loss, gradient) in pairs if math.isfinite(loss) and math.isfinite(gradient)]

    @property
    def left_out(self) -> list[int]:
        """The places of those that cannot."""
        return sorted(set(range(len(self.losses))) - set(self.usable))

    @property
    def hopeless(self) -> str:
        """Why no rate can be measured; empty where one can."""
        if not self.usable:
            return "no batch has a finite loss and gradient"
        if any(not math.isfinite(worst) for _, worst in self.garbage):
            return "the parameters are not finite"
        if not any(self.gradients[i] > 0 for i in self.usable):
            return "the gradient is zero everywhere"
        return ""


def first_pass(
    model: nn.Module,
    batches: Iterable[Batch],
    loss_fn: LossFn | None = None,
    *,
    seed: int = 0,
    seconds: float = SECONDS,
) -> FirstPass:
    """See above; the model comes back untouched."""
    losses: list[float] = []
    gradients: list[float] = []
    examples: list[int] = []
    refused: dict[int, str] = {}
    broadcast: Broadcast | None = None
    bad: list[int] = []
    first_bad: Any = None
    begun = time.process_time()
    for place, batch in enumerate(batches):
        if place and time.process_time() - begun > seconds:
            break
        try:
            if place < WATCHED:
                with _watching(batch) as watch:
                    loss, norms = one_pass(model, batch, loss_fn, seed)
                broadcast = broadcast or watch.found
            else:
                loss, norms = one_pass(model, batch, loss_fn, seed)
        except Exception as error:  # the model and the loss are somebody's own code
            refused[place] = str(error) if isinstance(error, NormscopeError) else raised(error)
            loss, norms = math.nan, {}
        losses.append(loss)
        gradients.append(math.sqrt(sum(n * n for n in norms.values())))
        examples.append(num_examples(batch) or 0)
        if place not in refused and _wrong(loss, gradients[-1]):
            first_bad = batch if not bad else first_bad
            bad.append(place)
    return FirstPass(
        tuple(losses),
        tuple(gradients),
        tuple(examples),
        refused,
        traced(model, first_bad, loss_fn, seed, bad[0], len(bad) - 1) if bad else None,
        tuple(garbage(model)),
        broadcast,
    )


def one_pass(model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int) -> tuple[float, dict[str, float]]:
    """The loss in training mode, and the norm of every parameter's gradient; the model comes back untouched."""
    with seeded(model, seed):
        loss = (loss_fn or default_loss)(model, batch)
        # A piece that is not finite must stay so: no norm in float32 of finite numbers may overflow.
        norms = {name: float(norm(gradient)) for name, gradient in gradients_by_name(model, loss).items()}
        return float(loss.detach()), norms


def gradients_by_name(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Those of the parameters that the loss depends on."""
    named = dict(model.named_parameters()) if loss.requires_grad else {}
    found = gradients_by(loss.reshape(()), list(named.values()))
    return {name: g.detach() for name, g in zip(named, found, strict=True) if g is not None}


def traced(model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int, place: int, others: int) -> NotFinite:
    """Where the number that is not finite comes from: example, parameters, module, operation."""
    loss, norms = one_pass(model, batch, loss_fn, seed)
    if data := not_finite_data(batch):
        return NotFinite(place, loss, culprit(model, batch, loss_fn, seed), others=others, data=data)
    names = tuple(name for name, norm in norms.items() if not math.isfinite(norm))
    module, kind = (None, "") if math.isfinite(loss) else producer(model, batch, loss_fn, seed)
    return NotFinite(
        place,
        loss,
        culprit(model, batch, loss_fn, seed),
        names,
        module,
        kind,
        operation(model, batch, loss_fn, seed),
        others,
        left_range(model, batch, loss_fn, seed),
    )


def left_range(model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int) -> str:
    """See `NotFinite.half`."""
    with seeded(model, seed), watching(model) as watch:
        (loss_fn or default_loss)(model, batch)
    first = watch.first_overflow
    if first.format != "float16":
        return ""
    with wider():
        wide, wide_batch = in_float32(model, batch)
        loss, norms = one_pass(wide, wide_batch, loss_fn, seed)
    finite = math.isfinite(loss) and all(map(math.isfinite, norms.values()))
    return f"{first.format} in {first.layer or 'the forward of the model'}" if finite else ""


def not_finite_data(batch: Batch) -> str:
    """Where the batch holds NaN or inf, see `NotFinite.data`; −inf is what masks are made of."""
    targets = targets_of(batch)
    parts = list(batch.items()) if isinstance(batch, Mapping) else list(enumerate(parts_of(batch)))
    for name, part in parts:
        if not isinstance(part, Tensor) or not part.is_floating_point():
            continue
        bad = torch.isnan(part) | (part == math.inf)
        if not bool(bad.any()):
            continue
        if part is targets:
            return "the targets"
        features = bad.flatten(1).any(0).nonzero().flatten().tolist() if part.ndim == 2 else []
        where = f"feature {features[0]} of " if len(features) == 1 else ""
        return f"{where}{f'the {name!r}' if isinstance(name, str) else 'the inputs'}"
    return ""


def culprit(model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int) -> int:
    """The example that gives a loss or gradient that is not finite, by bisection; -1 where none does alone, or where
    every one does."""
    total = num_examples(batch)
    if not total:
        return -1

    def bad(examples: Sequence[int]) -> bool:
        try:
            loss, norms = one_pass(model, take(batch, list(examples)), loss_fn, seed)
        except Exception:  # a part that the model does not take
            return False
        return _wrong(loss, math.sqrt(sum(n * n for n in norms.values())))

    inside: Sequence[int] = range(total)
    while len(inside) > 1:
        half = len(inside) // 2
        first, second = inside[:half], inside[half:]
        if bad(first):
            if len(inside) == total and bad(second) and total > 2:
                return -1 if bad(second[: len(second) // 2]) and bad(second[len(second) // 2 :]) else first[0]
            inside = first
        elif bad(second):
            inside = second
        else:
            return -1
    return int(inside[0])


def producer(model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int) -> tuple[str | None, str]:
    """The path and type of the first module whose output is not finite though its inputs are; None where every module's
    output is finite, and it is the loss itself."""
    found: list[tuple[str, str]] = []
    with seeded(model, seed):
        for path, module in model.named_modules():

            def hook(m: nn.Module, inputs: Any, output: Output, path: str = path) -> None:
                if not found and not _all_finite(output) and _all_finite(inputs):
                    found.append((path, type(m).__name__))

            module.register_forward_hook(hook)
        try:
            (loss_fn or default_loss)(model, batch)
        except Exception:  # what it raised is said elsewhere
            return None, ""
    return found[0] if found else (None, "")


def operation(model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int) -> str:
    """The operation that is the first to give NaN of numbers that are none, or else the first whose derivative gives a
    number that is not finite of finite ones on the way back: "softmax", "sqrt"; empty where there is none."""
    with seeded(model, seed):
        tracer = _FirstNan()
        try:
            with tracer:
                loss = (loss_fn or default_loss)(model, batch)
            back = _first_on_the_way_back(loss)
        except Exception:  # somebody's own code
            return tracer.found
    return tracer.found or back


class _FirstNan(TorchFunctionMode):
    """Finds the first function that gives NaN where none of its inputs is NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.found = ""

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.found and _has_nan(output) and not _has_nan([args, kwargs or {}]):
            self.found = getattr(func, "__name__", "").strip("_")
        return output


def _first_on_the_way_back(loss: Tensor) -> str:
    """The first node of the graph that gives a gradient that is not finite of finite ones."""
    found: list[str] = []
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)

        def hook(given: Any, received: Any, name: str = type(node).__name__) -> None:
            if not found and _all_finite(received) and not _all_finite(given):
                found.append(re.sub(r"Backward\d*$", "", name).lower())

        if not type(node).__name__.startswith("AccumulateGrad"):
            node.register_hook(hook)
        waiting += [after for after, _ in node.next_functions]
    loss.backward()
    return found[0] if found else ""


def _has_nan(values: Any) -> bool:
    if isinstance(values, Tensor):
        return values.is_floating_point() and bool(torch.isnan(values).any())
    parts = values.values() if isinstance(values, dict) else values if isinstance(values, tuple | list) else ()
    return any(_has_nan(one) for one in parts)


def garbage(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Parameters with a number that is not finite or absurdly large, and the worst."""
    for name, parameter in model.named_parameters():
        if parameter.numel() and parameter.is_floating_point():
            worst = float(parameter.detach().abs().max())
            if not worst <= GARBAGE:
                yield name, worst


class _Watch(TorchFunctionMode):
    """Sees outputs and targets meet in shapes that pair every example with every other."""

    def __init__(self, targets: Tensor | None) -> None:
        super().__init__()
        self.targets = targets
        self.found: Broadcast | None = None

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        name = getattr(func, "__name__", "")
        if self.found is None and self.targets is not None and name in PAIRED and len(args) > 1:
            a, b = args[:2]
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.requires_grad is not b.requires_grad:
                output, target = (a, b) if a.requires_grad else (b, a)
                self._compare(output, target, name)
        return func(*args, **(kwargs or {}))

    def _compare(self, output: Tensor, target: Tensor, name: str) -> None:
        same = output.numel() == target.numel() and output.shape != target.shape and output.numel() > 1
        known = self.targets
        if not same or known is None or known.numel() != target.numel():
            return
        if target.shape != known.shape and not torch.equal(target.detach().flatten(), known.flatten().to(target)):
            return  # something else of as many numbers
        if torch.broadcast_shapes(output.shape, target.shape).numel() > output.numel():
            self.found = Broadcast(tuple(output.shape), tuple(target.shape), name.strip("_"))


@contextmanager
def _watching(batch: Batch) -> Iterator[_Watch]:
    watch = _Watch(targets_of(batch))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using a target size")
        with watch:
            yield watch


def _wrong(loss: float, gradient: float) -> bool:
    return not (math.isfinite(loss) and math.isfinite(gradient))


def _all_finite(values: Any) -> bool:
    if isinstance(values, Tensor):
        return not values.is_floating_point() or bool(torch.isfinite(values).all())
    parts = values.values() if hasattr(values, "values") else values if isinstance(values, tuple | list) else ()
    return all(_all_finite(one) for one in parts)

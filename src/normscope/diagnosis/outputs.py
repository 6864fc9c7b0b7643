"""What a model's output is and what the loss takes it for, told by numbers and never by a module's type.

Activations are told by comparing what one watched layer gives with what the next one gets: `identify(z, y)` looks for
the function that makes y of z. Losses are told by putting chosen outputs into the model's place and comparing what
the loss gives with the known ones.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.diagnosis.batch_tests import standardized
from normscope.diagnosis.loss_terms import judged
from normscope.model.batch import Batch, targets_of
from normscope.model.layers import own_parameters, watched_modules
from normscope.model.loss import IGNORED_LABEL, LossFn, default_loss
from normscope.model.output import Output, first_tensor, outputs_in_place
from normscope.model.state import untouched

Function = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Function] = {
    "identity": lambda z: z,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softmax": lambda z: torch.softmax(z, -1),
    "log_softmax": lambda z: torch.log_softmax(z, -1),
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "leaky_relu 0.2": lambda z: F.leaky_relu(z, 0.2),
    "gelu": F.gelu,
    "silu": F.silu,
    "softplus": F.softplus,
    "exp": torch.exp,
    "selu": F.selu,
    "softsign": F.softsign,
    "relu6": F.relu6,
    "hardtanh": F.hardtanh,
    "logsigmoid": F.logsigmoid,
}
"""Functions that a layer's output may go through, by torch's names."""

RANGES: dict[str, tuple[float, float]] = {
    "relu": (0.0, math.inf),
    "relu6": (0.0, 6.0),
    "exp": (0.0, math.inf),
    "softplus": (0.0, math.inf),
    "sigmoid": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "hardtanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "softmax": (0.0, 1.0),
    "elu": (-1.0, math.inf),
    "selu": (-1.7581, math.inf),
    "log_softmax": (-math.inf, 0.0),
    "logsigmoid": (-math.inf, 0.0),
}
"""The values that an output can take."""

LARGE_LOGIT = 20.0
"""A logit of certainty."""


@dataclass(frozen=True)
class Chain:
    """The layers of a model on one batch, in execution order, and what lies between them."""

    layers: tuple[str, ...]
    """Paths of the watched calls."""
    between: tuple[str, ...]
    """The activation behind each layer, by the names of `ACTIVATIONS`; "" where it is none of them."""

    @property
    def last(self) -> str:
        """The activation behind the last layer; "" where it is not known."""
        return self.between[-1] if self.between else ""


def identify(z: Tensor, y: Tensor) -> str:
    """The activation that makes y of z, or ""."""
    if z.shape != y.shape or not z.is_floating_point() or not z.numel():
        return ""
    z, y = z.double(), y.double()
    if not bool(torch.isfinite(z).all()):
        return ""
    if z.ndim == 2 and z.shape[1] == 1 and bool((y == 1).all()) and len(z) > 1 and float(z.std()) > 0:
        return "softmax"
    for name, function in ACTIVATIONS.items():
        # Classes may stand last, as of tokens, or behind the examples, as of pixels.
        turned = "softmax" in name and z.ndim > 2 and _near(function(z.movedim(1, -1)), y.movedim(1, -1))
        if turned or _near(function(z), y):
            ambiguous = name in ("identity", "relu") and not bool((z < 0).any())
            return "" if ambiguous else name
    return ""


def _near(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@contextmanager
def calls_of(model: nn.Module) -> Iterator[list[tuple[str, Tensor | None, Tensor]]]:
    """(path, input, output) of every watched call, filled while the model runs."""
    seen: list[tuple[str, Tensor | None, Tensor]] = []
    handles = []
    for path, module in watched_modules(model).items():

        def hook(_module: nn.Module, inputs: Any, output: Output, path: str = path) -> None:
            y, x = first_tensor(output), first_tensor(inputs)
            if y is not None and y.is_floating_point():
                seen.append((path, None if x is None else x.detach().clone(), y.detach().clone()))

        handles.append(module.register_forward_hook(hook, prepend=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def chain(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None, *, seed: int = 0) -> Chain | None:
    """What stands between the layers, looked at with standardized inputs, weights drawn anew and no dropout, so that no
    value is saturated or of one sign; None where the loss does not call the model or its layers have no order."""
    with untouched(model), torch.no_grad():
        model.eval()
        torch.manual_seed(seed)
        for module in watched_modules(model).values():
            for parameter in own_parameters(module):
                if parameter.is_floating_point() and parameter.ndim >= 2:
                    parameter.normal_(0.0, 1.5 / math.sqrt(parameter[0].numel()))
                elif parameter.is_floating_point():
                    parameter.normal_(0.0, 0.1)
        outputs: list[Output] = []
        handle = model.register_forward_hook(lambda _m, _i, output: outputs.append(first_tensor(output)))
        try:
            with calls_of(model) as seen, torch.enable_grad():
                (loss_fn or default_loss)(model, standardized(batch))
        except Exception:  # somebody's own code, on inputs that are not its own
            return None
        finally:
            handle.remove()
    if len(outputs) != 1 or outputs[0] is None or not seen or len({path for path, *_ in seen}) != len(seen):
        return None
    following = [x for _, x, _ in seen[1:]] + [outputs[0].detach()]
    between = [identify(y, x) if x is not None else "" for (_, _, y), x in zip(seen, following, strict=True)]
    return Chain(tuple(path for path, *_ in seen), tuple(between))


# --- Targets ---


def target_kind(targets: Sequence[Tensor], outputs: int | None = None) -> str:
    """ "labels", "one_hot", "multi_hot", "binary" or "number"; "" where there are none.

    Args:
        outputs: how many outputs an example has; integers with one output are numbers or binary.
    """
    if not targets or any(t.shape[1:] != targets[0].shape[1:] for t in targets) or not targets[0].ndim:
        return ""
    y = torch.cat([t.detach() for t in targets])
    width = int(y[0].numel())
    zero_one = bool(((y == 0) | (y == 1)).all())
    if not y.is_floating_point() and not (zero_one and width == (outputs or 0)) and outputs != 1:
        return "labels"
    if zero_one and width == 1:
        return "binary"
    if zero_one and y.ndim == 2:
        return "one_hot" if bool((y.sum(1) == 1).all()) else "multi_hot"
    return "number"


# --- Losses ---


def loss_of_outputs(model: nn.Module, batch: Batch, loss_fn: LossFn | None, outputs: Tensor) -> float:
    """What the loss gives for these outputs in the model's place; NaN where it does not ask the model once, or does not
    take them."""
    try:
        with outputs_in_place(model, lambda *_, **__: outputs) as calls, torch.enable_grad():
            loss = float((loss_fn or default_loss)(model, batch).detach())
            loss = judged(loss_fn, loss)
    except Exception:  # somebody's own code, on outputs that are not its own
        return math.nan
    return loss if len(calls) == 1 else math.nan


def _of_labels(y: Tensor, z: Tensor) -> Tensor:
    """Targets in the shape of the outputs, whose last dimension is the classes' where the targets lack it."""
    lacks = y.shape != z.shape and y.shape == z.shape[:-1] and not y.is_floating_point()
    y = torch.where(y == IGNORED_LABEL, 0, y) if lacks else y
    return F.one_hot(y.long(), z.shape[-1]).to(z.dtype) if lacks else y.to(z.dtype)


def _counted(y: Tensor, z: Tensor, ignored: float | None) -> Tensor | None:
    """Which of the labels the loss counts; None for all."""
    return None if ignored is None or y.shape != z.shape[:-1] or not bool((y == ignored).any()) else y != ignored


FAMILIES: dict[str, tuple[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "cross_entropy": ("logits", lambda z, t: -(t * z.log_softmax(-1)).sum(-1).mean()),
    "bce_logits": ("logits", lambda z, t: F.binary_cross_entropy_with_logits(z, t)),
    "log_of_probabilities": ("simplex", lambda p, t: -(t * p.log()).sum(-1).mean()),
    "bce": ("unit", lambda p, t: F.binary_cross_entropy(p, t)),
    "mse": ("logits", lambda z, t: (z - t).square().mean()),
    "mae": ("logits", lambda z, t: (z - t).abs().mean()),
    "nll": ("logits", lambda z, t: -(t * z).sum(-1).mean()),
}
"""Known losses by name, and what they take: any numbers, rows that sum to 1, numbers in 0 to 1."""


def loss_family(
    model: nn.Module, batch: Batch, loss_fn: LossFn | None, like: Tensor, ignored: float | None = None
) -> str:
    """Which of `FAMILIES` the loss is on this batch, up to a factor; with `MINUS` in front where that is negative; ""
    where it is none.

    Args:
        ignored: a label that is not counted.
    """
    y = targets_of(batch)
    if y is None or y.numel() * (like.shape[-1] if y.shape != like.shape else 1) != like.numel():
        return ""
    for name, (takes, known) in FAMILIES.items():
        ratios = []
        for draw in range(3):
            z = torch.randn(like.shape, generator=torch.Generator().manual_seed(draw)).to(like) * 0.7
            z = z.softmax(-1) if takes == "simplex" and z.shape[-1] > 1 else z.sigmoid() if takes != "logits" else z
            try:
                t, counted = _of_labels(y, z), _counted(y, z, ignored)
                reference = float(known(z, t) if counted is None else known(z[counted], t[counted]))
            except Exception:  # targets that this loss does not take
                break
            ratios.append(loss_of_outputs(model, batch, loss_fn, z) / reference if reference else math.nan)
        sizes = [abs(r) for r in ratios]
        known_ratio = len(ratios) == 3 and all(map(math.isfinite, ratios)) and min(sizes) > 0
        one_sign = abs(sum(ratios)) == sum(sizes)
        if known_ratio and one_sign and max(sizes) < 1.001 * min(sizes) and (like.shape[-1] > 1 or name not in SEVERAL):
            return name if ratios[0] > 0 else MINUS + name
    return ""


MOST_NUMBERS = 20_000_000
"""Of outputs that are looked at together."""

MINUS = "minus "
"""In front of the name of a loss whose sign is turned round."""

SEVERAL = ("cross_entropy", "log_of_probabilities", "nll")
"""Losses of several classes."""


def candidates(targets: Tensor, like: Tensor, spread: Tensor | None = None) -> list[Tensor]:
    """Outputs of an example that may be the best for its targets, whatever the loss: the targets themselves, and the
    logits and log-probabilities of certainty."""
    t = _of_labels(targets, like).to(like.dtype)
    if t.numel() != like.numel():
        return []
    t = t.reshape(like.shape)
    values = [t]
    if bool(((t >= 0) & (t <= 1)).all()):
        near = t.clamp(1e-6, 1 - 1e-6)
        values += [near, near.logit().clamp(-LARGE_LOGIT, LARGE_LOGIT), near.log().clamp(min=-LARGE_LOGIT)]
    return values


def constants(targets: Sequence[Tensor], like: Tensor, ignored: float | None = None) -> list[Tensor]:
    """Constant outputs that may be the best ones, whatever the loss: (outputs,) each."""
    rows = torch.cat([_of_labels(t, like[: len(t)]) for t in targets]).to(like.dtype)
    if rows[0].numel() != like[0].numel():
        return []
    counted = _counted(torch.cat(list(targets)), rows, ignored)
    if counted is not None and bool(counted.any()):
        rows = rows[counted]
    of_places = like.ndim > 2 and not targets[0].is_floating_point()  # one constant for all places of a sequence
    rows = rows.reshape(-1, like.shape[-1]) if of_places else rows.reshape(len(rows), *like.shape[1:])
    mean = rows.mean(0)
    values = [mean, rows.median(0).values]
    if bool(((mean >= 0) & (mean <= 1)).all()):
        inside = mean.clamp(1e-6, 1 - 1e-6)
        values += [inside, inside.logit(), inside.log()]
    return values


@dataclass(frozen=True)
class Reach:
    """What losses outputs can have, (mean over batches)."""

    constant: float
    """L_c: of the best constant output."""
    lowest: float
    """Of the best outputs that are free."""
    in_range: float
    """Of the best outputs within the values that the output's activation can take."""
    exchanged: float = math.nan
    """Of the best outputs that are free, each example given those of another, ..."""
    elsewhere: float = math.nan
    """... and each batch those of another: higher, where the loss looks at the targets at all."""

    @property
    def missed(self) -> float:
        """The share of what there is to learn that the output's range keeps out of reach; NaN where not known."""
        room = self.constant - self.lowest
        return (self.in_range - self.lowest) / room if room > 0 else math.nan


def into_range(z: Tensor, activation: str) -> Tensor:
    """The nearest outputs that the activation can give."""
    if activation == "softmax":
        z = z.clamp(min=0)
        total = z.sum(-1, keepdim=True)
        return torch.where(total > 0, z / total.clamp(min=1e-12), torch.full_like(z, 1 / z.shape[-1]))
    low, high = RANGES.get(activation, (-math.inf, math.inf))
    return z.clamp(low, high)


def reach(
    model: nn.Module,
    batches: Sequence[Batch],
    loss_fn: LossFn | None,
    like: Sequence[Tensor],
    activation: str,
    ignored: float | None = None,
) -> Reach | None:
    """What losses the outputs can have; None where the loss does not take outputs in the model's place.

    Args:
        ignored: a label that is not counted.
    """
    some = max(1, MOST_NUMBERS // max(like[0].numel(), 1))
    batches, like = batches[:some], like[:some]
    targets = [targets_of(batch) for batch in batches]
    if any(t is None or len(t) != len(z) for t, z in zip(targets, like, strict=True)):
        return None
    known = [t for t in targets if t is not None]

    def best(choices: Sequence[Sequence[Tensor]]) -> float:
        """The lowest mean loss over batches of any choice of outputs."""
        means = []
        for one in range(len(choices[0]) if choices else 0):
            losses = [loss_of_outputs(model, b, loss_fn, z[one]) for b, z in zip(batches, choices, strict=True)]
            means.append(sum(losses) / len(losses))
        return min((m for m in means if math.isfinite(m)), default=math.nan)

    try:
        free = [candidates(t, z) for t, z in zip(known, like, strict=True)]
        fixed = constants(known, like[0], ignored)
    except Exception:  # labels outside the outputs, shapes that do not fit
        return None
    constant = best([[c.expand_as(z).clone() for c in fixed] for z in like])
    lowest = best(free)
    exchanged = best([[c.roll(1, 0) for c in cs] for cs in free])
    alike = len(free) > 1 and all(t.shape == known[0].shape for t in known)
    elsewhere = best(free[1:] + free[:1]) if alike else math.nan
    confined = [[into_range(c, activation) for c in cs] for cs in free]
    found = Reach(constant, min(lowest, constant), best(confined), exchanged, elsewhere)
    return found if math.isfinite(constant + lowest) else None

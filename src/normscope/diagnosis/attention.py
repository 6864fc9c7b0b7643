"""What attention does with a batch before any step, told by the operations that torch runs, not by a module's type.

Attention is a softmax whose result is multiplied by values. Of its logits s, over queries i and the keys j that no mask
hides, are taken

    the spread    std s_ij,        the largest weight    E_i max_j softmax(s_i)_j,

and the share of the queries all of whose keys are hidden by a finite number. A norm is *post-norm* where it is taken of
the sum of a branch and of an earlier norm's output.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from normscope.diagnosis.program import Patch
from normscope.diagnosis.sequences import some_of
from normscope.model.batch import Batch
from normscope.model.layers import running
from normscope.model.loss import LossFn, default_loss
from normscope.model.state import seeded
from normscope.runtime.torch_state import Args, Function, Kwargs

HIDDEN = -1e4
"""A logit below this is that of a key that a mask hides."""

ALIKE = 1e-3
"""Logits of a query all of whose keys are hidden differ by no more of their size: it is the mask's one number, where
logits that have exploded differ."""

PRODUCTS = ("bmm", "mm", "baddbmm")
NORMS = ("native_layer_norm", "_fused_rms_norm", "native_group_norm")


@dataclass(frozen=True)
class Attention:
    """One softmax over keys."""

    module: str
    """The path of the innermost module that takes it."""
    keys: int
    spread: float
    """Standard deviation of the logits over the keys of a query, root mean square over queries."""
    largest: float
    """The largest weight of a query that sees two keys or more, on average; NaN where none does."""
    ahead: float
    """Share of the visible keys that lie ahead of their query; NaN where queries and keys are not as many."""
    hidden: float
    """Share of the queries all of whose keys are hidden, by a number that is finite."""


@dataclass(frozen=True)
class Transformer:
    """All softmaxes over keys in execution order, and how many norms stand behind their branches."""

    attentions: tuple[Attention, ...] = ()
    post_norms: int = 0


def transformer(model: nn.Module, batch: Batch, loss_fn: LossFn | None = None, *, seed: int = 0) -> Transformer | None:
    """See above, without dropout; None where there is no attention, or the model does not take a part of the batch."""
    some = some_of(batch)
    with seeded(model, seed), sdpa_kernel(SDPBackend.MATH), running(model) as inside, _Recorder(inside) as seen:
        for module in model.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        try:
            (loss_fn or default_loss)(model, some)
        except Exception:  # somebody's own code, on fewer examples than it expects
            return None
    found = tuple(measured(logits, path) for logits, _, path in seen.attentions)
    return Transformer(found, seen.post_norms) if found else None


def measured(logits: Tensor, module: str) -> Attention:
    """What one softmax's logits, (..., queries, keys), show."""
    s = logits.detach().double()
    visible = s > HIDDEN
    count = visible.sum(-1)
    several = count > 1
    alike = s.amax(-1) - s.amin(-1) <= ALIKE * s.abs().amax(-1)
    hidden = (count == 0) & alike & torch.isfinite(s).all(-1)
    kept = torch.where(visible, s, 0.0)
    mean = kept.sum(-1, keepdim=True) / count.clamp(min=1)[..., None]
    square = torch.where(visible, (s - mean).square(), 0.0).sum(-1) / count.clamp(min=1)
    weights = s.softmax(-1).amax(-1)
    known = bool(several.any())
    square_scores = s.shape[-1] == s.shape[-2] and bool(visible.any())
    ahead = float(visible.triu(1).sum() / visible.sum()) if square_scores else math.nan
    return Attention(
        module,
        s.shape[-1],
        float(square[several].mean().sqrt()) if known else math.nan,
        float(weights[several].mean()) if known else math.nan,
        ahead,
        float(hidden.double().mean()),
    )


@dataclass
class _Recorder(TorchDispatchMode):
    """Keeps softmaxes until it is known whether values are multiplied by them."""

    inside: list[str]
    waiting: list[tuple[Tensor, Tensor, str]] = field(default_factory=list)
    """Logits, weights and module of every softmax of three dimensions or more."""
    attentions: list[tuple[Tensor, Tensor, str]] = field(default_factory=list)
    sums: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    normed: dict[int, Tensor] = field(default_factory=dict)
    post_norms: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func: Any, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        tensors = [a for a in args if isinstance(a, Tensor)]
        if name in ("_softmax", "_safe_softmax") and args[0].ndim > 2 and args[1] in (-1, args[0].ndim - 1):
            self.waiting.append((args[0], output, self.inside[-1] if self.inside else ""))
        elif name in PRODUCTS:
            pointers = {t.data_ptr() for t in tensors}
            used = [one for one in self.waiting if one[1].data_ptr() in pointers]
            self.attentions += used
            self.waiting = [one for one in self.waiting if one not in used]
        elif name in ("add", "add_") and len(tensors) == 2 and isinstance(output, Tensor):
            self.sums[output.data_ptr()] = output, tensors[0], tensors[1]
        elif name in NORMS:
            _, *parts = self.sums.get(tensors[0].data_ptr(), (None,))
            self.post_norms += any(t is not None and t.data_ptr() in self.normed for t in parts)
            self.normed[output[0].data_ptr()] = output[0]
        return output


class _Scaled(TorchFunctionMode):
    """Multiplies the logits of every softmax over keys."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        name = getattr(func, "__name__", "")
        attends = name == "scaled_dot_product_attention" or (name == "softmax" and args and args[0].ndim > 2)
        if attends and args:
            args = (args[0] * self.factor, *args[1:])
        return func(*args, **(kwargs or {}))


def logits_scaled(factors: dict[str, float]) -> Patch:
    """The logits of the softmaxes that these modules take are multiplied by these factors."""

    def patch(model: nn.Module) -> None:
        for path, factor in factors.items():
            module, open_modes = model.get_submodule(path), []
            if isinstance(module, nn.MultiheadAttention):  # torch looks at what it calls as one function

                def smaller(_m: nn.Module, args: Any, kwargs: Any, factor: float = factor) -> Any:
                    if args:
                        return (args[0] * factor, *args[1:]), kwargs
                    return args, {**kwargs, "query": kwargs["query"] * factor}

                module.register_forward_pre_hook(smaller, with_kwargs=True)
                continue

            def enter(_m: nn.Module, _i: object, factor: float = factor, modes: list[_Scaled] = open_modes) -> None:
                modes.append(_Scaled(factor))
                modes[-1].__enter__()

            def leave(_m: nn.Module, _i: object, _o: object, modes: list[_Scaled] = open_modes) -> None:
                modes.pop().__exit__(None, None, None)

            module.register_forward_pre_hook(enter)
            module.register_forward_hook(leave, always_call=True)

    return patch

"""Taking a batch apart into its examples, and dropout out of a pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from normscope.errors import InvalidBatch
from normscope.model.loss import IGNORED_LABEL, num_examples


def count_examples(batch: Any, *, at_least: int) -> int:
    """How many examples a batch holds; InvalidBatch where it cannot be told, or is fewer than asked for."""
    size = num_examples(batch)
    if size is None:
        raise InvalidBatch(
            f"no tensor in this {type(batch).__name__} says how many examples it has: give a pair or a mapping"
        )
    if size < at_least:
        raise InvalidBatch(f"the batch holds {size} examples: give {at_least} or more")
    return size


def take(batch: Any, indices: Sequence[int] | Tensor) -> Any:
    """The batch of these examples only: every tensor as long as the batch is cut, all else stays as it is."""
    size = num_examples(batch)
    chosen = torch.as_tensor(indices)

    def cut(part: Any) -> Any:
        if isinstance(part, Tensor):
            return _rows(part, chosen.to(part.device)) if part.ndim and len(part) == size else part
        if isinstance(part, Mapping):
            return {key: cut(value) for key, value in part.items()}
        if isinstance(part, tuple) and hasattr(part, "_fields"):
            return type(part)(*map(cut, part))
        return type(part)(map(cut, part)) if isinstance(part, tuple | list) else part

    return cut(batch)


def _rows(tensor: Tensor, chosen: Tensor) -> Tensor:
    rows = tensor.detach().index_select(0, chosen)
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return rows.contiguous(memory_format=torch.channels_last)
    return rows


def two_examples(batch: Any) -> list[int]:
    """Two examples as unlike as can be seen from outside: with the fewest and the most labels to be ignored, or else
    the first and the middle one."""
    size = count_examples(batch, at_least=2)
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else [batch]
    for part in parts:
        if isinstance(part, Tensor) and not part.is_floating_point() and part.ndim and len(part) == size:
            ignored = (part == IGNORED_LABEL).flatten(1).sum(1) if part.ndim > 1 else (part == IGNORED_LABEL).long()
            if int(ignored.min()) < int(ignored.max()):
                return [int(ignored.argmin()), int(ignored.argmax())]
    return [0, size // 2]


class WithoutDropout(TorchFunctionMode):
    """While entered, dropout does nothing; `met` says whether there was any to do."""

    def __init__(self) -> None:
        super().__init__()
        self.met = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            self.met |= bool(given.get("training", given.get("train", True)) and given.get("p", 0.5) > 0)
            return given["input"]
        if func is F.scaled_dot_product_attention:
            given = dict(zip(ATTENTION_ARGUMENTS, args, strict=False)) | kwargs
            self.met |= given.get("dropout_p", 0.0) > 0
            return func(**(given | {"dropout_p": 0.0}))
        return func(*args, **kwargs)


DROPOUTS = (
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.alpha_dropout,
    torch.feature_dropout,
    torch.feature_alpha_dropout,
)
ATTENTION_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")

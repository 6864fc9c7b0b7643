"""Taking dropout out of a pass."""

from typing import Any

import torch
import torch.nn.functional as F

from normscope.runtime.torch_state import Args, Function, FunctionMode, Kwargs


class WithoutDropout(FunctionMode):
    """While entered, dropout does nothing; `largest` is the highest probability there was."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0.0

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            given = dict(zip(("input", "p", "training"), args, strict=False)) | kwargs
            if given.get("training", given.get("train", True)):
                self.largest = max(self.largest, float(given.get("p", 0.5)))
            return given["input"]
        if func is F.scaled_dot_product_attention:
            given = dict(zip(ATTENTION_ARGUMENTS, args, strict=False)) | kwargs
            self.largest = max(self.largest, float(given.get("dropout_p", 0.0)))
            return func(**(given | {"dropout_p": 0.0}))
        return func(*args, **kwargs)

    @property
    def met(self) -> bool:
        """Whether there was any dropout to do."""
        return self.largest > 0


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

"""QK norm (Henry et al. 2020; Dehghani et al. 2023): queries and keys pass an RMS norm, head by head, before they are
multiplied, so that attention's logits stay bounded however long a step is.

Two kinds of attention can be given one as they are: torch's `nn.MultiheadAttention`, which becomes `QKNormAttention`;
and any module whose forward calls `F.scaled_dot_product_attention` itself, which gets hooks.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.runtime.torch_state import Args, Function, Kwargs

NORM_OF_Q, NORM_OF_K = "q_norm", "k_norm"
"""What the norms are called, as children of the attention."""


def put_norms(attention: nn.Module, head_dim: int) -> None:
    """Give an attention its two norms; a module of torch's own changes its class, another is hooked."""
    like = next(attention.parameters())
    for name in (NORM_OF_Q, NORM_OF_K):
        norm = nn.RMSNorm(head_dim, eps=1e-5, device=like.device, dtype=like.dtype)
        attention.register_module(name, norm.train(attention.training))
    if type(attention) is nn.MultiheadAttention:
        attention.__class__ = QKNormAttention
        return
    attention.register_forward_pre_hook(_enter)
    attention.register_forward_hook(_leave, always_call=True)


class QKNormAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with a norm on queries and keys; made by `put_norms` from one that exists."""

    q_norm: nn.Module
    k_norm: nn.Module

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's; `is_causal` is a hint there, and the mask that goes with it is what counts."""
        alone = query.dim() == 2
        first = self.batch_first or alone
        q, k, v = ((x.unsqueeze(0) if alone else x if first else x.transpose(0, 1)) for x in (query, key, value))
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (self._heads(F.linear(x, w, b)) for x, w, b in zip((q, k, v), weights, biases, strict=True))
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)
        mask = _merged(attn_mask, key_padding_mask, q, k)
        dropout = self.dropout if self.training else 0.0
        shares = None
        if need_weights:
            logits = q @ k.transpose(-2, -1) / self.head_dim**0.5
            shares = F.dropout((logits if mask is None else logits + mask).softmax(-1), dropout)
            out = shares @ v
            shares = shares.mean(1) if average_attn_weights else shares
        else:
            out = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if alone:
            return out[0], None if shares is None else shares[0]
        return out if first else out.transpose(0, 1), shares

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)


def _merged(attn_mask: Tensor | None, padding: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Both masks as one that is added to the logits, (examples, heads, queries, keys)."""
    mask = None
    if attn_mask is not None:
        mask = _added(attn_mask, q)
        mask = mask.unflatten(0, q.shape[:2]) if mask.dim() == 3 else mask
    if padding is not None:
        ours = _added(padding.reshape(k.shape[0], 1, 1, k.shape[2]), q)
        mask = ours if mask is None else mask + ours
    return mask


def _added(mask: Tensor, q: Tensor) -> Tensor:
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask


class SeesAttention(TorchFunctionMode):
    """Calls `on_attention(query, key)` at each `F.scaled_dot_product_attention`; what it gives takes their places."""

    def __init__(self, on_attention: Any) -> None:
        super().__init__()
        self._on_attention = on_attention

    def __torch_function__(self, func: Function, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False))
            rest, kwargs = args[3:], {**kwargs, **named}
            kwargs["query"], kwargs["key"] = self._on_attention(kwargs["query"], kwargs["key"])
            if rest:
                kwargs |= dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False))
            args = ()
        return func(*args, **kwargs)


_entered: list[SeesAttention] = []
"""Modes of the forward passes under way, innermost last."""


def _enter(attention: nn.Module, _inputs: object) -> None:
    def normed(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return attention.get_submodule(NORM_OF_Q)(q).to(q.dtype), attention.get_submodule(NORM_OF_K)(k).to(k.dtype)

    _entered.append(SeesAttention(normed))
    _entered[-1].__enter__()


def _leave(_attention: nn.Module, _inputs: object, _output: object) -> None:
    _entered.pop().__exit__(None, None, None)

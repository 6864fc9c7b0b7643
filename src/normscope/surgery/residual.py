"""Transformers made easier to train, in a copy: norms in front of the branches or on queries and keys, smaller
branches, a smaller output."""

import math

import torch
from torch import Tensor, nn

from normscope.errors import InvalidConfig
from normscope.model.batch import Batch
from normscope.model.loss import LossFn, readable_errors, without_graph
from normscope.model.state import untouched
from normscope.nets.qk_norm import NORM_OF_K, NORM_OF_Q, SeesAttention, put_norms
from normscope.nets.residual_tails import declared_tails, tail_tensors
from normscope.surgery.calls import calls_of, forward, output_layer
from normscope.surgery.refusals import changeable_copy
from normscope.surgery.tail_search import found_tails

OUTPUT_SHARE = 0.1
"""What the output layer's weights are multiplied by."""


def has_post_norm(model: nn.Module) -> bool:
    """Whether a layer puts its norms behind its branches, as torch's transformer layers do where `norm_first` is
    False."""
    return any(getattr(module, "norm_first", None) is False for module in model.modules())


def with_pre_norm(model: nn.Module) -> nn.Module:
    """A copy whose layers put norms in front of their branches, with a layer norm at the end of each stack without one.

    Raises:
        InvalidConfig: no layer says that it is post-norm.
    """
    if not has_post_norm(model):
        raise InvalidConfig("pre_norm: no layer has norm_first=False, as torch's transformer layers with post-norm do")
    changed = changeable_copy(model)
    for module in changed.modules():
        if getattr(module, "norm_first", None) is False:
            vars(module)["norm_first"] = True
        if isinstance(module, nn.TransformerEncoder | nn.TransformerDecoder) and module.norm is None:
            like = next(m for m in module.layers[0].modules() if isinstance(m, nn.LayerNorm))
            weight = next(iter(like.parameters()))
            module.norm = nn.LayerNorm(list(like.normalized_shape), like.eps, device=weight.device, dtype=weight.dtype)
    return changed


def with_small_residual(model: nn.Module, *, batch: Batch, loss_fn: LossFn | None = None) -> nn.Module:
    """A copy in which the last layer of each of N residual branches has its weights divided by √N, so that the sum of
    all branches starts as large as one (Hanin and Rolnick 2018; De and Smith 2020; GPT-2's output projections).

    Raises:
        InvalidConfig: no residual branch can be seen.
    """
    changed = changeable_copy(model)
    tails = declared_tails(changed) or found_tails(changed, batch, loss_fn)
    with torch.no_grad():
        for tail in tails:
            for tensor in tail_tensors(changed, tail):
                tensor.div_(math.sqrt(len(tails)))
    return changed


def with_small_output(model: nn.Module, *, batch: Batch, loss_fn: LossFn | None = None) -> nn.Module:
    """A copy whose output layer, the last one called, has a tenth of its weights: outputs start near those of zero."""
    changed = changeable_copy(model)
    output = output_layer(changed, calls_of(changed, batch, loss_fn))[1]
    if output is None:
        raise InvalidConfig("small_output: no layer with weights is called")
    with torch.no_grad():
        for parameter in output.parameters(recurse=False):
            parameter.mul_(OUTPUT_SHARE)
    return changed


def with_qk_norm(model: nn.Module, *, batch: Batch, loss_fn: LossFn | None = None) -> nn.Module:
    """A copy whose attentions norm queries and keys, see `nets.qk_norm`.

    Raises:
        InvalidConfig: no attention is called that is torch's own or calls `F.scaled_dot_product_attention`; or one that
            has such norms, or keys of its own (`add_bias_kv`, `add_zero_attn`).
    """
    changed = changeable_copy(model)
    found = {m: m.head_dim for m in changed.modules() if isinstance(m, nn.MultiheadAttention)}
    found |= _calling_attention(changed, batch, loss_fn)
    if not found:
        raise InvalidConfig("qk_norm: no attention is torch's own or calls F.scaled_dot_product_attention")
    for attention, head_dim in found.items():
        if hasattr(attention, NORM_OF_Q) or hasattr(attention, NORM_OF_K):
            raise InvalidConfig(f"qk_norm: an attention has a {NORM_OF_Q} or {NORM_OF_K} already")
        if getattr(attention, "bias_k", None) is not None or getattr(attention, "add_zero_attn", False):
            raise InvalidConfig("qk_norm: an attention adds keys of its own")
        put_norms(attention, head_dim)
    for module in changed.modules():
        # In evaluation torch would go past the attention's forward, to a fused operation.
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        elif isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0
    return changed


def _calling_attention(model: nn.Module, batch: Batch, loss_fn: LossFn | None) -> dict[nn.Module, int]:
    """The modules whose own forward calls `F.scaled_dot_product_attention`, with the size of a head."""
    inside: list[nn.Module] = []
    found: dict[nn.Module, int] = {}

    def see(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        if inside:
            found[inside[-1]] = q.shape[-1]
        return q, k

    with untouched(model), readable_errors():
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, _: inside.append(module))
            module.register_forward_hook(lambda *_: inside.pop() and None, always_call=True)
        with SeesAttention(see):
            without_graph(lambda: forward(model, batch, loss_fn))
    return {module: size for module, size in found.items() if not isinstance(module, nn.MultiheadAttention)}

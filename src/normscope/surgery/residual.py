"""Transformers made easier to train, in a copy: norms in front of the branches, smaller branches, a smaller output."""

import math

import torch
from torch import nn

from normscope.errors import InvalidConfig
from normscope.model.batch import Batch
from normscope.model.loss import LossFn
from normscope.nets.residual_tails import declared_tails, tail_tensors
from normscope.surgery.calls import calls_of, output_layer
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

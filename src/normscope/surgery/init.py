"""Weights drawn anew, on any `nn.Module`: `with_init(model, "kaiming_normal", seed=0)`."""

import torch
from torch import nn

from normscope.errors import InvalidConfig, unknown
from normscope.model.batch import Batch
from normscope.model.contract import instrument
from normscope.model.loss import LossFn
from normscope.nets.inits import init_
from normscope.nets.names import BRANCH_INITS, INITS
from normscope.nets.residual_tails import declared_tails, tail_tensors
from normscope.surgery.branch_init import check_branch_init, fixup_, skip_init_
from normscope.surgery.calls import calls_of, output_layer
from normscope.surgery.refusals import changeable_copy
from normscope.surgery.tail_search import found_tails


@instrument
def with_init(
    model: nn.Module,
    kind: str,
    *,
    seed: int,
    scale: float = 1.0,
    keep_output_layer: bool = True,
    batch: Batch = None,
    loss_fn: LossFn | None = None,
) -> nn.Module:
    """A copy of `model` with its weights drawn anew; the model itself stays untouched.

    Args:
        kind: a name of `normscope.nets.inits`: default, xavier_uniform, xavier_normal, kaiming_normal, orthogonal,
            zero_residual. See `inits.init_` for what each sets, and for `scale`. Or one that brings learned numbers
            with it (`surgery.branch_init`): skipinit, fixup, which has its own output layer of zeros.
        seed: fixes every number drawn; torch's generators are not touched.
        keep_output_layer: leave the output layer, and what is tied to it, as it is: the last layer called, where a
            batch is given, else the last registered.
        batch: a batch to learn the order of calls from, as for `with_norm`. For `zero_residual` it also shows where
            residual branches end, in models whose blocks do not say so in a `residual_tail`.

    Norms keep their weights and statistics, but for `zero_residual`, which sets to zero the weight and bias of the
    last layer or norm of each residual branch, so that the branch adds nothing at first.

    Raises:
        InvalidConfig: an unknown kind, a scale that is not positive, `zero_residual`, skipinit or fixup where there is
            no residual branch or none can be seen, fixup on a model with norms.
        InvalidModel: what cannot be changed safely: models compiled, scripted, quantized, fused or wrapped; weights
            computed from others; a residual branch that ends in neither a layer nor a norm.
        InvalidBatch: a batch that the model does not take.

    Example:
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> orthogonal = ns.with_init(model, "orthogonal", seed=0)[0].weight
        >>> torch.allclose(orthogonal @ orthogonal.T, torch.eye(64), atol=1e-5)
        True
    """
    check_branch_init(kind, batch)
    if kind not in INITS and kind not in BRANCH_INITS:
        raise unknown("init", kind, (*INITS, *BRANCH_INITS))
    changed = changeable_copy(model)
    output = None if batch is None else output_layer(changed, calls_of(changed, batch, loss_fn))[1]
    tails: list[nn.Module] = []
    if kind == "zero_residual":
        tails = declared_tails(changed)
        if not tails and batch is None:
            raise InvalidConfig(
                "init 'zero_residual': no block names its residual_tail; give a batch, so that the branches can be seen"
            )
        tails = tails or found_tails(changed, batch, loss_fn)
    if kind == "skipinit" and batch is None and not declared_tails(changed):
        raise InvalidConfig(
            "init 'skipinit': no block names its residual_tail; give a batch, so that branches are seen"
        )
    drawn = "xavier_uniform" if kind == "zero_residual" else BRANCH_INITS.get(kind, kind)
    if output is None:
        init_(changed, drawn, seed=seed, scale=scale, keep_output_layer=keep_output_layer)
    else:
        kept = list(output.parameters(recurse=False)) if keep_output_layer else []
        values = [parameter.detach().clone() for parameter in kept]
        init_(changed, drawn, seed=seed, scale=scale, keep_output_layer=False)
        with torch.no_grad():
            for parameter, value in zip(kept, values, strict=True):
                parameter.copy_(value)
    for tensor in (tensor for tail in tails for tensor in tail_tensors(changed, tail)):
        nn.init.zeros_(tensor)
    if kind == "skipinit":
        skip_init_(changed, batch, loss_fn)
    elif kind == "fixup":
        fixup_(changed, batch, loss_fn)
    return changed

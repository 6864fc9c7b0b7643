"""A recurrence that forgets: what decides came so long ago that no gradient gets back there.

Measured: the gradient at every step of the inputs, and the same program with its sequences read from their end.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from normscope.diagnosis.facts import Facts
from normscope.diagnosis.fault import Fault, Repair, Suspicion
from normscope.diagnosis.program import Program
from normscope.model.batch import Batch, targets_of, with_targets
from normscope.model.layers import LayerCall, record_calls
from normscope.model.loss import LossFn, default_loss
from normscope.model.state import seeded
from normscope.statistics.numbers import number

SHORTEST = 8
"""Steps of a sequence."""

EARLY, FORGOTTEN = 3, 1e-3
"""The first third of the steps is forgotten where its gradient is this share of the largest."""


def steps_dim(batch: Batch) -> int | None:
    """The dim of a pair's inputs that runs over steps, where there is one target for each sequence."""
    y = targets_of(batch)
    if not isinstance(batch, tuple | list) or y is None or not isinstance(batch[0], Tensor):
        return None
    x = batch[0]
    if x.ndim not in (2, 3) or (x.ndim == 2 and x.is_floating_point()) or not y.ndim or y.numel() > 0.5 * x.numel():
        return None
    dims = [1 - dim for dim in (0, 1) if x.shape[dim] == len(y)]
    one_each = dims and (y.ndim == 1 or y.shape[1] != x.shape[dims[0]])
    return dims[0] if one_each and x.shape[dims[0]] >= SHORTEST else None


def gradient_along(model: nn.Module, batch: Batch, loss_fn: LossFn | None, dim: int) -> np.ndarray | None:
    """The root mean square of the gradient at every step, of what first has numbers: the inputs, or their embedding."""
    x, kept = batch[0], list[Tensor]()

    def keep(call: LayerCall) -> None:
        if call.output.ndim == 3 and call.output.requires_grad:
            kept.append(call.output)

    with seeded(model, 0):
        if x.is_floating_point():
            kept.append(x.detach().clone().requires_grad_())
            batch = with_targets((kept[0], batch[1]), batch[1])
        try:
            with record_calls(model, keep):
                loss = (loss_fn or default_loss)(model, batch)
            (gradient,) = torch.autograd.grad(loss, kept[0], allow_unused=True)
        except Exception:  # somebody's own code
            return None
    if gradient is None or gradient.shape[:2] != x.shape[:2]:
        return None
    return gradient.detach().double().movedim(dim, 0).flatten(1).square().mean(1).sqrt().cpu().numpy()


def _suspected(facts: Facts) -> Suspicion | None:
    batches = facts.program.batches
    dim = steps_dim(batches[0])
    if dim is None or any(steps_dim(batch) != dim for batch in batches):
        return None
    sizes = gradient_along(facts.program.build(0), batches[0], facts.program.loss_fn, dim)
    if sizes is None or not sizes.max() > 0:
        return None
    share = float(sizes[: max(1, len(sizes) // EARLY)].max() / sizes.max())
    if not share < FORGOTTEN:
        return None
    return Suspicion(
        "the recurrence forgets what decides",
        f"The gradient at the first third of {len(sizes)} steps is {number(share)} times that at the last ones, before "
        "any training.",
        {"early_gradient": share, "sequence_steps": float(len(sizes))},
    )


def _repairs(program: Program, _facts: Facts) -> Iterator[Repair]:
    dims = [steps_dim(batch) for batch in program.batches]
    flipped = [
        with_targets((batch[0].flip(dim), batch[1]), batch[1])
        for batch, dim in zip(program.batches, dims, strict=True)
        if dim is not None
    ]
    if len(flipped) == len(program.batches):
        code = (
            f"x = x.flip({dims[0]})  # read from the end. Or bidirectional=True, nn.GRU or nn.LSTM,\n"
            "nn.init.orthogonal_(rnn.weight_hh_l0)  # and a mean over all outputs in place of the last"
        )
        yield Repair(replace(program, batches=flipped), code, "the sequences read from their end", "inputs")


FAULT = Fault("forgetting", "architecture", 46, suspected=_suspected, repairs=_repairs)

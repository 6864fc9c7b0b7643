"""Is a sequence's padding counted in the loss? Padded are the places behind the last of a sequence's own, where inputs
and targets are one and the same number; they are counted where the loss has a gradient at the outputs there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.diagnosis.loss_terms import Judged
from normscope.model.batch import Batch, map_tensors, targets_of
from normscope.model.loss import IGNORED_LABEL, LossFn, default_loss
from normscope.model.output import Output, output_tensor
from normscope.model.state import untouched

FEWEST_LENGTHS, SHORTEST = 3, 4
"""Lengths that padded sequences have, at least, and positions."""

ELSEWHERE, TOGETHER = 0.01, 0.9
"""What fills the targets is at most this share of the rest; inputs are filled at this share of the same places."""

SEEN = 1e-3
"""Of the largest gradient at an output; less is none."""


@dataclass(frozen=True)
class Padding:
    """What the ends of sequences are filled with."""

    target: float
    share: float
    """Of all positions."""
    counted: bool
    """Whether the loss has a gradient there."""


def padding_of(
    model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn | None = None, *, seed: int = 0
) -> Padding | None:
    """See above; None where there is none, or the loss does not call the model once."""
    found = [pair for batch in batches if (pair := sequences(batch)) is not None]
    if not found or len(found) != len(batches):
        return None
    target = _filler([y for _, y in found])
    masks = [ends(y, target) for _, y in found]
    padded = sum(int(mask.sum()) for mask in masks)
    rest = sum(mask.numel() for mask in masks) - padded
    elsewhere = sum(int(_equal(y, target).sum()) for _, y in found) - padded
    lengths = torch.cat([mask.sum(1) for mask in masks]).unique()
    if not padded or elsewhere > ELSEWHERE * rest or len(lengths) < FEWEST_LENGTHS:
        return None
    if not any(_filled_together([xs[i] for xs, _ in found], masks) for i in range(min(len(xs) for xs, _ in found))):
        return None
    counted = is_counted(model, batches[0], loss_fn, masks[0], seed)
    return None if counted is None else Padding(target, padded / (padded + rest), counted)


def sequences(batch: Batch) -> tuple[list[Tensor], Tensor] | None:
    """The inputs and the targets of a batch of sequences, all with examples first and positions second; None where
    there are no such."""
    targets, inputs = targets_of(batch), list[Tensor]()
    map_tensors(batch, lambda tensor: (inputs.append(tensor), tensor)[1])
    inputs = [x for x in inputs if x is not targets and x.ndim > 1 and x.shape[1] >= SHORTEST and not x.is_sparse]
    if targets is None or not inputs:
        return None
    if targets.ndim == 1 and targets.numel() == inputs[0].shape[:2].numel():
        targets = targets.reshape(inputs[0].shape[:2])
    inputs = [x for x in inputs if len(x) == len(targets)]
    fits = targets.ndim in (2, 3) and targets.shape[1] >= SHORTEST and bool(inputs)
    return (inputs, targets) if fits else None


def ends(sequence: Tensor, filler: float) -> Tensor:
    """Where sequences hold nothing but the filler any more, (examples, positions)."""
    return _equal(sequence, filler).flip(1).cumprod(1).flip(1).bool()


def _equal(sequence: Tensor, filler: float) -> Tensor:
    return (sequence == filler).reshape(*sequence.shape[:2], -1).all(-1)


def _filler(parts: Sequence[Tensor]) -> float:
    return float(torch.cat([part[:, -1].reshape(len(part), -1)[:, 0] for part in parts]).double().mode().values)


def _filled_together(inputs: Sequence[Tensor], masks: Sequence[Tensor]) -> bool:
    """Whether inputs end where targets do, or a position later, as inputs of which the targets are the next."""
    together = padded = 0
    filler = _filler(inputs)
    for x, mask in zip(inputs, masks, strict=True):
        own = ends(x, filler)
        if own.shape != mask.shape:  # a source beside its translation: both have ends
            return not x.is_floating_point() and len(own.sum(1).unique()) >= FEWEST_LENGTHS
        later = torch.cat([own[:, 1:], own[:, -1:]], 1)
        together += int((mask & (own | later)).sum())
        padded += int(mask.sum())
    return together >= TOGETHER * padded


def is_counted(model: nn.Module, batch: Batch, loss_fn: LossFn | None, mask: Tensor, seed: int) -> bool | None:
    """Whether the loss has a gradient at most of the padded outputs; None where that cannot be seen."""
    judge = Unpadded(loss_fn, 0.0)
    with untouched(model), torch.enable_grad():
        model.train()
        torch.manual_seed(seed)
        try:
            loss = judge(model, batch)
            outputs = judge.outputs[0]
            (gradient,) = torch.autograd.grad(loss, outputs, allow_unused=True)
            sizes = None if gradient is None else by_position(gradient, mask.shape)
        except Exception:  # somebody's own code
            return None
    if sizes is None:
        return None
    sizes = sizes.abs().amax(-1)
    mask = mask[:, mask.shape[1] - sizes.shape[1] :]
    return bool((sizes[mask] > SEEN * sizes.max()).double().mean() > 0.5)


def by_position(outputs: Tensor, shape: torch.Size) -> Tensor | None:
    """Outputs as (examples, positions, numbers); None where they have no such order."""
    examples, length = shape
    if outputs.ndim == 3 and len(outputs) == examples and outputs.shape[1] not in (length, length - 1):
        outputs = outputs.movedim(1, -1)
    elif outputs.ndim < 3 and len(outputs) == examples * length:
        outputs = outputs.reshape(examples, length, -1)
    elif outputs.ndim < 3 and len(outputs) == examples * (length - 1):
        outputs = outputs.reshape(examples, length - 1, -1)
    elif outputs.ndim == 2:
        outputs = outputs[..., None]
    return outputs if outputs.shape[0] == examples and outputs.shape[1] in (length, length - 1) else None


class Unpadded(Judged):
    """A loss that is called as it is and judged by the positions that are no padding: cross-entropy of labels, the
    squared error of numbers."""

    def __init__(self, loss_fn: LossFn | None, target: float) -> None:
        self.loss_fn, self.target = loss_fn, target
        self.judged: float | None = None
        self.outputs: list[Tensor] = []

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss."""
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Output) -> None:
            if (tensor := output_tensor(output)) is not None:
                kept.append(tensor)

        handle = model.register_forward_hook(keep)
        try:
            loss = (self.loss_fn or default_loss)(model, batch)
        finally:
            handle.remove()
        self.outputs, found = kept, sequences(batch)
        if len(kept) == 1 and found is not None:
            value = of_sequences(kept[0].detach(), found[1], self.target)
            self.judged = None if value is None else float(value)
        return loss


def of_sequences(outputs: Tensor, targets: Tensor, filler: float) -> Tensor | None:
    """The loss of the positions that are no padding, of outputs that belong to the targets of their own position."""
    placed = by_position(outputs, targets.shape[:2])
    if placed is None:
        return None
    mask = ~ends(targets, filler)
    targets, mask = (part[:, part.shape[1] - placed.shape[1] :] for part in (targets, mask))
    if targets.is_floating_point():
        return F.mse_loss(placed[mask].reshape(targets[mask].shape), targets[mask])
    return F.cross_entropy(placed[mask].float(), targets[mask].long(), ignore_index=IGNORED_LABEL)

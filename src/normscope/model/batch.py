"""A batch, whatever it is: a tensor, a pair, a mapping, nests of these, a list of one mapping an example.

Everything that takes a batch apart or puts it together is here. What a `loss_fn` of somebody's own may take besides is
passed on as it is.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from normscope.errors import InvalidBatch

Batch = Any
"""`(inputs, labels)`, a mapping that the model is called with, or anything that somebody's `loss_fn(model, batch)`
takes."""

TARGET_NAMES = ("labels", "label", "targets", "target", "y")
"""A mapping's entries that are no inputs."""


def parts_of(batch: Batch) -> list[Any]:
    """What a batch holds, one level down; a batch that is no container holds itself."""
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, tuple | list) else [batch]


def map_tensors(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every tensor in its tuples, lists and mappings changed; other objects are left alone."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping | tuple | list):
        return _like(batch, [map_tensors(part, change) for part in parts_of(batch)])
    return batch


def map_inputs(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    """The batch with every floating-point input changed: all of a pair but its last part, all of a mapping but what is
    called labels, a lone tensor."""
    if isinstance(batch, tuple | list) and not _is_list_of_examples(batch):
        inputs = batch[:-1] if len(batch) > 1 else batch
        return _like(batch, [*(_map_all_inputs(part, change) for part in inputs), *batch[len(inputs) :]])
    return _map_all_inputs(batch, change)


def _map_all_inputs(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(part, Tensor):
        dense = part.layout == torch.strided  # links of a graph are no inputs to be scaled
        return change(part) if dense and part.is_floating_point() and part.ndim else part
    if isinstance(part, Mapping):
        return {k: v if k in TARGET_NAMES else _map_all_inputs(v, change) for k, v in part.items()}
    return _like(part, [_map_all_inputs(one, change) for one in part]) if isinstance(part, tuple | list) else part


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on the device."""
    return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))


def num_bytes(batch: Batch) -> int:
    """What the batch's tensors take in memory."""
    if isinstance(batch, Tensor):
        return batch.nbytes if batch.layout == torch.strided else batch.element_size() * batch._nnz()
    return sum(map(num_bytes, parts_of(batch))) if isinstance(batch, Mapping | tuple | list) else 0


def num_examples(batch: Batch) -> int | None:
    """How many examples a batch holds: the length of its first tensor, or of the first one in a mapping inside it; of a
    list of mappings its own length. None where it holds no tensor that can be seen."""
    if _is_list_of_examples(batch):
        return len(batch)
    parts = parts_of(batch)
    direct = next((len(part) for part in parts if isinstance(part, Tensor) and part.ndim), None)
    if direct is not None:
        return direct
    nested = (num_examples(part) for part in parts if isinstance(part, Mapping))
    return next((count for count in nested if count is not None), None)


def count_examples(batch: Batch, *, at_least: int) -> int:
    """How many examples a batch holds; InvalidBatch where it cannot be told, or is fewer than asked for."""
    size = num_examples(batch)
    if size is None:
        raise InvalidBatch(
            f"no tensor in this {type(batch).__name__} says how many examples it has: give a pair or a mapping"
        )
    if size < at_least:
        raise InvalidBatch(f"the batch holds {size} examples: give {at_least} or more")
    return size


def take(batch: Batch, indices: Sequence[int] | Tensor) -> Batch:
    """The batch of these examples only: every tensor as long as the batch is cut, and every list of that many mappings,
    such as the boxes of a detector's images; all else stays as it is."""
    chosen = torch.as_tensor(indices)
    size = num_examples(batch)

    def cut(part: Any) -> Any:
        if isinstance(part, Tensor):
            return _rows(part, chosen.to(part.device)) if part.ndim and len(part) == size else part
        if _is_list_of_examples(part) and len(part) == size:
            return [part[i] for i in chosen.tolist()]
        return _like(part, [cut(one) for one in parts_of(part)]) if isinstance(part, Mapping | tuple | list) else part

    return cut(batch)


def joined(batches: Sequence[Batch]) -> Batch | None:
    """One batch of all examples, in order; None where the parts do not fit."""
    first = batches[0]
    if isinstance(first, Tensor):
        shapes = {batch.shape[1:] for batch in batches}
        return torch.cat(list(batches)) if first.ndim and len(shapes) == 1 else None
    if _is_list_of_examples(first):
        return [example for batch in batches for example in batch]
    if isinstance(first, Mapping) and all(batch.keys() == first.keys() for batch in batches):
        parts = [joined([batch[key] for batch in batches]) for key in first]
    elif isinstance(first, tuple | list) and all(len(batch) == len(first) for batch in batches):
        parts = [joined(some) for some in zip(*batches, strict=True)]
    else:
        return None
    return None if any(part is None for part in parts) else _like(first, parts)


def targets_of(batch: Batch) -> Tensor | None:
    """The targets: a pair's second part, a mapping's `labels`; None where these are no tensor."""
    targets = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(batch, tuple | list) and len(batch) == 2:
        targets = batch[1]
    return targets if isinstance(targets, Tensor) else None


def with_targets(batch: Batch, targets: Tensor) -> Batch:
    """The batch with these in the place of what `targets_of` gives."""
    return {**batch, "labels": targets} if isinstance(batch, Mapping) else (batch[0], targets)


def targets_permuted(batch: Batch, draw: int | None = None) -> Batch | None:
    """The batch with every target at another example, in one cycle through all of them that is always the same, and
    random, since a batch may come sorted. None where there are no targets, or only one.

    Args:
        draw: the seed of an order in place of that cycle, of which all are equally likely.
    """
    targets = targets_of(batch)
    if targets is None or not targets.ndim or len(targets) < 2:
        return None
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(draw or 0))
    source = order
    if draw is None:
        source = torch.empty_like(order)
        source[order] = order.roll(1)
    return with_targets(batch, targets[source.to(targets.device)])


def labelled_pair(batch: Batch) -> tuple[Any, Tensor]:
    """Inputs and integer labels of a pair; what else a batch is, is said in one line as InvalidBatch."""
    if not isinstance(batch, tuple | list) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        what, advice = type(batch).__name__, "give a loss_fn(model, batch)"
        if isinstance(batch, tuple | list):
            what += f" of {', '.join(type(part).__name__ for part in batch[:4])}{', ...' if len(batch) > 4 else ''}"
            if len(batch) == 2:
                advice = "make tensors of them, for example with torch.from_numpy"
        raise InvalidBatch(f"a batch is (inputs, labels) as tensors, or a mapping, not a {what}: {advice}")
    if batch[1].is_floating_point():
        raise InvalidBatch(f"labels are {batch[1].dtype}, not integers: for regression give a loss_fn(model, batch)")
    return batch[0], batch[1]


def _is_list_of_examples(batch: Batch) -> bool:
    return isinstance(batch, list) and bool(batch) and all(isinstance(part, Mapping) for part in batch)


def _like(batch: Mapping[Any, Any] | tuple[Any, ...] | list[Any], parts: list[Any]) -> Batch:
    """The parts in a container like the batch's own; a mapping becomes a dict."""
    if isinstance(batch, Mapping):
        return dict(zip(batch, parts, strict=True))
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*parts)
    return tuple(parts) if isinstance(batch, tuple) else parts


def _rows(tensor: Tensor, chosen: Tensor) -> Tensor:
    rows = tensor.detach().index_select(0, chosen)
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return rows.contiguous(memory_format=torch.channels_last)
    return rows

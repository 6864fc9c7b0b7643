"""The same mini-batches for the same seed at every rate, from whatever gives batches."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import cycle

import torch
from torch import Tensor, nn

from normscope.errors import DataError, InvalidBatch, NormscopeError, at, one_line
from normscope.model.batch import Batch, num_bytes

KEPT_BYTES = 2**31
"""Of a loader's batches at most this much is kept in memory (but two batches always): 2 GiB."""

Batches = Iterable[Batch] | Callable[[int], Iterable[Batch]]
"""What somebody gives: a list of batches, a DataLoader, or a function `seed -> iterator`."""

BatchesOfSeed = Callable[[int | None], Iterator[Batch]]
"""Mini-batches without end, and the same ones each time it is called with the same seed; with None in the order in
which they came."""


def mini_batches(source: Batches, steps: int, seed: int = 0) -> tuple[BatchesOfSeed, int | None]:
    """Endless mini-batches by seed, and how many different ones there are (None where `source` is a function).

    A function `seed -> iterator` is called anew for every descent, and again when it ends early: it must give the same
    batches for the same seed. Of anything else (a list, a DataLoader, an iterator) the first `steps` batches are taken
    once and kept, with torch's generator at `seed`; every seed then walks them in random orders of its own, round after
    round where there are fewer than `steps`.

    Raises:
        InvalidBatch: where there is no batch at all, or `source` gives none by its type.
        DataError: where the source itself raises.
    """
    if callable(source) and not isinstance(source, Iterable | nn.Module):
        return lambda seed: _from_function(source, seed or 0), None
    if isinstance(source, Tensor | Mapping | str | tuple) or not isinstance(source, Iterable):
        raise InvalidBatch(
            f"batches is a {type(source).__name__}: give a list of batches, a DataLoader or a function seed -> iterator"
        )
    kept: list[Batch] = []
    size = 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for batch in _readable(lambda: source):
            kept.append(batch)
            size += num_bytes(batch)
            if len(kept) >= steps or (size > KEPT_BYTES and len(kept) > 1):
                break
    if not kept:
        raise InvalidBatch(
            f"the {type(source).__name__} gives no batch: is its data set empty or smaller than a batch?"
        )
    return lambda seed: cycle(kept) if seed is None else in_random_order(kept, seed), len(kept)


def in_random_order(kept: Sequence[Batch], seed: int) -> Iterator[Batch]:
    """The batches without end, in an order of each seed's own."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for i in torch.randperm(len(kept), generator=generator).tolist():
            yield kept[i]


def _from_function(source: Callable[[int], Iterable[Batch]], seed: int) -> Iterator[Batch]:
    while True:
        yield from one_round(source, seed)


def one_round(source: Callable[[int], Iterable[Batch]], seed: int) -> Iterator[Batch]:
    """What a function gives for a seed, until that ends."""
    empty = True
    for batch in _readable(lambda: source(seed)):
        empty = False
        yield batch
    if empty:
        raise InvalidBatch(f"batches(seed={seed}) gives no batch: it must give at least one")


def _readable(source: Callable[[], Iterable[Batch]]) -> Iterator[Batch]:
    """Iterate, and say in one line what the source raises and when."""
    count = 0
    try:
        for batch in source():
            count += 1
            yield batch
    except (NormscopeError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise DataError(
            f"the batches raised {type(error).__name__} after {count} of them: {one_line(error)}{at(error)}"
        ) from error

"""Do the examples of a batch see each other in evaluation mode? Told by exchanging some and comparing the outputs of
the others:

    mixing = rms(f(a, b) − f(a, b′))_a / std f(a, b),    halves a and b of a batch, b′ of another; and with a exchanged.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from normscope.diagnosis.module_calls import LEAKS, first_changed, module_calls
from normscope.diagnosis.sequences import some_of
from normscope.model.batch import Batch, joined, num_examples, take
from normscope.model.loss import LossFn


def mixing(
    model: nn.Module, batches: Sequence[Batch], loss_fn: LossFn | None = None, *, seed: int = 0
) -> tuple[float, str]:
    """See above, and the path of the first module whose output changes though its input does not; 0 and "" where that
    cannot be seen."""
    if len(batches) < 2:
        return 0.0, ""
    one, two = some_of(batches[0]), some_of(batches[1])
    size = num_examples(one) or 0
    if size < 4 or num_examples(two) != size:
        return 0.0, ""
    first, second = range(size // 2), range(size // 2, size)
    try:
        exchanged = [joined([take(one, first), take(two, second)]), joined([take(two, first), take(one, second)])]
    except Exception:  # parts that are not cut by examples
        return 0.0, ""

    def in_rows(tensor: Tensor) -> Tensor | None:
        return None if len(tensor) % size else tensor.reshape(size, -1)

    def in_copies(tensor: Tensor) -> Tensor | None:
        return None if len(tensor) % size else tensor.reshape(-1, size, *tensor.shape[1:]).movedim(1, 0).flatten(1)

    def largest(by_example: Callable[[Tensor], Tensor | None]) -> tuple[float, str]:
        before = module_calls(model, one, loss_fn, seed, by_example)
        worst = 0.0, ""
        for rows, batch in zip((first, second), exchanged, strict=True):
            after = None if batch is None else module_calls(model, batch, loss_fn, seed, by_example)
            if not before or not after or before[-1][0] or after[-1][0] or len(before) != len(after):
                continue
            spread = float(before[-1][2].std()) or 1.0
            change = float((before[-1][2] - after[-1][2])[list(rows)].square().mean().sqrt()) / spread
            if change > worst[0]:
                worst = change, first_changed(before, after, list(rows)) if change > LEAKS else ""
        return worst

    # Several outputs of an example, as of positions, follow each other; or all come again, as of a second view.
    found = largest(in_rows)
    return min(found, largest(in_copies)) if found[0] > LEAKS else found

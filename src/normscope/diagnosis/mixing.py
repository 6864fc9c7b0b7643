"""Do the examples of a batch see each other in evaluation mode? Told by exchanging some and comparing the outputs of
the others:

    mixing = rms(f(a, b) − f(a, b′))_a / std f(a, b),    halves a and b of a batch, b′ of another; and with a exchanged.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from normscope.diagnosis.sequences import LEAKS, some_of
from normscope.model.batch import Batch, joined, num_examples, take
from normscope.model.loss import LossFn, default_loss
from normscope.model.output import first_tensor, output_tensor
from normscope.model.state import untouched

Calls = list[tuple[str, Tensor | None, Tensor]]
"""(path, input, output) of the modules that give a tensor for every example, the model itself last."""


def mixing(
    model: nn.Module, batches: Sequence[Any], loss_fn: LossFn | None = None, *, seed: int = 0
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
    before = _calls(model, one, loss_fn, seed, size)
    worst = 0.0, ""
    for rows, batch in zip((first, second), exchanged, strict=True):
        after = None if batch is None else _calls(model, batch, loss_fn, seed, size)
        if not before or not after or before[-1][0] or after[-1][0] or len(before) != len(after):
            continue
        spread = float(before[-1][2].std()) or 1.0
        change = float((before[-1][2] - after[-1][2])[list(rows)].square().mean().sqrt()) / spread
        if change > worst[0]:
            worst = change, _first(before, after, list(rows)) if change > LEAKS else ""
    return worst


def _calls(model: nn.Module, batch: Batch, loss_fn: LossFn | None, seed: int, size: int) -> Calls | None:
    """What every module got and gave, (examples, numbers) in float64; None where the model is not called once."""
    calls: Calls = []

    def by_example(value: Any) -> Tensor | None:
        tensor = value if isinstance(value, Tensor) else output_tensor(value) if value is not None else None
        if tensor is None or not tensor.is_floating_point() or not tensor.ndim or len(tensor) % size:
            return None
        return tensor.detach().double().reshape(size, -1).clone()

    with untouched(model), torch.enable_grad():
        model.eval()
        torch.manual_seed(seed)
        for path, module in model.named_modules():

            def hook(_module: nn.Module, inputs: Any, output: Any, path: str = path) -> None:
                given = by_example(output)
                if given is not None:
                    calls.append((path, by_example(first_tensor(inputs)), given))

            module.register_forward_hook(hook)
        try:
            (loss_fn or default_loss)(model, batch)
        except Exception:  # somebody's own code
            return None
    return calls if sum(not path for path, *_ in calls) == 1 else None


def _first(before: Calls, after: Calls, rows: list[int]) -> str:
    for (path, x, y), (_, x_after, y_after) in zip(before, after, strict=True):
        if x is None or x_after is None or not bool(torch.isclose(x[rows], x_after[rows]).all()):
            continue
        if float((y - y_after)[rows].abs().max()) > LEAKS * float(y.abs().max()):
            return path
    return ""

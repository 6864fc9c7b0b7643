"""What `--data`, `--loss`, `--optimizer` and `--lr-range` name."""

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from normscope.cli.target import is_target, load_target
from normscope.errors import InvalidBatch, InvalidConfig, unknown
from normscope.model.batch import Batch

RANDOM_WARNING = (
    "Inputs and labels are random: rates say what the network can take at its start, not what it could learn; "
    "'learns' means that it learns these batches by heart."
)
RANDOM_BATCHES = 8
"""Different random batches: few enough to be learned by heart."""


def batches_of(name: str, batch_size: int, *, data_dir: Path | None, num_outputs: Callable[[Any], int]) -> Any:
    """Batches for `normscope.check`: a function `seed -> iterator` for the data sets that come with us, a list of
    random ones, or what a target names.

    Args:
        num_outputs: how many outputs the model has on a batch of inputs: random labels are drawn below that.

    Raises:
        InvalidConfig, DataError: what cannot be had, in one line.
    """
    from normscope.data import DATA, load_data
    from normscope.data.batches import batches

    if name.startswith("random:"):
        return _random_batches(_random_shape(name), batch_size, num_outputs)
    if is_target(name):
        return loader_of(load_target(name, "--data"))
    if name not in DATA:
        raise unknown("--data", name, [*DATA, "random:3x32x32", "file.py:loader"])
    data = load_data(name, data_dir=data_dir)

    def of_seed(seed: int) -> Iterator[Batch]:
        return batches(data, batch_size, seed=seed)

    next(of_seed(0))  # so that a batch size that does not fit is said at once
    return of_seed


def _random_shape(name: str) -> tuple[int, ...]:
    """The shape of one example in "random:3x32x32"."""
    try:
        shape = tuple(int(part) for part in name.removeprefix("random:").split("x"))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InvalidConfig(f"--data {name!r}: give the shape of one example, as in random:3x32x32 or random:64")
    return shape


def _random_batches(shape: tuple[int, ...], batch_size: int, num_outputs: Callable[[Any], int]) -> list[Any]:
    """A few batches of standard normal inputs with labels drawn evenly."""
    import torch

    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(batch_size, *shape, generator=generator) for _ in range(RANDOM_BATCHES)]
    classes = num_outputs(inputs[0])
    return [(x, torch.randint(classes, (batch_size,), generator=generator)) for x in inputs]


def loader_of(value: Any) -> Any:
    """What a target gives as batches: something to iterate over, a function of no argument that gives that, or a
    function of the seed."""
    if not callable(value) or hasattr(value, "__iter__"):
        return value
    try:
        required = [
            p
            for p in inspect.signature(value).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        required = []
    if required or inspect.isgeneratorfunction(value):
        return value if required else lambda seed: value()
    try:
        return value()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # somebody's loader may raise anything, or exit
        from normscope.errors import DataError, raised

        raise DataError(f"--data: the loader raised {raised(error)}") from error


def loss_of(name: str | None) -> Any:
    """A loss by name or target; None for the default by the batch's type."""
    if name is None or name == "auto":
        return None
    if is_target(name):
        value = load_target(name, "--loss")
        if not callable(value):
            raise InvalidConfig(f"--loss {name}: a {type(value).__name__} is no function loss_fn(model, batch)")
        return value
    if name != "mse":
        raise unknown("--loss", name, ["auto", "mse", "file.py:loss_fn"])
    import torch.nn.functional as F

    def mse(model: Any, batch: Batch) -> Any:
        inputs, targets = batch
        outputs = model(inputs)
        if outputs.shape != targets.shape:
            raise InvalidBatch(
                f"--loss mse: outputs of shape {tuple(outputs.shape)} and targets of shape {tuple(targets.shape)}: "
                "make them the same"
            )
        return F.mse_loss(outputs, targets)

    return mse


def optimizer_of(name: str) -> Any:
    """An optimizer's name, or the factory `(params, lr) -> optimizer` that a target names."""
    return load_target(name, "--optimizer") if is_target(name) else name


def range_of(text: str | None) -> tuple[float, float]:
    """The two rates of "1e-5:0.1"; all that are searched by default for None."""
    from normscope.rates.stable_lr import HIGHEST_LR, LOWEST_LR

    if text is None:
        return LOWEST_LR, HIGHEST_LR
    try:
        low, high = map(float, text.split(":"))
    except ValueError as error:
        raise InvalidConfig(f"--lr-range {text!r}: give two rates, as in 1e-5:0.1") from error
    return low, high

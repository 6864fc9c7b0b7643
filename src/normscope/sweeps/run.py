"""One run of a sweep on a worker, wherever that is: config in, files out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from normscope.data import ImageData, load_data
from normscope.errors import NormscopeError, RunFailed, one_line
from normscope.runtime.device import usable_device
from normscope.sweeps.record import encoded_record
from normscope.sweeps.store import RunFiles
from normscope.training.config import RunConfig
from normscope.training.epochs import CHECKPOINT_SECONDS
from normscope.training.network import encoded_weights
from normscope.training.train import num_threads, trained


def run(
    config: RunConfig,
    *,
    checkpoint: str | Path | None,
    data_dir: str | Path | None = None,
    threads: int | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_epoch: Callable[[int], None] = lambda epochs: None,
) -> RunFiles:
    """Train one network, going on from its checkpoint where there is one; raises as `train` does.

    The data stay in memory for the next run of this process.
    """
    device = usable_device(config.device)
    data = _loaded(config.data, data_dir, device, config.train_size, config.held_out, config.image_size)
    with num_threads(threads):
        over = trained(
            config,
            data,
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=lambda epochs, _: on_epoch(epochs),
        )
    return RunFiles(encoded_record(over.result), encoded_weights(over.net, config), over.result.attrs["outcome"])


def attempt(config: Mapping[str, Any], **options: Any) -> RunFiles | NormscopeError:
    """`run` on a config in plain values, with what it raises as its answer, so that it can be sent to the driver."""
    try:
        return run(RunConfig.from_mapping(config), **options)
    except NormscopeError as error:
        return error
    except Exception as error:
        return RunFailed(f"bug in normscope: {type(error).__name__}: {one_line(error)}")


@lru_cache(maxsize=1)
def _loaded(
    name: str,
    data_dir: str | Path | None,
    device: str,
    train_size: int | None,
    held_out: int,
    image_size: int | None,
) -> ImageData:
    return load_data(
        name, data_dir=data_dir, device=device, train_size=train_size, held_out=held_out, image_size=image_size
    )

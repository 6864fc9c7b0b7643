"""Train a network as the paper does, and record every epoch: `normscope.train(RunConfig(...))`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import xarray as xr
from torch import nn

from normscope.data import ImageData, load_data
from normscope.errors import InvalidConfig
from normscope.results import ensure_writable, write_bytes
from normscope.runtime.device import usable_device
from normscope.runtime.progress import progress
from normscope.training.checkpoint import Progress
from normscope.training.config import RunConfig
from normscope.training.epochs import CHECKPOINT_SECONDS, descent
from normscope.training.network import encoded_weights
from normscope.training.result import result_of


@dataclass(frozen=True)
class Trained:
    """A run at its end."""

    result: xr.Dataset
    """As `train` returns it."""
    net: nn.Module
    """With its final weights, in evaluation mode."""


def train(
    config: RunConfig,
    *,
    checkpoint: str | Path | None = None,
    weights: str | Path | None = None,
    data_dir: str | Path | None = None,
    threads: int | None = None,
) -> xr.Dataset:
    """Train one network by SGD with momentum and record every epoch.

    The same config and the same number of threads give the same bits on one machine. With a `checkpoint`, a run
    that was interrupted or killed at any moment goes on when the same call is made again, and ends with the same bits
    (but for `seconds`). A checkpoint of another run, thread count, torch or kind of processor is not gone on from: the
    run begins anew.

    Args:
        checkpoint: a file, written every 30 s inside an epoch, and at its end if the last one is a second old.
        weights: a safetensors file for the final weights, buffers included (see `train.network.trained_network`).
        data_dir: where CIFAR-10 lies, as for `load_data`.
        threads: of the processor, by default torch's own number; the number is put back afterwards.

    Returns:
        A Dataset over `epoch` (1 to config.epochs), of which `steps` says how many mini-batches were trained on:
        fewer in the epoch in which the loss diverged, and 0 after it, where all else but `lr` and `evaluated` is NaN.

        - `train_loss` (nats), `train_accuracy`: means over the epoch's mini-batches as they were met: augmented, in
          training mode, each before its step.
        - `test_loss`, `test_accuracy`, and with held-out images `held_out_loss`, `held_out_accuracy`: at the epoch's
          end, in evaluation mode, BN with its running statistics. An example with a NaN among its logits is wrong.
          They are NaN where `evaluated` is 0: see `RunConfig.evaluate_every`.
        - with `RunConfig.evaluate_train`, `clean_train_loss`, `clean_train_accuracy`: the same of the training images
          themselves; with `sharpness_at` also `sharpness` and `weight_norm`, see `training.ending`; NaN in between.
        - `gradient_norm`: mean over the epoch's steps of the norm of the mini-batch's gradient, without weight decay.
        - `lr`, and `seconds`, evaluation and interrupted attempts included up to their last checkpoint.

        Attributes: `outcome` (see `normscope.descent.outcome`), `ended_early` (why, or empty: see `training.ending`),
        config, key, precision and threads used, data.

    Raises:
        InvalidConfig: where sizes do not fit the data.
        DataError, DeviceError: where the data or the device are not there.
        OutputError: where a checkpoint or the weights cannot be written; before anything is trained, if their folder
            cannot.
    """
    device = usable_device(config.device)
    for file in (checkpoint, weights):
        if file is not None:
            ensure_writable(Path(file).parent)
    data = load_data(
        config.data,
        data_dir=data_dir,
        device=device,
        train_size=config.train_size,
        held_out=config.held_out,
        image_size=config.image_size,
    )
    with num_threads(threads), progress("train", config.epochs) as bar:
        begun = False

        def on_epoch(epochs: int, recorded: Progress) -> None:
            nonlocal begun
            if begun:
                bar.advance(f"training accuracy {recorded.epochs[-1]['train_accuracy']:.1%}")
            else:
                bar.skip(epochs)
            begun = True

        run = trained(config, data, checkpoint=checkpoint, on_epoch=on_epoch)
    if weights is not None:
        write_bytes(weights, encoded_weights(run.net, config))
    return run.result


def trained(
    config: RunConfig,
    data: ImageData,
    *,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    on_epoch: Callable[[int, Progress], None] = lambda epochs, recorded: None,
) -> Trained:
    """`train` on data that is loaded already, with the threads that torch has; gives the network as well."""
    run = descent(
        config, data, checkpoint=None if checkpoint is None else Path(checkpoint), checkpoint_seconds=checkpoint_seconds
    )
    run.walk(on_epoch)
    run.net.eval()
    return Trained(result_of(run), run.net)


@contextmanager
def num_threads(threads: int | None) -> Iterator[None]:
    """Compute with this many threads inside; None for torch's own number."""
    if threads is not None and threads < 1:
        raise InvalidConfig(f"threads is {threads}: it must be at least 1")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)

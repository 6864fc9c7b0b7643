"""The descent of a run, epoch by epoch, and how it goes on after it was killed.

Nothing here depends on a random state that would have to be kept: the networks draw no numbers, and the batches of an
epoch are fixed by (seed, epoch). So weights, momentum and the number of steps are all that a run goes on from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from normscope.data import ImageData, epoch
from normscope.descent.loop import descend
from normscope.descent.outcome import has_diverged
from normscope.descent.precision import Autocast, autocast
from normscope.model.batch import Batch
from normscope.model.loss import cross_entropy, label_entropy, readable_errors
from normscope.model.vector_norm import norm_of_each
from normscope.training.checkpoint import STEP_QUANTITIES, Progress, load_checkpoint, save_checkpoint
from normscope.training.config import RunConfig, key
from normscope.training.ending import ended_early, sharpness_row, spread_on_training_images
from normscope.training.evaluation import evaluate, num_correct
from normscope.training.network import fresh_network
from normscope.training.precision import used_precision

CHECKPOINT_SECONDS = 30.0
"""Inside an epoch a checkpoint is written this often: what a kill can cost."""

EPOCH_SECONDS = 1.0
"""At the end of an epoch one is written as soon as the last one is this old: a run of a second needs none."""


@dataclass
class Descent:
    """A run under way: `walk` takes it to its end."""

    config: RunConfig
    data: ImageData
    net: nn.Module
    optimizer: torch.optim.SGD
    precision: str
    """What is used: "fp32" or "bf16"."""
    constant_loss: float
    """The loss of the best constant output: the entropy of the training labels, in nats."""
    progress: Progress
    checkpoint: Path | None
    checkpoint_seconds: float
    _saved: float = field(default=0.0, init=False)
    """When the last checkpoint was written, or the walk began, by the monotonic clock."""

    def walk(self, on_epoch: Callable[[int, Progress], None]) -> None:
        """Train to the end, or until the run diverges; `on_epoch` is called with the number of epochs that are over.

        Raises:
            DeviceError: no memory left.
            OutputError: the checkpoint cannot be written.
        """
        self._saved = time.monotonic()
        on_epoch(len(self.progress.epochs), self.progress)
        with readable_errors(), torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
            while len(self.progress.epochs) < self.config.epochs and not self.progress.is_over:
                self._walk_epoch()
                on_epoch(len(self.progress.epochs), self.progress)

    def _walk_epoch(self) -> None:
        progress, number = self.progress, len(self.progress.epochs)
        clock = _Clock(progress)

        def after_step(_: int) -> None:
            if self._is_due(self.checkpoint_seconds):
                clock.read()
                self._save()

        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr_of(number)
        self._walk_steps(number, after_step)
        row = self._row(number)
        clock.read()
        progress.epochs.append({**row, "seconds": progress.seconds})
        progress.seconds = 0.0
        if self._is_due(min(self.checkpoint_seconds, EPOCH_SECONDS)):
            self._save()

    def _walk_steps(self, number: int, after_step: Callable[[int], None]) -> None:
        """The steps of epoch `number` that are left; sets `progress.diverged`, and stops, where the loss says so."""
        config, steps = self.config, self.progress.steps
        correct: list[Tensor] = []

        def loss_fn(net: nn.Module, batch: Batch) -> Tensor:
            images, labels = batch
            logits = net(images.contiguous(memory_format=torch.channels_last))
            correct.append(num_correct(logits.detach(), labels))
            return cross_entropy(logits, labels)

        batches = epoch(
            self.data,
            config.batch_size,
            seed=config.seed,
            epoch=number,
            augment=config.augment,
            start=self.progress.num_steps - number * self._steps_per_epoch,
        )
        best = min(filter(math.isfinite, steps["loss"]), default=math.inf)
        cast = self.autocast
        for step in descend(self.net, self.optimizer, batches, loss_fn=loss_fn, autocast=cast, after_step=after_step):
            gradients = [p.grad for p in self.net.parameters() if p.grad is not None]
            norm = norm_of_each(gradients).norm()
            numbers = torch.stack([step.loss.double(), correct.pop().double(), norm]).tolist()  # one synchronization
            for name, value in zip(STEP_QUANTITIES, numbers, strict=True):
                steps[name].append(value)
            loss = steps["loss"][-1]
            if has_diverged(loss, start=steps["loss"][0], best=min(best, loss), constant_loss=self.constant_loss):
                self.progress.diverged = True
                break
            best = min(best, loss)

    def _row(self, number: int) -> dict[str, float]:
        """The results of an epoch; where it diverged, of its steps up to there and of the network as it stands."""
        progress, first = self.progress, number * self._steps_per_epoch
        recorded = {name: np.array(values[first:]) for name, values in progress.steps.items()}
        row = {
            "steps": len(recorded["loss"]),
            "train_loss": float(recorded["loss"].mean()),
            "train_accuracy": float(recorded["correct"].mean()) / self.config.batch_size,
            "gradient_norm": float(recorded["gradient_norm"].mean()),
        }
        if self.config.evaluate_train:
            row |= self._clean_row(number, row)
        row["evaluated"] = progress.diverged or bool(progress.ended_early) or self.config.is_evaluated(number)
        for split in ("held_out", "test") if self.config.held_out else ("test",):
            row[f"{split}_loss"], row[f"{split}_accuracy"] = (
                evaluate(self.net, self.data, split, self.autocast) if row["evaluated"] else (math.nan, math.nan)
            )
        return row

    def _clean_row(self, number: int, row: dict[str, float]) -> dict[str, float]:
        """What the training images themselves show of an epoch; sets `progress.ended_early`, where they say so."""
        progress, config = self.progress, self.config
        clean: dict[str, float] = dict.fromkeys(("clean_train_loss", "clean_train_accuracy"), math.nan)
        if progress.diverged or config.is_train_evaluated(number):
            found = evaluate(self.net, self.data, "train", self.autocast)
            clean = {"clean_train_loss": found[0], "clean_train_accuracy": found[1]}
        rows = [*progress.epochs, {**row, **clean}]
        if config.sharpness_at:
            clean |= sharpness_row(config, rows, self.net, self.data)
        if config.end_early and not progress.diverged and config.is_train_evaluated(number):
            spread = spread_on_training_images(self.net, self.data)
            progress.ended_early = ended_early(config, rows, self.constant_loss, spread)
        return clean

    @property
    def autocast(self) -> Autocast:
        """Makes the context of a forward pass."""
        return autocast(self.precision, str(self.data.device))

    @property
    def _steps_per_epoch(self) -> int:
        return len(self.data.train_images) // self.config.batch_size

    def _is_due(self, seconds: float) -> bool:
        """Whether the last checkpoint is that old."""
        return self.checkpoint is not None and time.monotonic() - self._saved >= seconds

    def _save(self) -> None:
        assert self.checkpoint is not None
        identity = _identity_of(self.config, self.data, self.precision)
        save_checkpoint(self.checkpoint, identity, self.net, self.optimizer, self.progress)
        self._saved = time.monotonic()


def descent(
    config: RunConfig, data: ImageData, *, checkpoint: Path | None, checkpoint_seconds: float = CHECKPOINT_SECONDS
) -> Descent:
    """The run from its start, or from its checkpoint where there is one that it can go on from with the same bits."""
    precision = used_precision(config.precision, str(data.device))
    net = fresh_network(config, data).train()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=True
    )
    progress = None
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, _identity_of(config, data, precision), net, optimizer)
    constant_loss = label_entropy(data.train_labels)
    return Descent(
        config, data, net, optimizer, precision, constant_loss, progress or Progress(), checkpoint, checkpoint_seconds
    )


def _identity_of(config: RunConfig, data: ImageData, precision: str) -> dict[str, Any]:
    """What fixes the bits beside the config: a checkpoint of another identity is not gone on from."""
    gpu = data.device.type == "cuda"
    return {
        "key": key(config),
        "precision": precision,
        "data": data.fingerprint,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processor": torch.cuda.get_device_name(data.device) if gpu else torch.backends.cpu.get_cpu_capability(),
    }


class _Clock:
    """Adds the time since it was last read to the seconds of the epoch."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._since = progress, time.perf_counter()

    def read(self) -> None:
        now = time.perf_counter()
        self._progress.seconds += now - self._since
        self._since = now

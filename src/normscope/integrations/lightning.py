"""`ns.watch` as a Lightning callback.

    from normscope.integrations.lightning import Watch
    trainer = Trainer(callbacks=[Watch()])

Needs the extra: pip install normscope[lightning].
"""

# The library is not there when types are checked, and a checker takes this file for it.
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from normscope.model.batch import Batch
from normscope.model.loss import LossFn
from normscope.model.output import Output
from normscope.monitoring.alarm import Alarm
from normscope.monitoring.watch import Watch as LoopWatch
from normscope.monitoring.watch import watch


class Watch(Callback):
    """Watches the training of a `LightningModule` with one optimizer; see `normscope.watch`.

    It looks after the backward pass and before the optimizer's step, whatever other callbacks there are and in
    whatever order. The measured loss is that of `training_step`, unless a `loss_fn` is given. On several processes the
    first one measures, and all of them stop together.
    """

    def __init__(
        self,
        loss_fn: LossFn | None = None,
        overhead: float = 0.02,
        every: int | None = None,
        out: str | Path | None = "watch",
        *,
        on_alarm: Callable[[Alarm], object] | str = "tell",
        log: bool = True,
    ) -> None:
        """
        Args:
            out: folder of the flight record, below the trainer's `default_root_dir` unless absolute; None for none.
            on_alarm: "tell", "stop" (the trainer ends after this batch), "raise", or a function.
            log: give what is measured to the trainer's logger.
        """
        super().__init__()
        self.loss_fn, self.overhead, self.every, self.out = loss_fn, overhead, every, out
        self.on_alarm, self.log_scalars = on_alarm, log
        self.watch: LoopWatch | None = None
        self._batch: tuple[Any, int] = (None, 0)
        self._loss: Any = None
        self._steps_before = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to watch."""
        folder = None if self.out is None else Path(trainer.default_root_dir) / self.out
        self.watch = watch(
            pl_module,
            trainer.optimizers[0],
            self.loss_fn or self._training_step(trainer),
            self.overhead,
            self.every,
            folder,
            on_alarm=self.on_alarm,
            autocast=trainer.precision_plugin.forward_context,
            trackers=[_Logger(trainer)] if self.log_scalars and trainer.logger is not None else [],
        )
        self.watch.steps = self._steps_before
        if len(trainer.optimizers) > 1:
            self.watch.measuring = False
            self.watch.note("several optimizers: only loss and rate are watched, nothing is measured")

    def _training_step(self, trainer: Trainer) -> LossFn:
        def loss(module: LightningModule, batch: Batch) -> torch.Tensor:
            module.log = module.log_dict = lambda *_args, **_options: None  # a measurement is no step of the training
            try:
                accepts = module.training_step.__code__.co_argcount
                output = module.training_step(batch, self._batch[1]) if accepts > 2 else module.training_step(batch)
            finally:
                del module.log, module.log_dict
            return output["loss"] if isinstance(output, dict) else output

        return loss

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Remember the batch."""
        self._batch = (batch, batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Remember the loss, as it was before it was divided for accumulation."""
        self._loss = loss.detach() * trainer.accumulate_grad_batches

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Look at this step: gradients are there, and the optimizer has not moved."""
        if self.watch is not None and self._loss is not None:
            self.watch.step(self._loss, self._batch[0])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Output, batch: Batch, batch_idx: int
    ) -> None:
        """Stop all processes together where one of them asks for it."""
        if self.watch is None or self.on_alarm != "stop":
            return
        if trainer.strategy.reduce_boolean_decision(self.watch.should_stop, all=False):
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End watching; the watch and its record stay."""
        if self.watch is not None:
            self.watch.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End watching."""
        if self.watch is not None:
            self.watch.close()

    def state_dict(self) -> dict[str, Any]:
        """How many steps were watched, and the alarms."""
        alarms = [vars(alarm) for alarm in self.watch.alarms] if self.watch is not None else []
        return {"steps": self.watch.steps if self.watch is not None else 0, "alarms": alarms}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from where the checkpoint was written."""
        self._steps_before = int(state_dict["steps"])


class _Logger:
    """The trainer's logger as a tracker."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    def log(self, values: dict[str, float], step: int) -> None:
        """Log some numbers."""
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=step)

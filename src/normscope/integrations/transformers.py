"""`ns.watch` as a callback of transformers' Trainer.

    from normscope.integrations.transformers import Watch
    trainer = Trainer(..., callbacks=[Watch()])

Needs the extra: pip install normscope[transformers].
"""

# The library is not there when types are checked, and a checker takes this file for it.
# pyright: reportMissingImports=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from normscope.model.loss import LossFn
from normscope.model.output import entry
from normscope.monitoring.alarm import Alarm
from normscope.monitoring.watch import Watch as LoopWatch
from normscope.monitoring.watch import watch


class Watch(TrainerCallback):
    """Watches a `Trainer`; see `normscope.watch`.

    A hook on the model sees the batch and the loss of every training pass; it looks when the gradients are there, after
    clipping and before the optimizer moves. The measured gradients are its own, and so unclipped. It changes nothing
    but the trainer's `control.should_training_stop`, with on_alarm="stop".
    """

    def __init__(
        self,
        loss_fn: LossFn | None = None,
        overhead: float = 0.02,
        every: int | None = None,
        out: str | Path | None = "watch",
        *,
        on_alarm: Callable[[Alarm], object] | str = "tell",
        trackers: list[Any] | None = None,
    ) -> None:
        """
        Args:
            out: folder of the flight record, below the trainer's `output_dir` unless absolute; None for none.
            on_alarm: "tell", "stop" (sets `control.should_training_stop`), "raise", or a function.
            trackers: see `normscope.watch`.
        """
        self.loss_fn, self.overhead, self.every, self.out = loss_fn, overhead, every, out
        self.on_alarm, self.trackers = on_alarm, trackers or []
        self.watch: LoopWatch | None = None
        self._seen: tuple[Any, Tensor | None] = (None, None)
        self._handle: Any = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Any = None,
        **kwargs: Any,
    ) -> None:
        """Begin to watch."""
        assert model is not None and optimizer is not None
        folder = None if self.out is None else Path(args.output_dir or ".") / self.out
        self.watch = watch(
            model,
            optimizer,
            self.loss_fn,
            self.overhead,
            self.every,
            folder,
            on_alarm=self.on_alarm,
            trackers=self.trackers,
        )
        self.watch.steps = state.global_step

        def on_pass(module: nn.Module, _inputs: object, named: dict[str, Any], output: Any) -> None:
            loss = entry(output, "loss")
            if module.training and isinstance(loss, Tensor) and loss.requires_grad:
                # Labels and inputs only: what a trainer adds for its own sums would change the loss's scale.
                batch = {key: value for key, value in named.items() if key != "num_items_in_batch"}
                self._seen = (batch, loss.detach())

        self._handle = self.watch.model.register_forward_hook(on_pass, with_kwargs=True)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at this step, before the optimizer moves."""
        batch, loss = self._seen
        if self.watch is None or loss is None:
            return
        self.watch.step(loss, batch)
        if self.watch.should_stop:
            control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """End watching; the watch and its record stay."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self.watch is not None:
            self.watch.close()

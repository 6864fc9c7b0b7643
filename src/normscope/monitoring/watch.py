"""`ns.watch`: beside a running training, in two lines of anybody's loop."""

import math
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import xarray as xr
from torch import Tensor, nn

from normscope.errors import InvalidConfig, TrainingAlarm, one_line
from normscope.model.batch import Batch
from normscope.model.build import unwrapped
from normscope.model.loss import LossFn
from normscope.monitoring.alarm import Alarm
from normscope.monitoring.flight import FlightRecord
from normscope.monitoring.measurement import Measurement, measure, measured_sharpness
from normscope.monitoring.next_update import inside
from normscope.monitoring.postmortem import Before, Postmortem, find_cause
from normscope.monitoring.record import record_of
from normscope.monitoring.schedule import Schedule
from normscope.monitoring.signals import FreeStep, Signals, gradient_norm
from normscope.monitoring.snapshot import batch_arrays, largest_numbers, weight_arrays
from normscope.monitoring.trackers import Tracker, alarm_value, check_tracker, scalars_of, track
from normscope.monitoring.trigger import DIVERGED, JUMPED, Trigger
from normscope.monitoring.warning import warning
from normscope.results import provenance

ON_ALARM = ("tell", "stop", "raise")

THINNED_EVERY, LARGEST_STRIDE = 25, 16
"""How often it is asked whether the gradient's norm costs too much, and how rarely it is then seen at most."""

KEPT_IN_MEMORY = 1000
"""Measurements beside the first; the flight record may have more."""

WRITTEN_EVERY = 500
"""After so many steps they are written into the flight record, measured or not."""

RECENT = 20
"""Steps whose gradient norms say what is usual."""

SUSPECT = 30.0
"""A gradient this many times as large as all recent ones is about to destroy the weights."""


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_fn: LossFn | None = None,
    overhead: float = 0.02,
    every: int | None = None,
    out: str | Path | None = None,
    *,
    on_alarm: Callable[[Alarm], object] | str = "tell",
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    trackers: Sequence[Tracker] = (),
    sharpness: bool = False,
) -> "Watch":
    """Watch a training from inside its loop; it goes on bit for bit as without.

        with ns.watch(model, optimizer, out="runs/a") as watch:
            for batch in loader:
                ...                      # forward, backward, as ever
                watch.step(loss, batch)  # after backward: best before, or else after optimizer.step()

    At every step it looks at what is free: the loss it is given, the rate, the norm of the gradient. Now and then it
    measures, by passes of its own on the eager module: activations and gradients layer by layer, and how many times
    longer the optimizer's next step could be before the loss rises. `Watch.alarms` has what it warns of, `Watch.record`
    everything it saw.

    Args:
        model: as it is trained: bare, compiled, or wrapped by DataParallel. Of a sharded model (FSDP) only what is
            free is looked at.
        optimizer: of its parameters.
        loss_fn: `loss_fn(model, batch)`, the scalar that is minimised; by default cross-entropy of `model(x)` for a
            pair `(x, y)`, and `model(**batch).loss` for a mapping.
        overhead: the share of the training's own time that it may take.
        every: measure every so many steps instead, whatever that takes.
        out: folder of the flight record; None for none. One that is there already is kept in `earlier/1` inside it.
        on_alarm: "tell" writes the alarm to standard error; "stop" also sets `Watch.should_stop`; "raise" raises
            `TrainingAlarm`; a function is called with the `Alarm`.
        autocast: makes the context that the training's forward pass runs in.
        trackers: that get every measurement as scalars: TensorBoard's SummaryWriter, or anything with
            `log(values, step=...)`, as accelerate's trackers have.
        sharpness: also measure λ₁ of the Hessian, which takes up to 30 Hessian-vector products each time; SGD with
            momentum μ is at the edge where λ₁ is 2(1 + μ) / lr. `overhead` counts it, so that there are fewer
            measurements.

    Raises:
        InvalidConfig: an overhead that is not a share, an interval below 1, an unknown `on_alarm`, no optimizer.
        OutputError: where the folder cannot be written.
    """
    if not isinstance(model, nn.Module):
        raise InvalidConfig(f"watch takes the nn.Module that is trained, not a {type(model).__name__}")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidConfig(f"watch takes the torch optimizer that trains it, not a {type(optimizer).__name__}")
    if not (0 < overhead <= 1):
        raise InvalidConfig(f"overhead is a share of the training's time, above 0 and up to 1, not {overhead}")
    if every is not None and (not isinstance(every, int) or every < 1):
        raise InvalidConfig(f"every is a number of steps, 1 or more, not {every}")
    if not callable(on_alarm) and on_alarm not in ON_ALARM:
        raise InvalidConfig(f"on_alarm is a function or one of {', '.join(ON_ALARM)}, not {on_alarm!r}")
    for tracker in trackers:
        check_tracker(tracker)
    return Watch(model, optimizer, loss_fn, overhead, every, out, on_alarm, autocast, trackers, sharpness)


class Watch:
    """What `watch` gives: told of every step, it measures, warns and records."""

    alarms: list[Alarm]
    """All so far, in the order they came."""
    should_stop: bool
    """Whether an alarm asks to stop: for the loop to look at, with on_alarm="stop"."""
    notes: list[str]
    """What it cannot see in this training, a line each."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_fn: LossFn | None,
        overhead: float,
        every: int | None,
        out: str | Path | None,
        on_alarm: Callable[[Alarm], object] | str,
        autocast: Callable[[], AbstractContextManager[Any]],
        trackers: Sequence[Tracker] = (),
        sharpness: bool = False,
    ) -> None:
        self.model, self.optimizer = unwrapped(model), inside(optimizer)
        self.loss_fn, self.on_alarm, self.autocast = loss_fn, on_alarm, autocast
        self.trackers, self.sharpness = list(trackers), sharpness
        self.alarms, self.notes, self.should_stop = [], [], False
        self.measurements: list[Measurement] = []
        self.signals, self.trigger = Signals(), Trigger()
        self.schedule = Schedule(overhead, every, time.perf_counter)
        self.steps = 0
        self.postmortem: Postmortem | None = None
        self._stride = 1
        self._free = 0.0
        self._unwritten: list[FreeStep] = []
        self._told: list[Alarm] = []
        self._before = Before(-1, {}, {}, {}, math.nan, math.nan, math.nan)
        self._rescued: dict[str, Tensor] = {}
        self._batches: deque[tuple[int, Batch]] = deque(maxlen=3)
        self._norm: Tensor | None = None
        self._handle: Any = None
        self.measuring = True
        if _is_sharded(model):
            self.measuring = False
            self.note("the model is sharded: only loss and rate are watched, nothing is measured")
        elif not _is_main_process():
            self.measuring = False
        elif not {id(p) for p in model.parameters()} & {id(p) for g in optimizer.param_groups for p in g["params"]}:
            self.note("the optimizer holds none of this model's parameters: is it another model's?")
        self.flight = FlightRecord(out, self._origin()) if out is not None and _is_main_process() else None
        if self.flight and self.flight.earlier:
            print(f"normscope: the folder's earlier record is kept in {self.flight.earlier}", file=sys.stderr)
        self._open()

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        """Look at the gradient's norm whenever the optimizer is about to move."""
        if self._handle is None and not _is_sharded(self.model):
            alive = weakref.ref(self)

            def before_step(optimizer: torch.optim.Optimizer, _args: object, _kwargs: object) -> None:
                if (watch := alive()) is not None:
                    watch._see_gradient(optimizer)

            self._handle = self.optimizer.register_step_pre_hook(before_step)

    def close(self) -> None:
        """Take the hook off the optimizer; the record stays."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        new = [alarm for entry in self.signals.arrived(wait=True) for alarm in self._see(entry)]
        self.alarms += new
        self._told += new
        self._write(None, None)

    def note(self, line: str) -> None:
        """Say once what cannot be seen."""
        if line not in self.notes:
            self.notes.append(line)
            print(f"normscope: {line}", file=sys.stderr)

    def _see_gradient(self, optimizer: torch.optim.Optimizer) -> None:
        if self.steps % self._stride:
            return
        begun = time.perf_counter()
        try:
            with torch.no_grad():
                self._norm = gradient_norm(optimizer)
                if self._norm is not None and self._norm.device.type == "cpu" and self.measuring:
                    self._rescue(float(self._norm))
        except Exception as error:  # the training must go on, whatever its gradients are
            self._norm = None
            self.note(f"the gradient's norm is not seen: {one_line(error)}")
        self._spend_free(time.perf_counter() - begun)

    def _spend_free(self, seconds: float) -> None:
        """Book what every step costs; where that is more than half of the overhead, the gradient is seen less often."""
        self._free += seconds
        self.schedule.spend(seconds)
        schedule = self.schedule
        if schedule.every is None and self.steps % THINNED_EVERY == 0 and self._stride < LARGEST_STRIDE:
            training = schedule.clock() - schedule.begun - schedule.spent
            if self._free > schedule.overhead / 2 * training:
                self._stride *= 2

    def _rescue(self, norm: float) -> None:
        """Keep the weights for a moment where the optimizer is about to make a step that may well destroy them."""
        usual = max((entry.gradient_norm for entry in self._recent() if entry.looked_at), default=math.nan)
        self._rescued = {}
        if not self.trigger.has_diverged and (not math.isfinite(norm) or norm > SUSPECT * usual):
            named = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
            self._rescued = {name: tensor.detach().clone() for name, tensor in named.items()}

    def _recent(self) -> list[FreeStep]:
        steps = self.signals.steps
        return [steps[i] for i in range(max(0, len(steps) - RECENT), len(steps))]

    def step(self, loss: Any, batch: Batch = None) -> None:
        """Tell of one step: after `loss.backward()`, before or after `optimizer.step()`.

        Before it is better: where a step goes wrong, the weights that made the loss are still there to look at.

        Args:
            loss: of this mini-batch, a tensor of one number; it is read without waiting for a GPU.
            batch: what `loss_fn(model, batch)` takes; None for a step of which only the loss is known.

        Raises:
            TrainingAlarm: on an alarm, with on_alarm="raise".
            InvalidConfig: the loss is no single number.
        """
        if isinstance(loss, Tensor):
            what, is_number = f"{tuple(loss.shape)} of {loss.dtype} on {loss.device}", loss.numel() == 1
            is_number = is_number and not loss.is_complex() and not loss.is_meta
        else:
            what, is_number = f"{loss!r:.40}", hasattr(loss, "__float__")
        if not is_number:
            raise InvalidConfig(f"watch.step takes the loss of the mini-batch, one number, not {what}")
        begun = time.perf_counter()
        step, self.steps = self.steps, self.steps + 1
        lr = max((float(group.get("lr", math.nan)) for group in self.optimizer.param_groups), default=math.nan)
        norm, self._norm = self._norm, None
        self._batches.append((step, batch))
        new = [alarm for entry in self.signals.put(step, loss, lr, norm) for alarm in self._see(entry)]
        self.alarms += new
        self._told += new
        self._spend_free(time.perf_counter() - begun)
        if (
            batch is not None
            and self.measuring
            and not self.trigger.has_diverged
            and self.schedule.due(self.steps, suspicious=self.trigger.suspicious)
        ):
            begun = time.perf_counter()
            self._measure(step, batch)
            self.schedule.spend(time.perf_counter() - begun, measurement=True)
        if self._told or len(self._unwritten) >= WRITTEN_EVERY:
            self._write(None, None)
        for alarm in new:
            self._track(alarm_value(alarm.confidence), alarm.step)
            self._tell(alarm)

    def _see(self, entry: FreeStep) -> list[Alarm]:
        """Take in one step, and give the alarms it raises."""
        self._unwritten.append(entry)
        due = self.trigger.see(entry, self._recent())
        if due in (DIVERGED, JUMPED):
            return [self._look_into(entry)]
        return [warning(entry.step, self.trigger.outlook.features(), self.measurements)] if due else []

    def _look_into(self, entry: FreeStep) -> Alarm:
        """A post-mortem of a step that went wrong; whatever fails there, the alarm is given."""
        batch = next((batch for step, batch in self._batches if step == entry.step), None)
        found: Postmortem | None = None
        if batch is not None and self.measuring:
            begun = time.perf_counter()
            try:
                found = find_cause(
                    self.model,
                    self.optimizer,
                    batch,
                    replace(self._before, weights=self.flight.last_weights() if self.flight else {}),
                    step=entry.step,
                    loss=entry.loss,
                    rescued=self._rescued,
                    loss_fn=self.loss_fn,
                    autocast=self.autocast,
                )
            except Exception as error:  # the training must go on
                self.note(f"no post-mortem: {one_line(error)}")
            self.schedule.spend(time.perf_counter() - begun)
        if found is None:
            sentence = f"step {entry.step}: the loss is {entry.loss:.3g}: diverged; nothing more is known"
            found = Postmortem("diverged", "", None, sentence, math.nan, xr.Dataset())
        self.postmortem = found
        self._rescued = {}
        with self._recording():
            if self.flight is not None:
                self.flight.write_postmortem(found, entry.step, batch)
        return Alarm(entry.step, found.cause, found.layer, found.sentence, 1.0)

    def _tell(self, alarm: Alarm) -> None:
        if callable(self.on_alarm):
            self.on_alarm(alarm)
            return
        print(f"normscope: {alarm.sentence}", file=sys.stderr)
        self.should_stop = self.should_stop or self.on_alarm == "stop"
        if self.on_alarm == "raise":
            raise TrainingAlarm(alarm.sentence)

    def _measure(self, step: int, batch: Batch) -> None:
        try:
            found = measure(
                self.model,
                self.optimizer,
                batch,
                step=step,
                loss_fn=self.loss_fn,
                autocast=self.autocast,
                clip_norm=self.signals.clip_norm,
                guess=self.measurements[-1].scalars["critical_multiple"] if self.measurements else None,
            )
        except Exception as error:  # the training must go on, whatever a model or a loss does
            self.measuring = False
            self.note(f"nothing is measured from step {step} on, only loss and rate are watched: {one_line(error)}")
            return
        if self.sharpness:
            found = self._with_sharpness(found, batch)
        self.measurements.append(found)
        del self.measurements[1:-KEPT_IN_MEMORY]
        self.trigger.outlook.measure(step, found.scalars, found.per_layer)
        self._write(found, batch)
        self._track(scalars_of(found), step)

    def _with_sharpness(self, found: Measurement, batch: Batch) -> Measurement:
        begun = time.perf_counter()
        try:
            value = measured_sharpness(self.model, batch, loss_fn=self.loss_fn, autocast=self.autocast)
        except Exception as error:  # as above
            self.sharpness = False
            self.note(f"no sharpness from step {found.step} on: {one_line(error)}")
            return found
        seconds = found.scalars["seconds"] + time.perf_counter() - begun
        return replace(found, scalars={**found.scalars, "sharpness": value, "seconds": seconds})

    def _track(self, values: dict[str, float], step: int) -> None:
        for tracker in list(self.trackers):
            try:
                track(tracker, values, step)
            except Exception as error:  # somebody's own code must not end a training
                self.trackers.remove(tracker)
                self.note(f"{type(tracker).__name__} gets nothing from here on: {one_line(error)}")

    def _write(self, measurement: Measurement | None, batch: Batch) -> None:
        """Remember the state of this measurement, and write what is new into the flight record."""
        with self._recording():
            if measurement is not None and math.isfinite(measurement.scalars["measured_loss"]):
                self._before = Before(
                    measurement.step,
                    {},
                    largest_numbers(batch),
                    dict(zip(measurement.layers, measurement.per_layer["activation_size"].tolist(), strict=True)),
                    measurement.scalars["measured_loss"],
                    self.signals.steps[-1].lr if self.signals.steps else math.nan,
                    measurement.scalars["critical_multiple"],
                )
            if self.flight is not None:
                kept = measurement is not None and self._before.step == measurement.step
                weights = weight_arrays(self.model) if kept else {}
                arrays = None if measurement is None else batch_arrays(batch)
                self.flight.put(self._unwritten, measurement, self._told, arrays, weights)
        self._unwritten, self._told = [], []

    @contextmanager
    def _recording(self) -> Iterator[None]:
        """A full disk, or numbers that no file takes, end the record and not the training."""
        try:
            yield
        except Exception as error:
            self.flight = None
            self.note(f"no flight record from here on: {one_line(error)}")

    def record(self) -> xr.Dataset:
        """All that was seen.

        Returns:
            Dataset over `step`: `loss`, `gradient_norm` and `lr`; over `measurement`, the steps at which it measured:
            `SCALARS` of `monitoring.measurement`, among them `critical_multiple`; over `measurement` and `layer`:
            `activation_size`, `not_finite`, `layer_gradient_norm`, `update_to_weight`, `adam_lag`, and `called`,
            whether there was such a layer at that measurement. The alarms are an attribute.
        """
        return record_of(
            list(self.signals.steps), self.measurements, self.alarms, **self._origin(), overhead=self.schedule.share
        )

    def _origin(self) -> dict[str, Any]:
        parameter = next(self.model.parameters(), torch.zeros(()))
        return provenance(
            device=parameter.device,
            dtype=parameter.dtype,
            optimizer=type(self.optimizer).__name__,
            model=type(self.model).__name__,
            parameters=sum(p.numel() for p in self.model.parameters()),
        )


def _is_sharded(model: nn.Module) -> bool:
    """Whether the parameters are spread over processes, as FSDP's and tensor-parallel ones are."""
    return any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()) or any(
        hasattr(p, "device_mesh") for p in model.parameters()
    )


def _is_main_process() -> bool:
    """Whether this is the only process, or the first of several."""
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0

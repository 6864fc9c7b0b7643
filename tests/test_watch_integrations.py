"""A watch inside the training loops of Lightning and transformers, where these are installed, and its trackers."""

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import normscope as ns
from normscope.errors import InvalidConfig
from normscope.model.loss import default_loss
from normscope.monitoring.flight import read_flight

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("default"),  # those of other libraries are theirs
]


def data(count: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 6, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 2))


class Writer:
    def __init__(self) -> None:
        self.found: list[tuple[str, float, int]] = []

    def add_scalar(self, tag, scalar_value, global_step):
        self.found.append((tag, scalar_value, global_step))


class Log:
    def __init__(self) -> None:
        self.found: list[tuple[dict[str, float], int]] = []

    def log(self, values, step):
        self.found.append((values, step))


class Failing:
    def log(self, values, step):
        raise OSError("no network")


def loop(trackers, steps=6):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with ns.watch(model, optimizer, every=2, trackers=trackers) as seen:
        for x, y in DataLoader(data(), batch_size=16):
            optimizer.zero_grad()
            loss = default_loss(model, (x, y))
            loss.backward()
            seen.step(loss, (x, y))
            optimizer.step()
    return seen


def test_measurements_go_to_a_summary_writer_and_to_a_general_tracker(capsys):
    writer, log = Writer(), Log()
    seen = loop([writer, log, Failing()])
    assert [step for _, step in log.found] == [1, 3, 5]
    values = log.found[-1][0]
    last = seen.measurements[-1]
    assert values["normscope/critical_multiple"] == last.scalars["critical_multiple"]
    assert values["normscope/activation_size/0"] == last.per_layer["activation_size"][0]
    assert {(tag, value) for tag, value, step in writer.found if step == 5} == set(values.items())
    assert "Failing gets nothing from here on: no network" in capsys.readouterr().err


def test_what_is_no_tracker_is_refused():
    with pytest.raises(InvalidConfig, match="a object has neither"):
        loop([object()])


def test_no_integration_is_imported_unless_used():
    code = "import normscope as ns, sys; ns.watch; assert not {'lightning', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


LIGHTNING = importlib.util.find_spec("lightning") is not None
TRANSFORMERS = (
    importlib.util.find_spec("transformers") is not None and importlib.util.find_spec("accelerate") is not None
)
needs_lightning = pytest.mark.skipif(not LIGHTNING, reason="lightning is not installed: normscope[lightning]")
needs_transformers = pytest.mark.skipif(not TRANSFORMERS, reason="transformers is not: normscope[transformers]")


def lightning_run(folder, callbacks, *, lr=0.05, accumulate=1, precision="32-true", ckpt=None, epochs=2):
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()
            self.logged = 0

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=lr, momentum=0.9)

    pl.seed_everything(0, verbose=False)
    module = Module()
    trainer = pl.Trainer(
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        accumulate_grad_batches=accumulate,
        precision=precision,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, DataLoader(data(), batch_size=16), ckpt_path=ckpt)
    return module, trainer


@needs_lightning
@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_lightning_trains_to_the_same_bits_and_the_record_is_below_its_root(options, tmp_path):
    from normscope.integrations.lightning import Watch

    callback = Watch(every=2)
    bare, _ = lightning_run(tmp_path / "bare", [], **options)
    watched, trainer = lightning_run(tmp_path / "watched", [callback], **options)
    assert all(
        torch.equal(a, b) for a, b in zip(bare.state_dict().values(), watched.state_dict().values(), strict=True)
    )
    assert callback.watch is not None and not callback.watch.notes
    assert callback.watch.steps == trainer.global_step
    flight = read_flight(tmp_path / "watched" / "watch")
    assert flight.record["layer"].values.tolist() == ["net.0", "net.3"]
    assert math.isfinite(float(flight.record["critical_multiple"][-1]))
    assert float(flight.record["measured_loss"][0]) == pytest.approx(float(flight.record["loss"][1]), rel=0.3)


@needs_lightning
def test_lightning_stops_on_an_alarm_and_counts_on_from_a_checkpoint(tmp_path):
    from normscope.integrations.lightning import Watch

    callback = Watch(every=2, on_alarm="stop")
    _, trainer = lightning_run(tmp_path, [callback], lr=1e8, epochs=20)
    assert trainer.global_step < 20 and callback.watch is not None and callback.watch.alarms
    callback = Watch(every=2)
    _, trainer = lightning_run(tmp_path / "again", [callback])
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    resumed = Watch(every=2)
    lightning_run(tmp_path / "again", [resumed], ckpt=tmp_path / "last.ckpt", epochs=3)
    assert resumed.watch is not None and resumed.watch.steps == 18


def transformers_run(folder, callbacks, *, lr=0.01, accumulate=1, epochs=2):
    import transformers

    config = transformers.GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)
    transformers.set_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(11, (48, 8), generator=generator)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=accumulate,
        learning_rate=lr,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(
        model, arguments, train_dataset=[{"input_ids": row, "labels": row} for row in rows], callbacks=callbacks
    )
    trainer.train()
    return model, trainer


@needs_transformers
@pytest.mark.parametrize("accumulate", [1, 2])
def test_transformers_trains_to_the_same_bits_and_gradients_are_unclipped(accumulate, tmp_path):
    from normscope.integrations.transformers import Watch

    callback, log = Watch(every=2), Log()
    callback.trackers.append(log)
    bare, _ = transformers_run(tmp_path / "bare", [], accumulate=accumulate)
    watched, trainer = transformers_run(tmp_path / "watched", [callback], accumulate=accumulate)
    assert all(
        torch.equal(a, b) for a, b in zip(bare.state_dict().values(), watched.state_dict().values(), strict=True)
    )
    assert callback.watch is not None and not callback.watch.notes
    assert callback.watch.steps == trainer.state.global_step
    record = read_flight(tmp_path / "watched" / "watch").record
    assert "attention_logit" in record and "transformer.h.1.mlp.c_proj" in record["layer"].values
    assert len(log.found) == record.sizes["measurement"]
    assert not callback.watch.model._forward_hooks


@needs_transformers
def test_transformers_stops_on_an_alarm(tmp_path):
    from normscope.integrations.transformers import Watch

    callback = Watch(every=2, on_alarm="stop")

    import transformers

    class Breaks(transformers.TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 5:
                with torch.no_grad():
                    model.transformer.h[1].mlp.c_fc.weight.fill_(math.nan)

    _, trainer = transformers_run(tmp_path, [callback, Breaks()], epochs=4)
    assert trainer.state.global_step == 6
    assert callback.watch is not None and callback.watch.alarms[0].layer == "transformer.h.1.mlp.c_fc"


def example(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_of_a_plain_loop_is_warned_before_it_diverges(tmp_path, capsys):
    example("watched_loop").main(str(tmp_path))
    assert "divergence ahead" in capsys.readouterr().out
    assert read_flight(tmp_path).postmortem is None


@needs_lightning
def test_the_example_with_lightning_runs(tmp_path, capsys):
    example("watched_lightning").main(str(tmp_path))
    assert len(read_flight(tmp_path / "watch").record["measurement"]) == 2

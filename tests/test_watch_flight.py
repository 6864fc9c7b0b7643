"""The flight record of a watch: whole whenever it is read, bounded, and a post-mortem that names the cause."""

import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from torch import nn

import normscope as ns
from normscope.errors import ResultError
from normscope.figures.layers_over_steps import plot_layers_over_steps
from normscope.figures.training_curves import plot_training_curves
from normscope.model.loss import default_loss
from normscope.monitoring import flight as flight_module
from normscope.monitoring.flight import read_flight
from normscope.monitoring.report import sparkline
from normscope.results import attribute

pytestmark = pytest.mark.usefixtures("one_thread")

BROKEN_AT = 17


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


def batch_of(step: int):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 12, generator=generator)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def train(folder, *, breaks=None, place="before", steps=30, every=5, watched=True):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with ns.watch(model, optimizer, every=every, out=folder, on_alarm=lambda alarm: None) as seen:
        for step in range(steps):
            x, y = batch_of(step)
            if step == BROKEN_AT and breaks is not None:
                x = breaks(model, optimizer, x)
            optimizer.zero_grad()
            loss = default_loss(model, (x, y))
            loss.backward()
            if place == "before":
                seen.step(loss, (x, y))
            optimizer.step()
            if place == "after":
                seen.step(loss, (x, y))
    return model, seen


def not_finite_example(_model, _optimizer, x):
    x = x.clone()
    x[3, 5] = math.nan
    return x


def huge_example(_model, _optimizer, x):
    x = x.clone()
    x[6] *= -1e9
    return x


def broken_layer(model, _optimizer, x):
    with torch.no_grad():
        model[2].weight.mul_(1e20)
    return x


def too_high_a_rate(_model, optimizer, x):
    optimizer.param_groups[0]["lr"] = 1e4
    return x


CAUSES = {
    not_finite_example: ("bad batch", "", 3),
    huge_example: ("bad batch", "", 6),
    broken_layer: ("broken layer", "2", None),
    too_high_a_rate: ("rate", None, None),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("breaks", CAUSES, ids=lambda f: f.__name__)
def test_the_post_mortem_names_cause_layer_and_example(breaks, place, tmp_path):
    cause, layer, example = CAUSES[breaks]
    _, seen = train(tmp_path, breaks=breaks, place=place)
    found = seen.postmortem
    assert (found.cause, found.example) == (cause, example)
    assert layer is None or found.layer == layer
    assert BROKEN_AT <= seen.alarms[0].step <= BROKEN_AT + 2
    assert seen.alarms[0].kind == cause and "all was well at step 14" in seen.alarms[0].sentence
    on_disk = read_flight(tmp_path)
    assert list(on_disk.alarms) == seen.alarms
    assert on_disk.postmortem.attrs["cause"] == cause


def test_along_the_step_that_diverged_the_activations_grow_and_a_lower_rate_could_have_been_taken(tmp_path):
    _, seen = train(tmp_path, breaks=too_high_a_rate)
    sizes = seen.postmortem.dataset["size_along_step"]
    assert sizes.sizes == {"fraction": 5, "layer": 3}
    assert (sizes.isel(fraction=-1) > 100 * sizes.isel(fraction=0)).any()
    assert 0 < seen.postmortem.rate < 1e4


def test_a_healthy_training_has_no_alarm_and_its_record_is_on_disk(tmp_path):
    _, seen = train(tmp_path, steps=20)
    flight = read_flight(tmp_path)
    assert not flight.alarms and not flight.damaged and flight.postmortem is None
    xr_record = seen.record()
    assert flight.record.sizes == xr_record.sizes
    for name in ("loss", "critical_multiple", "activation_size"):
        np.testing.assert_array_equal(flight.record[name], xr_record[name])
    assert len(list((tmp_path / "batches").iterdir())) == 4 and len(list((tmp_path / "weights").iterdir())) == 2
    batch = safetensors.numpy.load_file(tmp_path / "batches" / "00000019.safetensors")
    np.testing.assert_array_equal(batch["batch/0"], batch_of(19)[0].numpy())
    assert "random_state" in batch
    twin = network()
    safetensors.torch.load_model(twin, str(flight.weights))
    assert flight.weights.stem == "00000019"
    assert not torch.equal(twin[0].weight, network()[0].weight)


def test_what_is_damaged_is_passed_over_and_said(tmp_path):
    train(tmp_path, steps=20)
    path = tmp_path / "seen" / "00000009.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))
    (tmp_path / "seen" / "00000014.json").write_text("{}")
    flight = read_flight(tmp_path)
    assert list(flight.damaged) == ["00000009.json", "00000014.json"]
    assert flight.record["measurement"].values.tolist() == [4, 19]


def test_the_record_is_bounded_and_spans_the_whole_training(tmp_path, monkeypatch):
    monkeypatch.setattr(flight_module, "KEPT_MEASUREMENTS", 8)
    train(tmp_path, steps=40, every=1)
    kept = read_flight(tmp_path).record["measurement"].values
    assert len(kept) <= 8 and kept[0] == 0 and kept[-1] == 39


def test_a_full_disk_ends_the_record_and_not_the_training(tmp_path, capsys, monkeypatch):
    from normscope.errors import OutputError

    def full(*_):
        raise OutputError("cannot write: no space left on device")

    monkeypatch.setattr(flight_module, "write_checked", lambda *_: None)
    monkeypatch.setattr(flight_module, "write_bytes", full)
    _, seen = train(tmp_path, steps=20)
    assert seen.steps == 20 and "no flight record from here on: cannot write" in capsys.readouterr().err


ENDLESS = """
import sys
sys.path.insert(0, {tests!r})
from test_watch_flight import train
train({folder!r}, steps=10**6, every=2)
"""


def test_killed_at_any_moment_the_record_is_whole(tmp_path):
    code = ENDLESS.format(tests=os.path.dirname(__file__), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        for _ in range(3000):  # a busy machine takes a minute to import torch
            if len(list((tmp_path / "seen").glob("*.json"))) > 20:
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    flight = read_flight(tmp_path)
    steps = flight.record["step"].values
    assert not flight.damaged and len(steps) >= 40
    assert steps.tolist() == list(range(steps[-1] + 1)) and steps[-1] % 2 == 1
    assert flight.weights is not None


def test_no_record_is_said_in_one_line(tmp_path, run_normscope):
    with pytest.raises(ResultError, match="no flight record in"):
        read_flight(tmp_path)
    code, out, err = run_normscope("watch", str(tmp_path), "--once")
    assert (code, out) == (2, "") and err.startswith("normscope: no flight record in")


def test_the_terminal_shows_the_last_values_and_the_alarms(tmp_path, run_normscope):
    _, seen = train(tmp_path, breaks=not_finite_example)
    code, out, err = run_normscope("watch", str(tmp_path), "--once")
    lines = out.splitlines()
    assert (code, err) == (0, "") and lines[0] == "Sequential: 30 steps, 3 measurements"
    assert lines[1].startswith("loss") and lines[1].endswith("×")
    assert lines[-1] == seen.alarms[0].sentence


def test_the_page_has_curves_layers_and_the_post_mortem(tmp_path, run_normscope):
    _, seen = train(tmp_path, breaks=too_high_a_rate)
    code, out, err = run_normscope("report", str(tmp_path))
    assert (code, err) == (0, "") and out.strip() == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    for anchor in ("curves", "layers", "postmortem"):
        assert f'<section id="{anchor}">' in page
    assert "load_model(model" in page and "<script" not in page and "<link" not in page
    assert "could have been taken" in seen.alarms[0].sentence and "could have been taken" in page


def test_the_pictures_show_what_is_not_finite_and_the_alarms(tmp_path):
    _, seen = train(tmp_path, breaks=not_finite_example)
    record = seen.record()
    ax = plot_training_curves(record)
    lost = next(line for line in ax.lines if line.get_marker() == "^")
    np.testing.assert_array_equal(lost.get_xdata(), record["step"].values[~np.isfinite(record["loss"].values)])
    assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"] == [seen.alarms[0].step]
    assert ax.get_ylabel() == "loss of the training"
    ax = plot_layers_over_steps(record)
    assert [text.get_text() for text in ax.get_yticklabels()] == record["layer"].values.tolist()
    assert len(attribute(record, "alarms")) == 1


def test_a_sparkline_is_logarithmic_and_marks_what_is_not_finite():
    assert sparkline(np.array([1.0, 10, 100, np.nan]), 10) == "▁▄█×"
    assert sparkline(np.array([np.nan]), 10) == "×"


def test_over_many_steps_memory_and_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("normscope.monitoring.watch.WRITTEN_EVERY", 50)
    monkeypatch.setattr("normscope.monitoring.watch.KEPT_IN_MEMORY", 30)
    monkeypatch.setattr(flight_module, "KEPT_MEASUREMENTS", 20)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = ns.watch(model, optimizer, every=5, out=tmp_path)
    for step in range(600):
        if step == 400:
            seen.measuring = False  # as where a measurement has failed
        seen.step(torch.tensor(1.0), batch_of(step))
        assert len(seen._unwritten) < 50 and len(seen.measurements) <= 31
        assert len(list((tmp_path / "seen").glob("*.json"))) <= 21
    # Killed here, without `close`: what came after the last measurement is there too.
    assert int(read_flight(tmp_path).record["step"][-1]) >= 549


def test_a_second_training_in_the_folder_keeps_the_first_ones_record(tmp_path, capsys):
    train(tmp_path, steps=10)
    first, weights = read_flight(tmp_path).record, sorted((tmp_path / "weights").glob("*"))[-1].read_bytes()
    train(tmp_path, steps=20)
    assert f"earlier record is kept in {tmp_path / 'earlier' / '1'}" in capsys.readouterr().err
    kept = read_flight(tmp_path / "earlier" / "1")
    assert kept.record.identical(first)
    assert kept.weights is not None
    assert kept.weights.read_bytes() == weights
    assert int(read_flight(tmp_path).record["step"][-1]) == 19
    (tmp_path / "watch.json").unlink()  # killed while it was set aside
    train(tmp_path, steps=5)
    assert int(read_flight(tmp_path / "earlier" / "1").record["step"][-1]) == 9
    assert sorted(path.name for path in (tmp_path / "earlier").iterdir()) == ["1", "2"]
    assert int(read_flight(tmp_path).record["step"][-1]) == 4


def test_a_record_without_a_step_is_no_record_to_keep(tmp_path):
    train(tmp_path, steps=0)
    train(tmp_path, steps=5)
    assert not (tmp_path / "earlier").exists()

"""The page of a flight record, and what of it a terminal shows."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from normscope.figures.layers_over_steps import plot_layers_over_steps
from normscope.figures.size_along_step import plot_size_along_step
from normscope.figures.style import figure_of
from normscope.figures.training_curves import plot_training_curves
from normscope.html.page import Page, Paragraph, Picture, Section, as_svg, render
from normscope.monitoring.flight import Flight, read_flight
from normscope.results import write_text
from normscope.statistics.numbers import number, percent

CURVES = ("loss", "lr", "gradient_norm", "critical_multiple", "sharpness", "output_logit", "batch_norm_gap")

HEAT_MAPS = ("activation_size", "layer_gradient_norm", "update_to_weight", "adam_lag")

BARS = "▁▂▃▄▅▆▇█"


def report_flight(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a flight record, and give its path.

    Raises:
        ResultError: where there is no flight record.
        OutputError: where the page cannot be written.
    """
    flight = read_flight(folder)
    return write_text(Path(folder) / "report.html", render(page_of(flight)))


def page_of(flight: Flight) -> Page:
    """The page's content."""
    record = flight.record
    facts = {name: str(flight.facts.get(name, "")) for name in ("model", "parameters", "optimizer", "device", "dtype")}
    facts |= {"steps": str(record.sizes["step"]), "measurements": str(record.sizes["measurement"])}
    lead = [alarm.sentence for alarm in flight.alarms] or ["No alarm so far."]
    if flight.damaged:
        lead.append(f"Passed over, since their checksum does not hold: {', '.join(flight.damaged)}.")
    seen = [name for name in CURVES if name in record and record[name].size and np.isfinite(record[name]).any()]
    sections = [] if flight.postmortem is None else [_postmortem(flight)]
    if seen[1:]:
        caption = "Dashed: alarms. Dotted: where the next step itself would raise the loss of its mini-batch."
        pictures = _curves(flight, seen[1:])
        sections.append(Section(anchor="curves", title="Over the steps", pictures=pictures, caption=caption))
    if record.sizes["measurement"]:
        sections.append(_layers(flight))
    return Page(
        title=f"The training of {flight.facts.get('model', 'a model')}",
        question="How far from the edge is it, what went wrong, and where?",
        facts=[(name, value) for name, value in facts.items() if value],
        lead=lead,
        pictures=_curves(flight, seen[:1]),
        sections=sections,
    )


def _curves(flight: Flight, names: Sequence[str]) -> list[Picture]:
    return [_picture(flight, plot_training_curves, name, 3.0) for name in names]


def _layers(flight: Flight) -> Section:
    height = max(2.6, 1.2 + 0.14 * min(24, flight.record.sizes["layer"]))
    return Section(
        anchor="layers",
        title="Layer by layer",
        pictures=[
            _picture(flight, plot_layers_over_steps, name, height) for name in HEAT_MAPS if name in flight.record
        ],
        caption="Red: not finite. Grey: not called.",
    )


def _picture(flight: Flight, plot: Callable[..., Any], signal: str, height: float) -> Picture:
    figure, axes = figure_of(1, 1, panel=(5.0, height))
    plot(flight.record, signal=signal, ax=axes[0, 0])
    label = flight.record[signal].attrs["long_name"]
    return Picture(as_svg(figure, signal), label[0].upper() + label[1:] + ".")


def _postmortem(flight: Flight) -> Section:
    found = flight.postmortem
    assert found is not None
    pictures = []
    if "size_along_step" in found:
        figure, axes = figure_of(1, 1, panel=(5.0, 3.4))
        plot_size_along_step(found, ax=axes[0, 0])
        pictures = [as_svg(figure, "along-step")]
    rate = float(found.attrs["rate"])
    said = [Paragraph("What went wrong", str(found.attrs["sentence"]))]
    if np.isfinite(rate) and rate > 0:
        said.append(Paragraph("The rate it could have taken", f"{number(rate)}, from the last good state."))
    if flight.weights is not None:
        said.append(
            Paragraph(
                "From the last good state",
                f'safetensors.torch.load_model(model, "{flight.weights}", strict=False); '
                "normscope.check(model, batches) says which rates it takes from there, and what would help.",
            )
        )
    return Section(
        anchor="postmortem",
        title="Post-mortem",
        paragraphs=said,
        pictures=pictures,
        caption="The activations along the optimizer's step from there, at the rate it had." if pictures else "",
    )


def terminal_lines(flight: Flight, width: int = 79) -> list[str]:
    """The record in a few lines of text."""
    record = flight.record
    steps = record.sizes["step"]
    lines = [f"{flight.facts.get('model', 'model')}: {steps} steps, {record.sizes['measurement']} measurements"]
    for name in ("loss", "gradient_norm", "critical_multiple"):
        if name in record and record[name].size:
            values = record[name].values
            lines.append(f"{name:18}{number(float(values[-1])):>9}  {sparkline(values, width - 30)}")
    if record.sizes["measurement"]:
        last = record.isel(measurement=-1)
        sizes = last["activation_size"]
        largest = int(np.nanargmax(np.where(np.isfinite(sizes), sizes, np.inf)))
        bad = float(last["not_finite"].max())
        lines.append(
            f"{'largest activation':18}{number(float(sizes[largest])):>9}  {record['layer'].values[largest]}"
            + (f", {percent(bad)} not finite" if bad > 0 else "")
        )
    lines += [alarm.sentence for alarm in flight.alarms[-3:]] or ["no alarm"]
    return lines


def sparkline(values: np.ndarray, width: int) -> str:
    """The values as bars, in logarithms where they are positive, in at most `width` characters; × where not finite."""
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(width, len(values)))
    means = np.array([part[-1] for part in parts])
    positive = bool((means[np.isfinite(means)] > 0).all())
    with np.errstate(all="ignore"):
        heights = np.log(means) if positive else means
    finite = heights[np.isfinite(heights)]
    if not len(finite):
        return "×" * len(means)
    span = max(float(finite.max() - finite.min()), 1e-12)
    marks = [BARS[int((h - finite.min()) / span * (len(BARS) - 1))] if np.isfinite(h) else "×" for h in heights]
    return "".join(marks)

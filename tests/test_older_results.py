"""Results of earlier releases, which lie in the repository, can still be loaded, drawn and judged."""

from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import normscope as ns
from normscope.paper.exhibit import exhibits
from normscope.statistics.verdict import Verdict

RESULTS = Path(__file__).parents[1] / "results"
FILES = [file for folder in ("short", "standard") for file in sorted((RESULTS / folder).glob("*.nc"))]


def test_there_are_some_in_units_of_then():
    units = {array.attrs.get("units") for file in FILES for array in ns.load(file).variables.values()}
    assert "nats" in units


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_an_exhibit_measured_then_is_drawn_and_judged(file):
    dataset, exhibit = ns.load(file), exhibits()[file.stem]
    figure = exhibit.draw(dataset)
    assert any(ax.has_data() for ax in figure.axes)
    plt.close(figure)
    verdicts = exhibit.verdicts(dataset)
    assert verdicts and all(isinstance(verdict, Verdict) for verdict in verdicts)


def test_runs_of_then_are_read_as_one():
    runs = ns.load_runs(RESULTS / "short" / "training")
    assert runs.sizes["epoch"] > 1 and (runs["outcome"] != "missing").any()

"""The report of a reproduction, from the results in a folder alone."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import xarray as xr

from normscope.errors import NormscopeError, ResultError, raised
from normscope.html.page import Page, Paragraph, Section, as_svg, render
from normscope.paper.exhibit import EXHIBIT, Exhibit, exhibits, on_paper_setting
from normscope.paper.manifest import notes_of, refuse_other_files
from normscope.results import attribute, load, write_text
from normscope.statistics.verdict import Verdict

REPORT_NAME = "report.html"


def report_reproduction(folder: str | Path) -> tuple[Path, list[Verdict]]:
    """Write `report.html` from every exhibit's result in `folder`, and give its path and all verdicts in its order.

    Raises:
        ResultError: where the folder holds no result, a damaged one, one of another exhibit, or files that are not
            those of its manifest.
        OutputError: where the page cannot be written.
    """
    folder = Path(folder)
    refuse_other_files(folder)
    with garbage_kept():
        found = [
            (exhibit, _result(path, exhibit))
            for exhibit in exhibits().values()
            if (path := result_path(folder, exhibit)).is_file()
        ]
        if not found:
            raise ResultError(f"no results in {folder}: make some with `normscope reproduce --out {folder}`")
        sections = []
        for exhibit, dataset in found:
            with _named(result_path(folder, exhibit), f"all that {exhibit.name} shows"):
                sections.append(_section(exhibit, dataset))
        with _named(folder, "what a reproduction was measured on"):
            page = _page(found, sections, notes_of(folder))
    path = write_text(folder / REPORT_NAME, render(page))
    return path, [claim for section in sections for claim in section.claims]


def result_path(folder: Path, exhibit: Exhibit) -> Path:
    """Where an exhibit's result lies."""
    return folder / f"{exhibit.name}.nc"


def _result(path: Path, exhibit: Exhibit) -> xr.Dataset:
    dataset = load(path)
    if "config" not in dataset.attrs:
        raise ResultError(f"{path} is no result of `normscope reproduce`: move it out of this folder")
    if dataset.attrs.get(EXHIBIT, exhibit.name) != exhibit.name:
        raise ResultError(f"{path} holds {dataset.attrs[EXHIBIT]}: give it that name, or measure {exhibit.name} again")
    return dataset


@contextmanager
def _named(place: Path, what: str) -> Iterator[None]:
    """Say in one line that a file lacks something; older results do not say of which exhibit they are."""
    try:
        yield
    except NormscopeError:
        raise
    except Exception as error:
        raise ResultError(f"{place} does not hold {what} ({raised(error)}): measure it again") from error


def measured_on(found: Sequence[tuple[Exhibit, xr.Dataset]]) -> xr.Dataset:
    """The result that says for all what they were measured on: one that trains nothing, if there is one, since those
    that train have a network of their own."""
    return next((dataset for exhibit, dataset in found if not exhibit.trains), found[0][1])


def _page(found: Sequence[tuple[Exhibit, xr.Dataset]], sections: Sequence[Section], notes: Sequence[str]) -> Page:
    dataset = measured_on(found)
    config = attribute(dataset, "config")
    data = config["data"]
    shape = " × ".join(map(str, data["image_shape"]))
    lead = [
        "Figures, tables and claims of Bjorck, Gomes, Selman and Weinberger (NeurIPS 2018), measured on real data "
        "with a verdict each."
    ]
    if not on_paper_setting(dataset):
        lead.append(
            f"The paper used ResNet-110 on CIFAR-10; this run used {config['net']} on {data['name']} ({shape} pixels)."
        )
        if any(not exhibit.trains for exhibit, _ in found):
            lead.append("Hollow marks in the pictures are the paper's own values, for its data.")
    precisions = sorted({one for _, of in found if "precision" in of.attrs for one in _several(of, "precision")})
    return Page(
        title="Understanding Batch Normalization, measured again",
        question="Why can't a deep network take a larger learning rate, and what does normalization buy it?",
        facts=[
            ("data", data["name"]),
            ("network", config["net"]),
            ("seeds", str(len(config["seeds"]))),
            ("mini-batch", str(config["batch_size"])),
            ("device", str(dataset.attrs["device"])),
            *([("trained in", ", ".join(precisions))] if precisions else []),
        ],
        lead=[*lead, *notes],
        sections=sections,
    )


def _section(exhibit: Exhibit, dataset: xr.Dataset) -> Section:
    we_saw = exhibit.we_saw(dataset)
    return Section(
        anchor=exhibit.name,
        title=exhibit.title,
        where=exhibit.where,
        paragraphs=[
            Paragraph("What the paper saw", exhibit.paper_saw),
            *([Paragraph("What we saw", we_saw)] if we_saw else []),
        ],
        pictures=[picture(exhibit, dataset)],
        claims=exhibit.verdicts(dataset),
        setup=[(name.replace("_", " "), _plain(attribute(dataset, name))) for name in dataset.attrs],
    )


def picture(exhibit: Exhibit, dataset: xr.Dataset) -> str:
    """An exhibit's figure as SVG, its titles straight above their axes: to look for something in their way, matplotlib
    lays out every axis once more."""
    with mpl.rc_context({"axes.titley": 1.0}):
        figure = exhibit.draw(dataset)
    return as_svg(figure, exhibit.name)


def _several(dataset: xr.Dataset, name: str) -> list[str]:
    """An attribute that holds one text or, where the runs differ, several."""
    value = attribute(dataset, name)
    return value if isinstance(value, list) else [value]


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Inside, memory in reference cycles is not looked for: pictures are a million small objects, and to go through
    them and all of torch's again and again takes a tenth of the report's time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)

"""The report of a reproduction, from the results in a folder alone."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import xarray as xr

from normscope.errors import NormscopeError, ResultError, raised
from normscope.html.page import Page, Paragraph, Section, as_svg, render
from normscope.paper.exhibit import EXHIBIT, Exhibit, exhibits, on_paper_setting
from normscope.paper.manifest import MANIFEST_NAME, notes_of, refuse_other_files
from normscope.results import attribute, load, write_text
from normscope.statistics.score import WEIGHTS, counted, multiplicity_line, score_line
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, VERDICTS, Verdict

REPORT_NAME = "report.html"


def report_reproduction(folder: str | Path) -> tuple[Path, list[Verdict]]:
    """Write `report.html` from every exhibit's result in `folder`, and give its path and all verdicts in its order.

    Raises:
        ResultError: where the folder holds no result, a damaged one, one of another exhibit, or files that are not
            those of its manifest.
        OutputError: where the page cannot be written.
    """
    folder = Path(folder)
    with garbage_kept():
        found = [
            (exhibit, _result(path, exhibit))
            for exhibit in exhibits().values()
            if (path := result_path(folder, exhibit)).is_file()
        ]
        if not found:
            raise ResultError(f"no results in {folder}: make some with `normscope reproduce`")
        refuse_other_files(folder)
        sections = []
        for exhibit, dataset in found:
            with _named(result_path(folder, exhibit), f"all that {exhibit.name} shows"):
                sections.append(_section(exhibit, dataset))
        at_top = _most_telling(sections)
        with _named(folder, "what a reproduction was measured on"):
            page = _page(found, sections, notes_of(folder), at_top)
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


MOST_TELLING = ("figure1_reduced", "figure3", "figure1", "figure5")
"""The exhibits whose picture says most by itself, the best first: it stands at the top of the page, and there alone."""


def _most_telling(sections: Sequence[Section]) -> Section:
    """The section whose picture goes to the top."""
    by_name = {section.anchor: section for section in sections}
    return next((by_name[name] for name in MOST_TELLING if name in by_name), sections[0])


def _page(
    found: Sequence[tuple[Exhibit, xr.Dataset]], sections: Sequence[Section], notes: Sequence[str], at_top: Section
) -> Page:
    dataset = measured_on(found)
    verdicts = [claim for section in sections for claim in section.claims]
    config = attribute(dataset, "config")
    data = config["data"]
    shape = " × ".join(map(str, data["image_shape"]))
    lead = [
        _how_many_came_out(verdicts),
        "Figures, tables and claims of Bjorck, Gomes, Selman and Weinberger (NeurIPS 2018), measured on real data "
        "with a verdict each.",
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
        sections=[replace(one, pictures=[]) if one is at_top else one for one in sections],
        summary=_summary(found, sections, at_top),
        pictures=at_top.pictures,
        tally=counted(verdicts) if verdicts else [("", "")],
        tally_notes=[*filter(None, (score_line(verdicts), multiplicity_line(verdicts)))] or [NO_CLAIMS],
    )


def _how_many_came_out(claims: Sequence[Verdict]) -> str:
    """The answer of the page: how many of the paper's claims came out."""
    papers = [claim for claim in claims if claim.kind in WEIGHTS and not claim.in_sample]
    counts = {word: sum(claim.verdict == word for claim in papers) for word in VERDICTS}
    if not papers:
        return "No claim of the paper is judged here."
    return (
        f"Of {len(papers)} claims of the paper {counts[REPRODUCED]} are reproduced, {counts[NOT_REPRODUCED]} are not, "
        f"and for {counts[NOT_ENOUGH]} the evidence does not suffice."
    )


NO_CLAIMS = "None: what the paper claims of deep networks is not asked of shallow ones."


def _summary(
    found: Sequence[tuple[Exhibit, xr.Dataset]], sections: Sequence[Section], at_top: Section
) -> list[Paragraph]:
    """One page for a reader in a hurry: scope, method, results, what was easy, what was difficult, compute."""
    dataset = measured_on(found)
    claims = [(section, claim) for section in sections for claim in section.claims]
    papers = [(s, c) for s, c in claims if c.kind in WEIGHTS and not c.in_sample]

    def named(word: str) -> str:
        return "; ".join(f"{c.where}: {c.statement}" for _, c in papers if c.verdict == word) or "none"

    of_papers = {s.title: [c.verdict for t, c in papers if t is s] for s, _ in papers}
    easy = [title for title, of in of_papers.items() if set(of) == {REPRODUCED}]
    hard = [
        f"{title} ({of.count(REPRODUCED)} of {len(of)})" for title, of in of_papers.items() if set(of) != {REPRODUCED}
    ]
    threads = dataset.attrs.get("threads", "?")
    return [
        Paragraph("Scope", f"{len(found)} exhibits, {len(claims)} claims, {len(papers)} of them the paper's own."),
        Paragraph(
            "Method",
            "Every claim and its threshold stood before the measurement (normscope claims lists them); networks of "
            "several seeds, paired; a verdict needs the whole interval over seeds. Our controls and later work's "
            "claims are counted apart.",
        ),
        Paragraph("Results", f"Not reproduced: {named(NOT_REPRODUCED)}." if papers else NO_CLAIMS),
        Paragraph("What was easy", f"{', '.join(easy) or 'Nothing came out in all of its claims'}."),
        Paragraph("What was difficult", f"{', '.join(hard) or 'Nothing'}."),
        Paragraph(
            "Compute",
            f"Device {dataset.attrs['device']}, {threads} thread{'' if threads == 1 else 's'}; commands, times and "
            f"processors are in {MANIFEST_NAME}. The picture at the top is of: {at_top.title}.",
        ),
    ]


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

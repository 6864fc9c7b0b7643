"""The report of a check, from its tree alone."""

import re
from pathlib import Path

import xarray as xr

from normscope.checkup.answer import notes, table_title
from normscope.checkup.conclusion import conclusion
from normscope.checkup.headline import headline
from normscope.checkup.limits import HEALTHY, WRONG, limits, limits_title
from normscope.checkup.pictures import of_variant, proof
from normscope.checkup.rows import AS_IT_IS, MEASURED, NOT_TRIED, Row, rows
from normscope.diagnosis.finding import Finding, as_findings
from normscope.diagnosis.words import skipped
from normscope.errors import NormscopeError, ResultError, raised
from normscope.figures.repairs import plot_repairs
from normscope.figures.style import figure_of
from normscope.html.page import Page, Paragraph, Picture, Section, as_svg, render
from normscope.results import load_tree, write_text
from normscope.statistics.numbers import number


def report(tree: xr.DataTree | str | Path, path: str | Path) -> Path:
    """Write the page of a check: the answer, what was found with its evidence, and the figures of the model as it is
    and of each repair. One HTML file that loads nothing.

    Args:
        tree: what `normscope.check` gives, or the path of a file that it was saved in.
        path: of the page.

    Raises:
        ResultError: a file that is missing or damaged, a tree that is not of a check.
        OutputError: where the page cannot be written.
    """
    whole = tree if isinstance(tree, xr.DataTree) else load_tree(tree)
    if "as_it_is" not in whole.children or "findings" not in whole.children:
        raise ResultError("this tree is not of a check: give what normscope.check returned, or its file")
    try:
        page = page_of(whole)
    except NormscopeError:
        raise
    except Exception as error:
        raise ResultError(f"this tree lacks some of what a check measures ({raised(error)}): check again") from error
    return write_text(path, render(page))


def page_of(tree: xr.DataTree) -> Page:
    """The page's content."""
    attrs = tree.attrs
    facts = [("model", attrs["model"]), ("data", attrs.get("data", "")), ("parameters", f"{attrs['parameters']:,}")]
    facts += [(name, attrs[name]) for name in ("optimizer", "steps", "seeds")]
    facts += [(name, attrs[name]) for name in ("device", "dtype")]
    return Page(
        title=f"What learning rate does {attrs['model']} take?",
        question="Measured by short descents: how large a rate, what stops it, and what would help.",
        facts=[(name, str(value)) for name, value in facts if str(value)],
        lead=[*_lead(tree), *notes(tree)],
        pictures=proof(tree),
        sections=[
            _findings(tree),
            *([] if rows(tree)[0].status == NOT_TRIED else [_answer(tree)]),
            *(_variant(tree, row) for row in rows(tree) if row.status == MEASURED),
        ],
    )


def _lead(tree: xr.DataTree) -> list[str]:
    """The answer: what is wrong before any rate, what merely limits the rates behind them. Then what repairs buy."""
    found, title = limits(tree), limits_title(tree)
    limit = f"{title}." if title == HEALTHY else f"{title}: {found[0][0]}." if found else ""
    first = [limit, headline(tree)] if title == WRONG else [headline(tree), limit]
    return [" ".join(text for text in first if text), *([conclusion(tree)] if len(rows(tree)) > 1 else [])]


def _answer(tree: xr.DataTree) -> Section:
    every = rows(tree)
    figure, axes = figure_of(1, 1, panel=(5.0, 1.1 + 0.45 * len(every)))
    alone = len(every) == 1 and "own_rate" in tree.children  # one rate is nothing to draw
    if not alone:
        plot_repairs(tree.to_dataset(), ax=axes[0, 0])
    heads = ("", "train at", "as good", "loss", "stable up to", "learns up to")
    return Section(
        anchor="answer",
        title=table_title(tree),
        pictures=[] if alone else [Picture(as_svg(figure, "repairs"))],
        caption=f"Loss: mean over the last tenth of {tree.attrs['steps']} steps, and over seeds. "
        "As good: tied with the rate to train at.",
        table=[heads, *(_cells(row) for row in every)],
    )


def _cells(row: Row) -> tuple[str, ...]:
    if row.status != MEASURED:
        return row.title, f"{row.status}: {row.reason}"
    return row.title, row.train_at, row.best, number(row.horizon_loss), row.stable, row.usable


def _findings(tree: xr.DataTree) -> Section:
    found = as_findings(tree["findings"].to_dataset())
    faults = [finding for finding in found if finding.fault]
    measured = tree["as_it_is/evidence"].to_dataset().data_vars if "evidence" in tree["as_it_is"].children else {}
    scalars = [(str(array.attrs["long_name"]), _plain(array)) for array in measured.values() if not array.dims]
    return Section(
        anchor="findings",
        title=limits_title(tree),
        paragraphs=[
            *(Paragraph(f.title, _said(f), f.code) for f in faults or found),
            *(Paragraph("not measured", line) for line in skipped(tree)),
        ],
        setup=[*((f"what decided: {f.name}", _decided(f.numbers)) for f in found), *scalars],
    )


def _said(finding: Finding) -> str:
    return f"{finding.sentence} To do: {finding.advice}" if finding.advice else finding.sentence


def _decided(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in numbers.items())


def _variant(tree: xr.DataTree, row: Row) -> Section:
    node = "as_it_is" if row.variant == AS_IT_IS else f"repairs/{row.variant}"
    rates = tree[f"{node}/rates"].to_dataset()
    anchor = re.sub(r"[^a-z0-9]+", "-", node)
    return Section(
        anchor=anchor,
        title=row.title[0].upper() + row.title[1:],
        pictures=of_variant(tree, node),
        setup=[
            ("training steps of all tries", str(int(rates["train_steps"]))),
            *((str(key).replace("_", " "), str(value)) for key, value in rates.attrs.items()),
        ],
    )


def _plain(array: xr.DataArray) -> str:
    value = array.values.item()
    return f"{value:.4g}" if isinstance(value, float) else str(value)

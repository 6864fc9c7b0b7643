"""The answer in words, from the tree of `check` alone: which rate to train at, how large a one the model takes, what
stops it, what each repair would buy."""

import textwrap
from collections.abc import Iterator

import xarray as xr

from normscope.checkup.conclusion import conclusion
from normscope.checkup.headline import headline, left_out
from normscope.checkup.limits import HEALTHY, first_code, limits, limits_title
from normscope.checkup.rows import MEASURED, NOT_TRIED, rows
from normscope.diagnosis.words import findings_text, skipped
from normscope.results import attribute
from normscope.statistics.numbers import number

WIDTH = 79
"""Columns of a terminal, less one."""

NUMBERS = 40
"""Columns of the table's numbers."""

MOST_FAULTS = 3
"""More are in the report."""

LEGEND = "train at: the rate of the lowest loss; stable: the loss never blows up."
"""What the table's columns mean, in one line; `outcome` has the definitions."""


def answer(tree: xr.DataTree, *, width: int = WIDTH) -> str:
    """The answer of `check`, or the findings of `diagnose`, as plain text of about 24 lines.

    Args:
        tree: what `normscope.check` or `normscope.diagnose` gives.
        width: the most columns that a line has, 59 or more; lines of code stay as long as they are.
    """
    if "variant" not in tree.dims:
        return findings_text(tree, width=width)
    parts = (
        [*_wrap(_about(tree), width), *_wrap(headline(tree), width)],
        _limits(tree, width),
        _table(tree, width),
        _end(tree, width),
    )
    return "\n\n".join(text for part in parts if (text := "\n".join(part)))


def notes(tree: xr.DataTree) -> list[str]:
    """What a reader must know of how it was measured."""
    return [str(note) for note in attribute(tree.to_dataset(), "notes")] if "notes" in tree.attrs else []


def _about(tree: xr.DataTree) -> str:
    attrs = tree.attrs
    data = f" on {attrs['data']}" if attrs.get("data") else ""
    seeds = "1 seed" if int(attrs["seeds"]) == 1 else f"{attrs['seeds']} seeds"
    parameters = f"{int(attrs['parameters']):,} parameters"
    return f"{attrs['model']}{data}: {parameters}, {attrs['optimizer']}, {attrs['steps']} steps, {seeds}"


def _limits(tree: xr.DataTree, width: int) -> Iterator[str]:
    if not (found := limits(tree)):
        return
    (title, text), *others = found
    head = limits_title(tree)
    yield from _wrap(f"{head}. {text}" if head == HEALTHY else f"{head}: {title}. {text}", width, indent="  ")
    yield from (f"    {line}" for line in first_code(tree).splitlines())
    for other, _ in others[: MOST_FAULTS - 1]:
        yield from _wrap(f"Also: {other}.", width, indent="  ")
    if len(others) >= MOST_FAULTS:
        yield f"And {len(others) - MOST_FAULTS + 1} more: see the report."
    for line in skipped(tree):
        if line != left_out(tree):
            yield from _wrap(line, width, indent="  ")


def table_title(tree: xr.DataTree) -> str:
    """What the table of the variants shows."""
    return "What each repair would buy" if len(rows(tree)) > 1 else "The rates it takes"


def _table(tree: xr.DataTree, width: int) -> Iterator[str]:
    head, every = table_title(tree), rows(tree)
    if len(every) == 1 and "own_rate" in tree.children and every[0].lr_recommended_found == "unfinished":
        return
    if every[0].status == NOT_TRIED:
        return
    first = min(max(len(head), *(len(row.title) + 2 for row in every)), width - NUMBERS)
    *above, last = _wrap(head, first)
    yield from above
    yield f"{last:{first}} {'train at':>8} {'loss':>8} {'stable to':>10} {'learns to':>10}"
    for row in every:
        *above, last = _wrap(f"  {row.title}", first, indent="    ")
        yield from above
        if row.status == MEASURED:
            yield f"{last:{first}} {row.train_at:>8} {number(row.horizon_loss):>8} {row.stable:>10} {row.usable:>10}"
        else:
            yield from _wrap(f"{last:{first}} {row.status}: {row.reason}", width, indent=" " * (first + 1))
    yield from _wrap(LEGEND, width)


def _end(tree: xr.DataTree, width: int) -> Iterator[str]:
    if len(rows(tree)) > 1:
        yield from _wrap(conclusion(tree), width)
    if len(rows(tree)) == 1 and "own_rate" in tree.children:
        pass
    elif any(mark in row.stable + row.usable for row in rows(tree) for mark in "≈≥"):
        yield from _wrap("≈, ≥: not narrowed down within the steps or the time there was.", width)
    for note in notes(tree):
        yield from _wrap(note, width)


def _wrap(text: str, width: int, indent: str = "") -> list[str]:
    # Not at hyphens: "1e-05" and paths stay whole.
    return textwrap.wrap(text, width, subsequent_indent=indent, break_on_hyphens=False)

"""The answer in words, from the tree of `check` alone: how large a rate, what stops it, what each repair would buy."""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xarray as xr

from normscope.diagnosis.finding import as_findings
from normscope.diagnosis.words import findings_text
from normscope.results import attribute
from normscope.statistics.numbers import number

WIDTH = 79
"""Columns of a terminal, less one."""

MOST_FAULTS = 3
"""More are in the report."""

LEGEND = "stable: the loss never blows up; learns: it ends below its start on every seed."
"""What the table's columns mean, in one line; `outcome` has the definitions."""

AS_IT_IS = "as it is"
MEASURED, REFUSED, LEFT_OUT = "measured", "refused", "left out"

APART = 2.0
"""What becomes of the model between its usable and its stable rates is told where they are this factor apart."""

FATES = {"stalled": "stalls", "dead": "ends saying the same whatever it sees"}
"""Outcomes that are neither learning nor diverging, in words."""

WORTH_SAYING = 1.5
"""A repair helps where it raises the usable rate by this factor, or lowers the loss by as much."""


@dataclass(frozen=True)
class Row:
    """One variant of the tree's own Dataset, see `checkup.check`."""

    variant: str
    title: str
    status: str
    reason: str
    lr_stable: float
    lr_usable: float
    lr_stable_found: str
    lr_usable_found: str
    best_low: float
    best_high: float
    horizon_loss: float

    @property
    def best(self) -> str:
        """The rates not told apart from the lowest loss."""
        low, high = number(self.best_low), number(self.best_high)
        return low if low == high else f"{low} to {high}"

    @property
    def stable(self) -> str:
        """The largest stable rate, as a bound or with ≈ where the search ended before it was bracketed."""
        return _boundary(self.lr_stable, self.lr_stable_found)

    @property
    def usable(self) -> str:
        """The largest usable rate in the same way; "nowhere" where there is none."""
        nowhere = self.known and math.isnan(self.lr_usable)
        return "nowhere" if nowhere else _boundary(self.lr_usable, self.lr_usable_found)

    @property
    def known(self) -> bool:
        """Whether it was measured, and there was time to find any rates."""
        return self.status == MEASURED and not (math.isnan(self.lr_stable) and self.lr_stable_found == "unfinished")


def rows(tree: xr.DataTree) -> list[Row]:
    """Every variant, the model as it is first."""
    dataset = tree.to_dataset()

    def value(name: str, place: int) -> Any:
        return dataset[name].values[place].item()

    return [
        Row(str(variant), **{name: value(name, i) for name in Row.__dataclass_fields__ if name != "variant"})
        for i, variant in enumerate(dataset["variant"].values)
    ]


def answer(tree: xr.DataTree) -> str:
    """The answer of `check`, or the findings of `diagnose`, as plain text: at most 79 columns, about 24 lines."""
    if "variant" not in tree.dims:
        return findings_text(tree)
    parts = ([*_about(tree), *_wrap(headline(tree))], _limits(tree), _table(tree), _end(tree))
    return "\n\n".join(text for part in parts if (text := "\n".join(part)))


def headline(tree: xr.DataTree) -> str:
    """How large a rate the model takes as it is, in a sentence or two."""
    row, steps = rows(tree)[0], tree.attrs["steps"]
    if row.lr_stable_found == "above the range":
        first = "No rate in the range searched makes it diverge"
    elif not row.known:
        return "There was no time to find the rates that it takes: give it more."
    elif math.isnan(row.lr_stable):
        first = "It diverges at every rate tried"
    else:
        first = f"It stays stable up to a learning rate of {number(row.lr_stable)}"
    if math.isnan(row.lr_usable):
        return f"{first}, and at no rate found does every seed learn within {steps} steps."
    between = f" (between the two it {fate})" if (fate := _between(tree, row)) else ""
    return (
        f"{first}, and learns up to {number(row.lr_usable)}{between}. After {steps} steps its loss is lowest, "
        f"{number(row.horizon_loss)}, at {row.best}."
    )


def _between(tree: xr.DataTree, row: Row) -> str:
    """What becomes of it between the largest usable and the largest stable rate, where they lie apart."""
    if "as_it_is" not in tree.children or not row.lr_stable > APART * row.lr_usable:
        return ""
    rates = tree["as_it_is/rates"].to_dataset()
    outcomes = rates["outcome"].values[(rates["lr"] > row.lr_usable).values & (rates["lr"] <= row.lr_stable).values]
    fates = [FATES[name] for name in FATES if (outcomes == name).any()]
    return " or ".join(fates)


def limits(tree: xr.DataTree) -> list[tuple[str, str]]:
    """What limits the rates, as title and text: the faults, or else what limits every network."""
    found = as_findings(tree["findings"].to_dataset())
    faults = [(f.title, f"{f.sentence} To do: {f.advice}") for f in found if f.fault]
    return faults or [("nothing is wrong", f.sentence) for f in found]


def conclusion(tree: xr.DataTree) -> str:
    """Which repair buys most, in rate and in loss at the horizon, or that none does."""
    base, *repaired = rows(tree)
    if not base.known:
        return "What the repairs buy is not known, for want of what to compare them with."
    others = [row for row in repaired if row.known]
    if not others:
        return "No repair was measured."
    helpful = [row for row in others if helps(row, base)]
    if not helpful:
        costly = [row for row in others if faster(row, base)]
        if not costly:
            return "None of these repairs would buy a larger rate or a lower loss."
        widest = max(costly, key=lambda row: _or_zero(row.lr_usable))
        return f"None of these repairs lowers the loss. With {widest.title}: {gain(widest, base)}."
    lowest = min(helpful, key=lambda row: (_or_inf(row.horizon_loss), -_or_zero(row.lr_usable)))
    widest = max(helpful, key=lambda row: _or_zero(row.lr_usable))
    text = f"Most is bought by {lowest.title}: {gain(lowest, base)}."
    if _or_zero(widest.lr_usable) > WORTH_SAYING * _or_zero(lowest.lr_usable):
        text += f" The largest rate comes with {widest.title}: {gain(widest, base)}."
    return text


def helps(row: Row, base: Row) -> bool:
    """Whether a repair lowers the loss at the horizon by enough to say so, or raises the usable rate at a loss that is
    not as much higher."""
    loss, before = _or_inf(row.horizon_loss), _or_inf(base.horizon_loss)
    return _well_below(loss, before) or (faster(row, base) and not _well_below(before, loss))


def faster(row: Row, base: Row) -> bool:
    """Whether a repair raises the usable rate by enough to say so."""
    return _or_zero(row.lr_usable) > WORTH_SAYING * _or_zero(base.lr_usable)


def gain(row: Row, base: Row) -> str:
    """What a repair buys: "12 times the rate, loss 0.31 in place of 1.9"."""
    if math.isnan(row.lr_usable):
        rate = "at no rate found does every seed learn"
    elif math.isnan(base.lr_usable):
        rate = f"it learns, up to {number(row.lr_usable)}"
    else:
        rate = f"{number(row.lr_usable / base.lr_usable)} times the rate"
    return f"{rate}, loss {number(row.horizon_loss)} in place of {number(base.horizon_loss)}"


def notes(tree: xr.DataTree) -> list[str]:
    """What a reader must know of how it was measured."""
    said = [str(note) for note in attribute(tree.to_dataset(), "notes")] if "notes" in tree.attrs else []
    left_out = [row.title for row in rows(tree) if row.status == LEFT_OUT]
    return [*said, f"Left out for want of time: {', '.join(left_out)}."] if left_out else said


def _about(tree: xr.DataTree) -> list[str]:
    attrs = tree.attrs
    data = f" on {attrs['data']}" if attrs.get("data") else ""
    seeds = "1 seed" if int(attrs["seeds"]) == 1 else f"{attrs['seeds']} seeds"
    parameters = f"{int(attrs['parameters']):,} parameters"
    return _wrap(f"{attrs['model']}{data}: {parameters}, {attrs['optimizer']}, {attrs['steps']} steps, {seeds}")


def _limits(tree: xr.DataTree) -> Iterator[str]:
    (title, text), *others = limits(tree)
    healthy = title == "nothing is wrong"
    yield from _wrap(f"Nothing is wrong. {text}" if healthy else f"What limits it: {title}. {text}", indent="  ")
    for other, _ in others[: MOST_FAULTS - 1]:
        yield from _wrap(f"Also: {other}.", indent="  ")
    if len(others) >= MOST_FAULTS:
        yield f"And {len(others) - MOST_FAULTS + 1} more: see the report."


def table_title(tree: xr.DataTree) -> str:
    """What the table of the variants shows."""
    return "What each repair would buy" if len(rows(tree)) > 1 else "The rates it takes"


def _table(tree: xr.DataTree) -> Iterator[str]:
    head, every = table_title(tree), rows(tree)
    width = min(max(len(head), *(len(row.title) + 2 for row in every)), WIDTH - 36)
    yield f"{head:{width}} {'stable up to':>12} {'learns up to':>12} {'loss':>9}"
    for row in every:
        name = f"  {textwrap.shorten(row.title, width - 2, placeholder='…'):{width - 2}}"
        if row.status == MEASURED:
            yield f"{name} {row.stable:>12} {row.usable:>12} {number(row.horizon_loss):>9}"
        else:
            yield f"{name} {textwrap.shorten(f'{row.status}: {row.reason}', WIDTH - width - 1, placeholder='…')}"

    yield LEGEND


def _end(tree: xr.DataTree) -> Iterator[str]:
    if len(rows(tree)) > 1:
        yield from _wrap(conclusion(tree))
    if any("≈" in row.stable + row.usable for row in rows(tree)):
        yield "≈: not narrowed down within the steps or the time there was."
    for note in notes(tree):
        yield from _wrap(note)


def _wrap(text: str, indent: str = "") -> list[str]:
    # Not at hyphens: "1e-05" and paths stay whole.
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _boundary(value: float, found: str) -> str:
    if found == "unfinished" and math.isfinite(value):
        return f"≈ {number(value)}"
    return "any tried" if math.isinf(value) else number(value)


def _well_below(loss: float, other: float) -> bool:
    """By the factor that is worth saying; for losses below 0, as log densities may be, by as much of their sizes."""
    if math.isinf(other) or (loss > 0 and other > 0):
        return loss < other / WORTH_SAYING
    return loss < other - (1 - 1 / WORTH_SAYING) * max(abs(loss), abs(other))


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _or_inf(value: float) -> float:
    return math.inf if math.isnan(value) else value

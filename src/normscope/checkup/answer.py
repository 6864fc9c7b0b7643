"""The answer in words, from the tree of `check` alone: which rate to train at, how large a one the model takes, what
stops it, what each repair would buy."""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xarray as xr

from normscope.diagnosis.finding import as_findings
from normscope.diagnosis.words import findings_text, skipped, trainings
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

AS_IT_IS, RATES_AS_IT_IS = "as it is", "the rates as it is"
MEASURED, REFUSED, LEFT_OUT, NOT_TRIED = "measured", "refused", "left out", "not tried"

NEIGHBOUR = 10**0.1
"""The factor between neighbouring rates of a search, see `rates.search`."""

APART = 2.0
"""What becomes of the model between its usable and its stable rates is told where they are this factor apart."""

FATES = {"stalled": "stalls", "dead": "gives the same output for every input"}
"""Outcomes that are neither learning nor diverging, in words."""

HEALTHY, WRONG = "No fault was found", "What is wrong"

LIMITS = ("", "exploding")
"""Findings that say what ends the rates; "" is that nothing is a fault. All others are wrong whatever the rate."""

WORTH_SAYING = 1.1
"""A repair helps where it lowers the loss at the horizon by this factor, each at its own rate to train at ..."""

EVAL_GAP = 1.25
"""What batch norm costs in evaluation mode is told from this factor on."""

MUCH_LARGER = 1.5
"""... and a rate is told beside it where it is larger by this one."""

NO_GOOD = ("diverges", "learns at no rate tried", "unfinished")
"""Judgements of one's own rate beside which nothing is called sound."""

HEDGES = {
    "learns on some seeds": " Not every seed learns at it, nor at any other rate tried.",
    "lowers the loss": " It lowers the loss, but by too little to be called learning: give it more steps.",
    "unfinished": " It was not tried on every seed.",
}
"""What is not sure of the rate to train at, by how it was found."""


@dataclass(frozen=True)
class Row:
    """One variant of the tree's own Dataset, see `checkup.check`."""

    variant: str
    title: str
    status: str
    reason: str
    cut: bool
    """Whether time ended its search: then nothing is concluded from it."""
    lr_recommended: float
    lr_stable: float
    lr_usable: float
    lr_recommended_found: str
    lr_stable_found: str
    lr_usable_found: str
    best_low: float
    best_high: float
    horizon_loss: float
    lr_stable_high: float = math.nan
    """The upper ends of both brackets; inf where nothing failed, NaN in an older result."""
    lr_usable_high: float = math.nan
    eval_loss: float = math.nan
    """After the same descent, in evaluation mode and in training mode; NaN of a model without running averages, or in
    an older result."""
    train_mode_loss: float = math.nan

    @property
    def best(self) -> str:
        """The rates tied with the one to train at."""
        low, high = number(self.best_low), number(self.best_high)
        return low if low == high else f"{low} to {high}"

    @property
    def stable(self) -> str:
        """The largest stable rate, as a bound or with ≈ where the search ended before it was bracketed."""
        return _boundary(self.lr_stable, self.lr_stable_found, self.lr_stable_high)

    @property
    def usable(self) -> str:
        """The largest usable rate in the same way; "nowhere" where there is none."""
        nowhere = self.known and self.lr_usable_found == "nowhere"
        return "nowhere" if nowhere else _boundary(self.lr_usable, self.lr_usable_found, self.lr_usable_high)

    @property
    def known(self) -> bool:
        """Whether it was measured, and there was time to find any rates."""
        return self.status == MEASURED and not (math.isnan(self.lr_stable) and self.lr_stable_found == "unfinished")

    @property
    def train_at(self) -> str:
        """The rate to train at; "nowhere" where none lowers the loss."""
        return "nowhere" if self.lr_recommended_found == "nowhere" else number(self.lr_recommended)

    @property
    def comparable(self) -> bool:
        """Whether its loss may be compared with another variant's: its search came to its end."""
        return self.status == MEASURED and not self.cut and self.lr_recommended_found != "unfinished"


def rows(tree: xr.DataTree) -> list[Row]:
    """Every variant, the model as it is first."""
    dataset = tree.to_dataset()

    def value(name: str, place: int) -> Any:
        return dataset[name].values[place].item() if name in dataset else math.nan

    return [
        Row(str(variant), **{name: value(name, i) for name in Row.__dataclass_fields__ if name != "variant"})
        for i, variant in enumerate(dataset["variant"].values)
    ]


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


def headline(tree: xr.DataTree) -> str:
    """What was cut by time; what is said of one's own rate; the rate to train at; how large a one the model takes."""
    row = rows(tree)[0]
    parts = [_cut(tree), left_out(tree)]
    if row.status == NOT_TRIED:
        return f"No rate was tried: before any step {row.reason}."
    if "own_rate" in tree.children:
        parts.append(own_rate(tree))
    if "own_rate" not in tree.children or row.lr_recommended_found != "unfinished":
        parts += [_train_at(tree, row), _longer(tree), _takes(tree, row)]
    return " ".join(part for part in parts if part)


def cut(tree: xr.DataTree) -> list[str]:
    """What time or Ctrl-C ended."""
    ended = [RATES_AS_IT_IS if row.variant == AS_IT_IS else row.title for row in rows(tree) if row.cut]
    if "findings" in tree.children and "cut" in tree["findings"].attrs:
        ended.insert(1 if ended[:1] == [RATES_AS_IT_IS] else 0, "what limits it")
    longer = longer_training(tree)
    if longer is not None and bool(attribute(longer, "longer_cut")):
        ended.append("longer trainings")
    return ended


def _cut(tree: xr.DataTree) -> str:
    """What time or Ctrl-C ended, in the first sentence."""
    ended = cut(tree)
    if not ended:
        return ""
    names = ", ".join(ended)
    why = "Interrupted" if str(tree.attrs.get("interrupted", "false")) == "true" else "Out of time"
    return (
        f"{why}: {names} {'was' if len(ended) == 1 and ended[0] != RATES_AS_IT_IS else 'were'} not measured to the end."
    )


def rates_were_tried(tree: xr.DataTree) -> bool:
    """False where what no rate mends ended it before any was tried."""
    return rows(tree)[0].status != NOT_TRIED


def left_out(tree: xr.DataTree) -> str:
    """Which batches nothing was measured on, since their loss or gradient is not finite or they are refused."""
    return str(tree["findings"].attrs.get("left_out", "")) if "findings" in tree.children else ""


def _train_at(tree: xr.DataTree, row: Row) -> str:
    """The rate to train at, with what is not sure of it."""
    if row.lr_recommended_found == "nowhere":
        return f"No rate tried lowers the loss within {tree.attrs['steps']} steps."
    if math.isnan(row.lr_recommended):
        return "There was no time to find the rate to train at: give it more."
    tied = "" if row.best_low == row.best_high else f" ({number(row.best_low)} to {number(row.best_high)} are as good)"
    if math.isnan(row.horizon_loss):
        lr = number(row.lr_recommended)
        return f"Perhaps train at {lr}: its loss fell lowest in the first steps, and no more is known."
    loss = f" After {tree.attrs['steps']} steps its loss is {number(row.horizon_loss)}."
    hedge = HEDGES.get(row.lr_recommended_found, "") + _at_the_end(tree, row)
    return f"Train at {number(row.lr_recommended)}{tied}.{loss}{hedge}"


def _at_the_end(tree: xr.DataTree, row: Row) -> str:
    """Said of a rate at an end of the range searched: the best may lie beyond."""
    rates = tree["as_it_is/rates"].to_dataset() if "as_it_is" in tree.children else xr.Dataset()
    if "lr_range" not in rates.attrs:
        return ""
    lowest, highest = attribute(rates, "lr_range")
    if row.lr_recommended * NEIGHBOUR > highest:
        return " It is the largest rate of the range searched: a larger one may be better."
    if row.lr_recommended / NEIGHBOUR < lowest:
        return " It is the smallest rate of the range searched: a smaller one may be better."
    return ""


def longer_training(tree: xr.DataTree) -> xr.Dataset | None:
    """The rates of the model as it is, where one was asked for a longer training."""
    if "as_it_is" not in tree.children or "rates" not in tree["as_it_is"].children:
        return None
    rates = tree["as_it_is/rates"].to_dataset()
    return rates if "lr_for_training" in rates else None


def _longer(tree: xr.DataTree) -> str:
    """The rate for a longer training, with how the best rate moved as far as that was measured."""
    rates = longer_training(tree)
    if rates is None:
        return ""
    steps = int(attribute(rates, "train_steps"))
    training = f"a training of {steps:,} steps{' with a cooldown' if bool(attribute(rates, 'cooldown')) else ''}"
    if not rates.sizes["length"]:
        return f"For {training} no rate is known."
    lr, low, high = (number(float(rates[f"lr_for_training{end}"])) for end in ("", "_low", "_high"))
    lengths, lrs = rates["length"].values, rates["lr_at_length"].values
    moved = ", ".join(f"{number(float(one))} after {length:,}" for length, one in zip(lengths, lrs, strict=True))
    how = "" if lengths[-1] >= steps else f", extrapolated from {int(lengths[-1]):,} steps"
    return f"For {training}: about {lr} ({low} to {high}){how}; the best rate was {moved}."


def _takes(tree: xr.DataTree, row: Row) -> str:
    """How large a rate it takes."""
    if row.lr_stable_found == "above the range":
        first = "No rate in the range searched makes it diverge"
    elif not row.known:
        return ""
    elif math.isnan(row.lr_stable):
        lowest = "Some seeds diverge even at the lowest rate searched."
        return lowest if row.lr_recommended > 0 else "It diverges at every rate tried."
    else:
        first = f"Training is stable {_up_to(row.lr_stable, row.lr_stable_high, row.lr_stable_found)}"
    if row.lr_usable_found == "nowhere":
        return f"{first}, but at no rate found does every seed learn."
    if math.isnan(row.lr_usable):
        return f"{first}."
    if math.isinf(row.lr_usable):
        return f"{first}, and every seed learns up to its end."
    between = f" (between the two it {fate})" if (fate := _between(tree, row)) else ""
    learning = _up_to(row.lr_usable, row.lr_usable_high, row.lr_usable_found)
    return f"{first}, and learns {learning}{between}."


def own_rate(tree: xr.DataTree) -> str:
    """What is said of the rate that somebody trains with."""
    dataset = tree["own_rate"].to_dataset()
    own = {str(name): value.item() for name, value in dataset.data_vars.items() if not value.dims}
    lr, steps = number(own["lr"]), tree.attrs["steps"]
    passes, fails = own["passes"], own["fails"]
    judgement = own["judgement"]
    if judgement == "diverges":
        layer = f", first in {own['diverged_layer']}" if own["diverged_layer"] else ""
        found = f"diverges at step {own['diverged_step']}{layer}"
        if math.isnan(passes):
            return f"Your rate {lr} {found}, and so do all smaller rates tried."
        times = f"{number(own['lr'] / passes)} times above what it takes"
        return f"Your rate {lr} is {times}: {found}; stable at {number(passes)}."
    if judgement == "near or above the edge":
        outcomes = [str(o) for o in dataset["outcome"].values]
        failing = [o for o in outcomes if o and o != "learns"]
        if failing:
            better = f" At {number(passes)} it does." if passes < own["lr"] else ""
            return f"Your rate {lr} is above the edge: not every seed learns at it.{better}"
        return f"Your rate {lr} is near the edge: every seed learns at it, but not at {number(fails)}."
    if judgement == "too small":
        if math.isnan(own["better_lr"]):
            return f"Your rate {lr} is too small for {steps} steps."
        ends = number(own["better_loss"]), number(own["loss"])
        if ends[0] == ends[1]:
            ends = f"{own['better_loss']:.4g}", f"{own['loss']:.4g}"
        return (
            f"Your rate {lr} is too small for {steps} steps: at {number(own['better_lr'])} the loss ends at "
            f"{ends[0]} in place of {ends[1]}. Or give it more steps."
        )
    if judgement == "good":
        fault = "findings" in tree.children and bool(tree["findings"]["fault"].any())
        verdict = "is not what is wrong" if fault else "is good"
        loss = f"its loss after {steps} steps is {number(own['loss'])}"
        if math.isinf(fails):
            return f"Your rate {lr} {verdict}: {loss}, far from any edge."
        return (
            f"Your rate {lr} {verdict}: {loss}, and it lies {number(passes / own['lr'])} times or more under the edge."
        )
    if judgement == "unfinished":
        return f"There was no time to judge your rate {lr}."
    return f"Your rate {lr} does not learn within {steps} steps, nor does any rate tried around it."


def _up_to(low: float, high: float, found: str) -> str:
    """To where, by the ends of the bracket as far as the search came."""
    if found != "unfinished":
        return f"up to {number(low)}"
    if math.isinf(high):
        return f"at {number(low)}, and larger rates were not tried to the end"
    if high > APART * low:
        return f"up to some rate from {number(low)} to {number(high)}"
    return f"up to about {number(low)}"


def _between(tree: xr.DataTree, row: Row) -> str:
    """What becomes of it between the largest usable and the largest stable rate, where they lie apart."""
    if "as_it_is" not in tree.children or not row.lr_stable > APART * row.lr_usable:
        return ""
    rates = tree["as_it_is/rates"].to_dataset()
    outcomes = rates["outcome"].values[(rates["lr"] > row.lr_usable).values & (rates["lr"] <= row.lr_stable).values]
    fates = [FATES[name] for name in FATES if (outcomes == name).any()]
    return " or ".join(fates)


def limits(tree: xr.DataTree) -> list[tuple[str, str]]:
    """What limits the rates, as title and text: the faults, or else what limits every network; nothing where it was not
    measured. "No fault was found" is not said of a model that does not learn."""
    found = as_findings(tree["findings"].to_dataset())
    faults = [(f.title, f"{f.sentence} To do: {f.advice}" if f.advice else f.sentence) for f in found if f.fault]
    if faults:
        return faults
    healthy = learns(tree) and not skipped(tree) and different_batches(tree) != 1
    return [(HEALTHY.lower() if healthy else f.title, f.sentence) for f in found]


def learns(tree: xr.DataTree) -> bool:
    """Whether every seed learns: at the rate to train at, or at one's own where no other was looked for."""
    base = rows(tree)[0]
    if "own_rate" in tree.children and base.lr_recommended_found == "unfinished":
        own = tree["own_rate"].to_dataset()
        return bool((own["outcome"] == "learns").all()) and str(own["judgement"].values) not in NO_GOOD
    return base.lr_recommended_found == "learns on every seed" and not math.isnan(base.lr_stable)


def different_batches(tree: xr.DataTree) -> int | None:
    """How many different mini-batches there were; None where they come from a function of the seed."""
    number_of = str(tree.attrs.get("different_batches", ""))
    return int(number_of) if number_of.isdigit() else None


def conclusion(tree: xr.DataTree) -> str:
    """Which repair lowers the loss at the horizon most, each at its own rate to train at, or that none does."""
    base, *repaired = rows(tree)
    others = [row for row in repaired if row.comparable]
    if not others:
        return "No repair was measured to its end." if repaired else ""
    if not base.comparable:
        return "What the repairs buy is not known: the model as it is was not measured to its end."
    helpful = sorted((row for row in others if helps(row, base)), key=lambda row: row.horizon_loss)
    some = "None of the repairs measured" if len(others) < len(repaired) else "None of these repairs"
    if not helpful:
        return f"{some} lowers the loss after {tree.attrs['steps']} steps."
    lowest = helpful[0]
    text = f"{_mended(tree, lowest)}{_scope(tree, repaired)} bought by {lowest.title}, in the first "
    text += f"{tree.attrs['steps']} steps: {gain(lowest, base)}."
    if tied := [row.title for row in helpful[1:] if not _well_below(lowest.horizon_loss, row.horizon_loss)]:
        text += f" As good, within a tenth: {', '.join(tied)}."
    widest = max(helpful, key=lambda row: row.lr_recommended)
    if widest is not lowest and widest.lr_recommended > MUCH_LARGER * lowest.lr_recommended:
        text += f" The largest rate to train at comes with {widest.title}: {gain(widest, base)}."
    return " ".join(
        [text, *(_costs_in_evaluation(row) for row in {id(r): r for r in (lowest, widest)}.values())]
    ).strip()


def _mended(tree: xr.DataTree, lowest: Row) -> str:
    """That mending what is wrong buys more than the best repair, where its loss proves that, if after fewer steps."""
    runs = trainings(tree)
    if not {"as it is", "mended"} <= runs.keys() or runs["mended"]["diverged"]:
        return ""
    mended = runs["mended"]
    same_task = math.isclose(mended["constant_loss"], runs["as it is"]["constant_loss"], rel_tol=1e-3)
    if not same_task or not _well_below(mended["end_loss"], lowest.horizon_loss):
        return ""
    return f"Most is bought by mending what is wrong: loss {number(mended['end_loss'])} after {mended['steps']} steps. "


def _scope(tree: xr.DataTree, repaired: list[Row]) -> str:
    """Among what the best repair is the best: not what is wrong mended, nor what was not measured to its end."""
    if any(row.status != REFUSED and not row.comparable for row in repaired):
        return "Of the repairs measured to their end, most is"
    return "Of these repairs, most is" if "mended" in trainings(tree) else "Most is"


def helps(row: Row, base: Row) -> bool:
    """Whether a repair lowers the loss at the horizon by enough to say so, each at its own rate to train at."""
    if not row.lr_recommended > 0 or math.isnan(row.horizon_loss):
        return False
    return not base.lr_recommended > 0 or _well_below(row.horizon_loss, base.horizon_loss)


def _costs_in_evaluation(row: Row) -> str:
    """What batch norm costs once its running averages take the place of the batch's own statistics; "" where little."""
    if math.isnan(row.train_mode_loss) or not _well_below(row.train_mode_loss, row.eval_loss, EVAL_GAP):
        return ""
    return (
        f"But in evaluation mode, by running averages, the loss of {row.title} is {number(row.eval_loss)}, not "
        f"{number(row.train_mode_loss)}. Larger batches, a rate that falls, or a norm of another kind close the gap."
    )


def gain(row: Row, base: Row) -> str:
    """What a repair that helps buys: "loss 0.31 at 0.05, in place of 1.9 at 0.001"."""
    if not base.lr_recommended > 0:
        return f"it lowers the loss, to {number(row.horizon_loss)} at {number(row.lr_recommended)}"
    return (
        f"loss {number(row.horizon_loss)} at {number(row.lr_recommended)}, in place of {number(base.horizon_loss)} at "
        f"{number(base.lr_recommended)}"
    )


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
    yield from (f"    {line}" for line in _first_code(tree).splitlines())
    for other, _ in others[: MOST_FAULTS - 1]:
        yield from _wrap(f"Also: {other}.", width, indent="  ")
    if len(others) >= MOST_FAULTS:
        yield f"And {len(others) - MOST_FAULTS + 1} more: see the report."
    for line in skipped(tree):
        if line != left_out(tree):
            yield from _wrap(line, width, indent="  ")


def limits_title(tree: xr.DataTree) -> str:
    """What is said in front of the first of the `limits`."""
    found = as_findings(tree["findings"].to_dataset())
    if limits(tree)[:1] and limits(tree)[0][0] == HEALTHY.lower():
        return HEALTHY
    first = next((f.name for f in found if f.fault), "")
    return "What limits it" if first in LIMITS else WRONG


def _first_code(tree: xr.DataTree) -> str:
    """The advice of the first fault as lines of Python; empty where it has none."""
    found = as_findings(tree["findings"].to_dataset())
    return next((f.code for f in found if f.fault), "")


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


def _boundary(value: float, found: str, high: float) -> str:
    if found == "unfinished" and math.isfinite(value):
        return f"{'≥' if math.isinf(high) else '≈'} {number(value)}"
    return "any tried" if math.isinf(value) else number(value)


def _well_below(loss: float, other: float, by: float = WORTH_SAYING) -> bool:
    """By this factor; for losses below 0, as log densities may be, by as much of their sizes."""
    if math.isnan(other):
        return True
    if loss > 0 and other > 0:
        return loss < other / by
    return loss < other - (1 - 1 / by) * max(abs(loss), abs(other))

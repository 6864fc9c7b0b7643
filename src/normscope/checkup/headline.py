"""What a check says first: what was cut, one's own rate judged, the rate to train at, how large a one it takes."""

import math

import xarray as xr

from normscope.checkup.rows import AS_IT_IS, NOT_TRIED, RATES_AS_IT_IS, Row, rows
from normscope.results import attribute
from normscope.statistics.numbers import number

NEIGHBOUR = 10**0.1
"""The factor between neighbouring rates of a search, see `rates.search`."""

APART = 2.0
"""What becomes of the model between its usable and its stable rates is told where they are this factor apart."""

FATES = {"stalled": "stalls", "dead": "gives the same output for every input"}
"""Outcomes that are neither learning nor diverging, in words."""

HEDGES = {
    "learns on some seeds": " Not every seed learns at it, nor at any other rate tried.",
    "lowers the loss": " It lowers the loss, but by too little to be called learning: give it more steps.",
    "unfinished": " It was not tried on every seed.",
}
"""What is not sure of the rate to train at, by how it was found."""


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

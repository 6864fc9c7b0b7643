"""What a check says of its repairs: which lowers the loss most, each at its own rate to train at, or that none does."""

import math

import xarray as xr

from normscope.checkup.rows import REFUSED, Row, rows
from normscope.diagnosis.words import trainings
from normscope.statistics.numbers import number

WORTH_SAYING = 1.1
"""A repair helps where it lowers the loss at the horizon by this factor, each at its own rate to train at ..."""

MUCH_LARGER = 1.5
"""... and a rate is told beside it where it is larger by this one."""

EVAL_GAP = 1.25
"""What batch norm costs in evaluation mode is told from this factor on."""


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


def _well_below(loss: float, other: float, by: float = WORTH_SAYING) -> bool:
    """By this factor; for losses below 0, as log densities may be, by as much of their sizes."""
    if math.isnan(other):
        return True
    if loss > 0 and other > 0:
        return loss < other / by
    return loss < other - (1 - 1 / by) * max(abs(loss), abs(other))

"""The pictures of a check's page: the two that prove the answer, and those of each variant. A caption with each."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from normscope.figures.descents import plot_descents
from normscope.figures.output_gradients import plot_output_gradients
from normscope.figures.relative_loss import plot_relative_loss
from normscope.figures.size_along_step import plot_size_along_step
from normscope.figures.stable_lr import plot_stable_lr
from normscope.figures.style import COLORS, figure_of, legend_once, whole_ticks
from normscope.html.page import Picture, as_svg
from normscope.statistics.numbers import number

PANEL = (5.0, 3.5)
"""Inches: two stand beside each other on a wide page, and one fills a narrow one."""

EXPLODING = "exploding"


def proof(tree: xr.DataTree) -> list[Picture]:
    """What stops the model, and what the best repair buys: the loss along the descents at each one's best rate."""
    pictures = []
    if "evidence" in tree["as_it_is"].children:
        evidence = tree["as_it_is/evidence"].to_dataset()
        if EXPLODING in tree["findings"].to_dataset()["finding"].values and _has_depth(evidence):
            pictures.append(_picture(evidence, plot_size_along_step, "why", _SIZES))
        elif (training := tree["as_it_is"].children.get("training")) is not None and "mended" in training.children:
            pictures.append(_mended(training))
        else:
            pictures.append(_picture(evidence, plot_relative_loss, "why", _FIRST_STEP))
    top = tree.to_dataset()
    if "rates" not in tree["as_it_is"].children:
        return pictures
    variants = [(top.isel(variant=0), "as_it_is", COLORS["none"])]
    if best := _best_repair(tree):
        variants.append((top.sel(variant=best), f"repairs/{best}", COLORS["batch"]))
    figure, axes = figure_of(1, 1, panel=PANEL)
    for row, node, color in variants:
        rates, title = tree[f"{node}/rates"].to_dataset(), str(row["title"].values)
        if (lr := _shown_lr(rates)) is not None:
            plot_descents(rates, lrs=[lr], label=f"{title}, at {number(lr)}", color=color, ax=axes[0, 0])
    if not axes[0, 0].lines:
        return pictures
    caption = "Descents at the rate to train at, one line a seed; dotted: the loss of the best constant output."
    return [*pictures, Picture(as_svg(figure, "descents"), caption)]


def _mended(training: xr.DataTree) -> Picture:
    """The program's own training, and the same with what is wrong mended."""
    figure, axes = figure_of(1, 1, panel=PANEL)
    ax = axes[0, 0]
    for name, color in (("as_it_is", COLORS["none"]), ("mended", COLORS["final"])):
        run = training[name].to_dataset()
        loss = run["loss"].where(np.isfinite(run["loss"]))
        ax.plot(run["step"], loss, color=color, lw=1.2, label=name.replace("_", " "))
    ax.axhline(float(run["constant_loss"]), color="0.4", lw=1, ls=":", label="best constant output")
    shown = np.concatenate([line.get_ydata() for line in ax.lines[:-1]])
    shown = shown[np.isfinite(shown)]
    if len(shown) and shown.min() > 0 and shown.max() > 10 * shown.min():
        ax.set_yscale("log")
    whole_ticks(ax.xaxis)
    ax.set(xlabel="step", ylabel="training loss")
    legend_once(ax)
    early = len(training["as_it_is"]["step"]) < len(training["mended"]["step"])
    as_it_is = f"as it is{' (given up where its line ends)' if early else ''}"
    return Picture(as_svg(figure, "why"), f"A training of the program {as_it_is}, and with what is wrong mended.")


def of_variant(tree: xr.DataTree, node: str) -> list[Picture]:
    """Every descent as a curve, the loss at its end against its rate, one step against its rate, sizes layer by layer,
    the gradient at the output. What was not measured, or has nothing to show, has no picture."""
    name = re.sub(r"[^a-z0-9]+", "-", node)
    rates = tree[f"{node}/rates"].to_dataset()
    pictures = [
        _picture(rates, plot_descents, f"{name}-descents", "Every short descent, coloured by what became of it."),
        _picture(rates, plot_stable_lr, f"{name}-rates", "The loss at the end of each descent, against its rate."),
    ]
    if "evidence" in tree[node].children:
        evidence = tree[f"{node}/evidence"].to_dataset()
        pictures.append(_picture(evidence, plot_relative_loss, f"{name}-step", _FIRST_STEP))
        if _has_depth(evidence):
            pictures.append(_picture(evidence, plot_size_along_step, f"{name}-sizes", _SIZES))
    if "output_gradients" in tree[node].children:
        gradients = tree[f"{node}/output_gradients"].to_dataset()
        if gradients.sizes["label"] > 1:
            pictures.append(_picture(gradients, plot_output_gradients, f"{name}-output", _OUTPUT))
    return pictures


_FIRST_STEP = "The loss after one step of the optimizer, over the loss before; the dotted line is a thousandfold."
_SIZES = "The size of the activations, layer by layer, along a step at the rate that diverges."
_OUTPUT = "The gradient at the output, a row an example: a column of one colour is a class that all push the same way."


def _picture(dataset: xr.Dataset, plot: Callable[..., Any], name: str, caption: str) -> Picture:
    figure, axes = figure_of(1, 1, panel=PANEL)
    plot(dataset, ax=axes[0, 0])
    return Picture(as_svg(figure, name), caption)


def _has_depth(evidence: xr.Dataset) -> bool:
    return int(evidence["depth"].notnull().sum()) > 1


def _best_repair(tree: xr.DataTree) -> str:
    """The repair of the lowest loss; empty where none was measured."""
    top = tree.to_dataset()
    losses = {
        str(name): float(top["horizon_loss"].sel(variant=name))
        for name in top["variant"].values[1:]
        if str(top["status"].sel(variant=name).values) == "measured"
    }
    losses = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
    return min(losses, key=lambda name: losses[name], default="")


def _shown_lr(rates: xr.Dataset) -> float | None:
    """The rate to train at; where there is none, that of the lowest mean loss at the horizon; None where no descent
    came so far."""
    losses = rates["horizon_loss"]
    if np.isfinite(lr := float(rates.get("lr_recommended", np.nan))):
        return lr
    tried = losses.notnull().sum("seed").values
    if not tried.any():
        return None
    mean = losses.fillna(0).sum("seed").values / np.maximum(tried, 1)
    return float(rates["lr"].values[int(np.argmin(np.where(tried > 0, mean, np.inf)))])

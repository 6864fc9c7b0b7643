"""Descents as curves: what is drawn is what was measured, and what diverged leaves through the upper edge."""

import numpy as np
import xarray as xr

from normscope.figures.descents import plot_descents
from normscope.figures.style import figure_of


def rates() -> xr.Dataset:
    """Three rates, one seed: one learns, one diverges at its third step, one was not tried."""
    loss = np.array([[[2.0, 1.0, 0.5, 0.25]], [[2.0, 50.0, np.inf, np.nan]], [[np.nan] * 4]])
    return xr.Dataset(
        {
            "loss": (("lr", "seed", "step"), loss, {"long_name": "loss", "units": "nat"}),
            "outcome": (("lr", "seed"), [["learns"], ["diverged"], ["not tried"]]),
            "steps_taken": (("lr", "seed"), [[4], [3], [0]]),
            "constant_loss": ("seed", [2.3]),
        },
        {"lr": [0.1, 1.0, 10.0], "seed": [0], "step": range(4)},
    )


def test_each_try_is_a_curve_and_what_diverged_leaves_through_the_edge():
    figure, axes = figure_of(1, 1)
    ax = plot_descents(rates(), ax=axes[0, 0])
    learns, diverges, triangle, constant = ax.lines
    assert learns.get_ydata().tolist() == [2.0, 1.0, 0.5, 0.25]
    assert np.isfinite(diverges.get_ydata()).tolist() == [True, False, False], "50 lies above the axes"
    assert (triangle.get_marker(), list(triangle.get_xdata())) == ("^", [2])
    assert set(constant.get_ydata()) == {2.3}
    assert ax.get_ylabel() == "loss [nat]"
    figure.draw_without_rendering()


def test_chosen_rates_with_a_name_and_a_colour_of_their_own():
    _, axes = figure_of(1, 1)
    ax = plot_descents(rates(), lrs=[0.1], label="as it is", color="red", ax=axes[0, 0])
    assert [line.get_label() for line in ax.lines] == ["as it is", "best constant output"]
    assert ax.lines[0].get_color() == "red"

"""Figures 3 and 5: what is drawn, in which colour, under which labels; pixels are not looked at."""

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from normscope.errors import InvalidConfig
from normscope.figures.channel_moments import log_moments, plot_channel_moments
from normscope.figures.relative_loss import HIGHEST_SHOWN, LOWEST_SHOWN, plot_relative_loss
from normscope.figures.style import COLORS, axes_or_new, axis_label, color_of, figure_of
from normscope.results import labelled

matplotlib.use("Agg")

STEPS = np.geomspace(1e-4, 10, 6)


def axes() -> Axes:
    return Figure().subplots()


def relative(values, **coords) -> xr.Dataset:
    """A Dataset as the probe's, with `coords` (norm, seed) as dims in front."""
    values = np.asarray(values, dtype=float)
    return labelled(
        {"relative_loss": ((*coords, "step_size"), values, "relative loss", "1")},
        {"step_size": (STEPS, "step size α", "1"), **{k: (v, k, "1") for k, v in coords.items()}},
    )


def curves(ax: Axes):
    """Lines with more than the two points of the threshold's, triangles left out."""
    return [line for line in ax.lines if line.get_marker() == "None" and len(line.get_xdata()) > 2]


def triangles(ax: Axes):
    return [line for line in ax.lines if line.get_marker() == "^"]


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def test_one_curve_on_logarithmic_axes():
    values = [1, 0.5, 0.1, 10, 1e4, 1e6]
    ax = plot_relative_loss(relative(values), ax=axes())
    (line,) = curves(ax)
    np.testing.assert_array_equal(line.get_xdata(), STEPS)
    np.testing.assert_array_equal(line.get_ydata(), values)
    assert (ax.get_xscale(), ax.get_yscale(), ax.get_ylim()) == ("log", "log", (LOWEST_SHOWN, HIGHEST_SHOWN))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step size α", "relative loss")
    assert triangles(ax) == [] and legend(ax) == ["relative loss"]
    assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [1e3]


def test_what_diverged_is_drawn_on_the_upper_edge():
    ax = plot_relative_loss(relative([1, 10, 1e8, np.inf, np.nan, 2]), ax=axes())
    np.testing.assert_array_equal(curves(ax)[0].get_ydata(), [1, 10, np.nan, np.nan, np.nan, 2])
    (marks,) = triangles(ax)
    np.testing.assert_array_equal(marks.get_xdata(), STEPS[2:5])
    assert (
        set(marks.get_ydata()) == {1.0}
        and marks.get_transform() == ax.get_xaxis_transform()
        and not marks.get_clip_on()
    )
    assert legend(ax) == ["relative loss", "diverged"]


def test_a_curve_that_falls_low_is_seen_whole():
    ax = plot_relative_loss(relative([1, 0.1, 1e-3, 2e-5, 0.0, 1]), ax=axes())
    assert ax.get_ylim() == (1e-5, HIGHEST_SHOWN)


def test_norms_have_their_colours_and_seeds_a_line_each():
    values = np.arange(1, 37).reshape(3, 2, 6)
    ax = plot_relative_loss(relative(values, norm=["batch", "none", "rms"], seed=[0, 1]), ax=axes())
    lines = curves(ax)
    assert [to_hex(line.get_color()) for line in lines[:4]] == [COLORS["batch"]] * 2 + [COLORS["none"]] * 2
    assert {line.get_color() for line in lines[4:]} == {color_of("rms", 2)}
    np.testing.assert_array_equal([line.get_ydata() for line in lines], values.reshape(6, 6))
    assert legend(ax) == ["with batch norm", "without", "rms"]


def test_dims_in_another_order_are_the_same_picture():
    dataset = relative(np.arange(1, 25).reshape(2, 2, 6), norm=["batch", "none"], seed=[0, 1])
    one = curves(plot_relative_loss(dataset, ax=axes()))
    two = curves(plot_relative_loss(dataset.transpose("step_size", "seed", "norm"), ax=axes()))
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.get_ydata(), b.get_ydata())


def test_a_selected_norm_keeps_its_name():
    dataset = relative(np.ones((2, 6)), norm=["batch", "none"]).sel(norm="none")
    ax = plot_relative_loss(dataset, ax=axes())
    assert legend(ax) == ["without"] and to_hex(curves(ax)[0].get_color()) == COLORS["none"]


def test_everything_diverged_is_a_row_of_triangles():
    ax = plot_relative_loss(relative(np.full(6, np.nan)), ax=axes())
    assert len(triangles(ax)[0].get_xdata()) == 6
    assert ax.get_ylim() == (LOWEST_SHOWN, HIGHEST_SHOWN)


WIDTHS = np.array([3, 2, 4, 3])


def channel_dataset(**dims) -> xr.Dataset:
    """Four layers of other widths, the third on a shortcut, padded with NaN; `dims` (norm, seed) in front."""
    shape = tuple(len(values) for values in dims.values())
    generator = np.random.default_rng(0)
    mean, variance = generator.normal(size=(2, *shape, 4, 4)) + 3
    padded = np.arange(4) >= WIDTHS[:, None]
    mean, variance = np.where(padded, np.nan, mean), np.where(padded, np.nan, variance**2)
    names = ["conv1", "a.conv", "a.shortcut", "fc"]
    dataset = labelled(
        {
            "mean": ((*dims, "layer", "channel"), mean, "channel mean", "1"),
            "variance": ((*dims, "layer", "channel"), variance, "channel variance", "1"),
            "num_channels": ("layer", WIDTHS, "number of channels", "1"),
        },
        {"layer": (names, "layer", "1"), "channel": (range(4), "channel", "1")}
        | {name: (values, name, "1") for name, values in dims.items()},
    )
    depth = ("layer", [1, 2, np.nan, 3], {"long_name": "layer on the main path", "units": "1"})
    return dataset.assign_coords(depth=depth)


def test_the_curve_is_the_mean_of_the_logarithms_and_the_band_their_spread():
    dataset = channel_dataset()
    ax = plot_channel_moments(dataset, ax=axes())
    logs = 0.5 * np.log(dataset["variance"].values[[0, 1, 3]])
    (line,) = curves(ax)
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), np.nanmean(logs, 1))
    upper = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    assert upper == pytest.approx((np.nanmean(logs, 1) + np.nanstd(logs, 1)).max())
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer on the main path", "log channel std [nat]")
    assert triangles(ax) == []


def test_means_are_drawn_by_their_size():
    dataset = channel_dataset()
    dataset["mean"] = -dataset["mean"]
    ax = plot_channel_moments(dataset, moment="log_abs_mean", ax=axes())
    expected = np.nanmean(np.log(abs(dataset["mean"].values[[0, 1, 3]])), 1)
    np.testing.assert_allclose(curves(ax)[0].get_ydata(), expected)
    assert ax.get_ylabel() == "log |channel mean| [nat]"


def test_norms_and_seeds():
    dataset = channel_dataset(norm=["batch", "none"], seed=[0, 1, 2])
    ax = plot_channel_moments(dataset, ax=axes())
    lines = curves(ax)
    assert [to_hex(line.get_color()) for line in lines] == [COLORS["batch"], COLORS["none"]]
    assert legend(ax) == ["with batch norm", "without"]
    logs = 0.5 * np.log(dataset["variance"].sel(norm="none").values[:, [0, 1, 3]])
    np.testing.assert_allclose(lines[1].get_ydata(), np.nanmean(logs, (0, 2)))


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_layer_that_is_not_finite_in_one_channel_of_one_seed_is_a_triangle(value):
    dataset = channel_dataset(norm=["batch", "none"], seed=[0, 1])
    dataset["variance"][1, 0, 1, 0] = value
    ax = plot_channel_moments(dataset, ax=axes())
    (marks,) = triangles(ax)
    assert marks.get_xdata() == [2] and marks.get_ydata() == [1] and to_hex(marks.get_color()) == COLORS["none"]
    assert np.isnan(curves(ax)[1].get_ydata()).tolist() == [False, True, False]
    assert not np.isnan(curves(ax)[0].get_ydata()).any()
    assert "not finite" in legend(ax)
    assert triangles(plot_channel_moments(dataset, moment="log_abs_mean", ax=axes())) == [], "its means are finite"


def test_a_moment_of_zero_has_no_logarithm():
    dataset = channel_dataset()
    dataset["variance"][0, 0] = 0
    logs = log_moments(dataset)
    assert np.isnan(logs["log_std"][0, 0]) and np.isfinite(logs["log_std"][0, 1])
    assert triangles(plot_channel_moments(dataset, ax=axes())) == []


def test_another_moment_is_refused():
    with pytest.raises(InvalidConfig, match="unknown moment 'log_sdt': did you mean 'log_std'"):
        plot_channel_moments(channel_dataset(), moment="log_sdt", ax=axes())


def test_new_axes_come_from_pyplot():
    import matplotlib.pyplot as plt

    ax = axes_or_new(None)
    assert ax.figure.number in plt.get_fignums()
    plt.close(ax.figure)


def test_figures_of_panels_belong_to_no_window():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    figure, panels = figure_of(2, 3)
    assert panels.shape == (2, 3) and len(figure.axes) == 6 and plt.get_fignums() == before


def test_labels_come_from_the_array():
    array = xr.DataArray(1.0, attrs={"long_name": "loss", "units": "nat"}, name="l")
    assert axis_label(array) == "loss [nat]"
    assert axis_label(array.assign_attrs(units="1")) == "loss"
    assert axis_label(xr.DataArray(1.0, name="l")) == "l"

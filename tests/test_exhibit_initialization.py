"""The exhibit on initializations at a small size: what is measured, drawn and judged."""

import math

import numpy as np
import pytest
import torch
import xarray as xr

import normscope as ns
from normscope.data import load_data
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits.initialization import (
    END,
    EXHIBIT,
    REFERENCE,
    STARTS,
    build,
    divergence_step_size,
    measure,
    rank_correlation,
)
from normscope.results import attribute, load, save, with_attributes
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(load_data("digits", train_size=100), net="resnet8", batch_size=16)


@pytest.fixture(scope="module")
def dataset(setting: Setting) -> xr.Dataset:
    return measure(setting)


def test_it_holds_every_start_and_survives_the_disk(dataset: xr.Dataset, tmp_path) -> None:
    assert dataset["init"].values.tolist() == [*STARTS, REFERENCE]
    assert dict(dataset.sizes) == {"init": 8, "seed": 3, "depth": 3}
    assert dataset["depth"].values.tolist() == [2, 4, 6], "each block's first convolution"
    assert all({"long_name", "units"} <= set(v.attrs) for v in dataset.variables.values())
    assert not dataset.isnull().any().to_array().any()
    assert load(save(dataset, tmp_path / "x.nc")).identical(dataset)


def test_what_it_measures_is_what_the_probes_say(setting: Setting, dataset: xr.Dataset) -> None:
    net, batch = build(setting, "default", 1), setting.first_batch(1)
    curve = ns.relative_loss(net, batch, step_sizes=np.geomspace(1e-2, 1e4, 300))
    one = dataset.sel(init="default", seed=1)
    assert float(one["divergence_step_size"]) == pytest.approx(float(curve["divergence_step_size"]), rel=0.17)
    assert float(one["gradient_norm"]) == pytest.approx(float(curve["gradient_norm"]))
    sharp = ns.sharpness(net, batch)
    assert float(one["sharpness"]) == pytest.approx(float(sharp["eigenvalue"][0]), rel=0.1)


def test_depth_scaled_divides_the_kernels_but_not_the_output_layer(setting: Setting) -> None:
    plain, scaled = build(setting, "xavier_uniform", 0), build(setting, "depth_scaled", 0)
    for (name, a), b in zip(plain.named_parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(b, a if name.startswith("fc") else a * 3**-0.25)


def test_a_network_without_residual_branches_has_no_zero_residual_start() -> None:
    setting = Setting(load_data("digits", train_size=40), net="plain8", batch_size=8, seeds=(0,))
    small = measure(setting)
    assert "zero_residual" not in small["init"]
    assert {v.verdict for v in EXHIBIT.verdicts(small)} == {NOT_ENOUGH}
    assert "zero residual" not in EXHIBIT.we_saw(small)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e2])
def test_divergence_is_found_within_a_sixth_at_every_scale(scale: float) -> None:
    """ℓ(α) = cosh(α/s) passes 10³ at s · arcosh 10³; the gradient's norm only says where the search begins."""
    found = divergence_step_size(1.0, scale**-0.5, lambda step: math.cosh(min(step / scale, 700)))
    assert found == pytest.approx(scale * math.acosh(1e3), rel=1 / 6)


def test_divergence_below_where_the_search_begins_and_beyond_where_it_ends() -> None:
    assert divergence_step_size(1.0, 1.0, lambda step: math.inf if step > 1e-5 else 1.0) == pytest.approx(
        1e-5, rel=1 / 6
    )
    assert divergence_step_size(1.0, 1.0, lambda step: 1.0) == math.inf
    assert divergence_step_size(1.0, 0.0, lambda step: 1.0) == math.inf
    assert math.isnan(divergence_step_size(1.0, math.nan, lambda step: 1.0))
    assert math.isnan(divergence_step_size(math.inf, 1.0, lambda step: 1.0))
    assert divergence_step_size(1.0, 1.0, lambda step: math.nan if step > 3 else 1.0) < END


def test_correlation_is_over_starts_without_batch_norm(dataset: xr.Dataset) -> None:
    order = xr.DataArray(np.arange(8.0), dims="init", coords={"init": dataset["init"]}).expand_dims(seed=[0, 1, 2])
    other = order.copy(data=np.tile([0, 1, 2, 3, 4, 5, np.inf, -7], (3, 1)))
    assert rank_correlation(order, other) == pytest.approx([1, 1, 1])
    assert rank_correlation(order, -other) == pytest.approx([-1, -1, -1])
    assert np.isnan(rank_correlation(order, other * 0 + 1)).all()


def as_if(dataset: xr.Dataset, steps: list[float], gradients: list[float], slopes: list[float], sharp: list[float]):
    """The dataset with these values for the eight starts, spread a little over seeds."""
    spread = xr.DataArray([0.9, 1.0, 1.1], dims="seed", coords={"seed": dataset["seed"]})
    along = {name: xr.DataArray(v, dims="init", coords={"init": dataset["init"]}) * spread for name, v in
             {"steps": steps, "gradients": gradients, "slopes": slopes, "sharp": sharp}.items()}  # fmt: skip
    changed = dataset.copy()
    changed["divergence_step_size"], changed["gradient_norm"] = along["steps"], along["gradients"]
    changed["divergence_distance"] = along["steps"] * along["gradients"]
    changed["sharpness"], changed["edge_lr"] = along["sharp"], 2 / along["sharp"]
    changed["spectral_radius"] = along["sharp"]
    for known in ("sharpness_converged", "spectral_radius_converged"):
        changed[known] = xr.ones_like(changed[known])
    changed["log_std"] = (along["slopes"] * dataset["depth"] / 100).transpose("init", "seed", "depth")
    config = {**attribute(dataset, "config"), "net": "resnet110"}
    return with_attributes(changed, **{**dataset.attrs, "config": config})


def test_verdicts_follow_the_numbers(dataset: xr.Dataset) -> None:
    steps = [0.1, 0.08, 1e-6, 0.07, 30.0, math.inf, 40.0, 35.0]
    gradients = [100.0, 100.0, 1e7, 100.0, 5.0, 5.0, 5.0, 80.0]
    slopes = [2.0, 2.2, 12.0, 2.5, -2.1, -5.0, -2.0, 0.0]
    sharp = [1e4, 2e4, 1e8, 3e4, 4.0, 1.0, 2.0, 1e3]
    supported = EXHIBIT.verdicts(as_if(dataset, steps, gradients, slopes, sharp))
    assert len(supported) == 9
    wrong = [(v.statement, v.measured) for v in supported if v.verdict != REPRODUCED]
    # the shared spread over seeds cancels in ratios of pairs, so that only the claims themselves decide
    assert not wrong
    steps = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 1.0]
    contrary = EXHIBIT.verdicts(as_if(dataset, steps, [1.0] * 8, [1, 2, 3, 4, 5, 6, 0, 7], [1, 1, 1, 1, 1, 1, 0.1, 9]))
    assert {v.verdict for v in contrary} == {NOT_REPRODUCED}


def test_what_has_not_converged_is_neither_judged_nor_drawn(dataset: xr.Dataset) -> None:
    changed = as_if(dataset, [1.0] * 8, [1.0] * 8, [1.0] * 8, [1.0] * 8)
    for known in ("sharpness_converged", "spectral_radius_converged"):
        changed[known] = changed[known] & (changed["init"] != REFERENCE)
    assert [v.diverged for v in EXHIBIT.verdicts(changed) if "flatter" in v.statement] == [3]
    rows = EXHIBIT.draw(changed).axes[1].lines
    hollow = [line for line in rows if line.get_markerfacecolor() == "none" and len(line.get_xdata())]
    assert [bool(np.isfinite(line.get_xdata()).all()) for line in hollow] == [True] * 7 + [False]


def test_picture_has_a_line_a_start_and_marks_what_never_diverges(dataset: xr.Dataset) -> None:
    steps = [0.1, 0.08, 1e-6, 0.07, 30.0, math.inf, 40.0, 35.0]
    figure = EXHIBIT.draw(as_if(dataset, steps, [1.0] * 8, [1.0] * 8, [1.0] * 8))
    growth, reach = figure.axes
    assert [line.get_label() for line in growth.lines][-1] == "batch norm, Xavier" and len(growth.lines) == 8
    edge = [line for line in reach.lines if line.get_marker() == ">" and len(line.get_xdata())]
    assert len(edge) == 1 and list(edge[0].get_xdata()) == [END] * 3 and list(edge[0].get_ydata()) == [5] * 3
    assert reach.get_xscale() == "log" and reach.get_xlabel() == "step size α"


def test_words_give_medians_with_their_bound(dataset: xr.Dataset) -> None:
    steps = [0.1, 0.08, 1e-6, 0.07, 30.0, math.inf, 40.0, 35.0]
    said = EXHIBIT.we_saw(as_if(dataset, steps, [1.0] * 8, [1.0] * 8, [5.0] * 7 + [7.0]))
    assert "α = 0.1 from Xavier weights" in said and "more than 1e+04 from depth-scaled weights" in said
    assert (
        "either sign, is 5 without and 7 with it" in said and "distance α‖g‖ of 0.1 without batch norm and 35" in said
    )

"""Exhibits figure4, figure6 and first_steps: small runs from data to picture and verdicts, and known answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import normscope as ns
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits import figure4, figure6, first_steps
from normscope.results import load, save
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED

EXHIBITS = [figure4.EXHIBIT, figure6.EXHIBIT, first_steps.EXHIBIT]


@pytest.fixture(scope="module")
def setting():
    data = ns.load_data("digits", train_size=200)
    return Setting(data, seeds=(0, 1, 2), net="resnet8", batch_size=16)


@pytest.fixture(scope="module")
def results(setting, tmp_path_factory):
    """Every result as it comes back from the disk."""
    folder = tmp_path_factory.mktemp("results")
    found = {}
    for exhibit in EXHIBITS:
        saved = save(exhibit.measure(setting), folder / f"{exhibit.name}.nc")
        found[exhibit.name] = load(saved)
    return found


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_result_is_drawn_judged_and_put_in_words(exhibit, results):
    dataset = results[exhibit.name]
    assert dataset.sizes["seed"] == 3
    assert all(dim in dataset.coords for dim in dataset.dims)
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in dataset.data_vars.values())
    exhibit.draw(dataset).draw_without_rendering()
    verdicts = exhibit.verdicts(dataset)
    assert verdicts and all(verdict.seeds == 3 for verdict in verdicts)
    words = exhibit.we_saw(dataset)
    assert words.endswith(".") and "nan" not in words


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_same_setting_same_bits(exhibit, setting, results):
    again = exhibit.measure(replace(setting, seeds=(2,)))
    xr.testing.assert_identical(again.drop_attrs(), results[exhibit.name].isel(seed=[2]).drop_attrs())


def test_figure4_takes_the_layers_of_the_paper():
    names = [f"layer{i}" for i in range(1, 113)]
    depth = [float(i) for i in range(1, 39)] + [np.nan] + [float(i) for i in range(39, 74)] + [np.nan]
    depth += [float(i) for i in range(74, 111)]
    layers = figure4.shown_layers(xr.DataArray(depth, coords={"layer": names}, dims="layer"))
    assert layers.values.tolist() == [8, 44, 80]


@pytest.mark.parametrize("count", [2, 3, 4, 8, 20])
def test_figure4_finds_layers_in_any_network(count):
    names = [f"layer{i}" for i in range(1, count + 1)]
    depth = xr.DataArray(np.arange(1.0, count + 1), coords={"layer": names}, dims="layer")
    assert 1 <= len(figure4.shown_layers(depth)) <= 3


def test_figure4_steps_twice_as_far_as_the_loss_allows(setting, results):
    without = results["figure4"].sel(norm="none")
    finite = np.isfinite(without["divergence_step_size"])
    expected = 2 * without["divergence_step_size"].where(finite, figure4.TRIED_STEPS[-1])
    np.testing.assert_allclose(without["step_size"], expected)
    assert (results["figure4"]["step_size"].sel(norm="batch") == 0.2).all()


def test_figure4_finds_the_step_of_divergence(setting):
    """The bisection and the probe of figure 3 agree to the accuracy of both grids."""
    net, batch = setting.build("none", 0), setting.first_batch(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)  # so that it diverges within the range
    found = figure4.divergence_step_size(net, batch)
    curve = ns.relative_loss(net, batch, step_sizes=np.geomspace(found / 2, found * 2, 65))
    assert float(curve["divergence_step_size"]) == pytest.approx(found, rel=0.04)


def test_figure4_says_where_no_step_diverges():
    model = torch.nn.Linear(2, 2)
    batch = torch.zeros(4, 2), torch.tensor([0, 1, 0, 1])  # no input: only the bias moves, to and fro
    assert figure4.divergence_step_size(model, batch) == np.inf


def exploding(growth, power, end=1.0):
    """Figure 4's result for networks whose variance is end · e^(growth · depth) · fraction^power without batch norm."""
    depth, fraction = np.array([8.0, 44.0, 80.0]), figure4.FRACTIONS
    without = end * np.exp(growth * depth)[None, :, None] * fraction[:, None, None] ** power
    without = np.maximum(without, 1e-3) * np.ones(2)
    both = np.stack([np.ones_like(without), without])[:, None] * np.ones((1, 3, 1, 1, 1))
    dataset = xr.Dataset(
        {
            "variance": (("norm", "seed", "fraction", "layer", "channel"), both),
            "mean": (("norm", "seed", "fraction", "layer", "channel"), both),
            "num_channels": ("layer", [2, 2, 2]),
            "step_size": (("norm", "seed"), np.full((2, 3), 0.2)),
            "divergence_step_size": (("norm", "seed"), np.array([[np.nan] * 3, [0.1] * 3])),
        },
        {
            "norm": ["batch", "none"],
            "seed": [0, 1, 2],
            "fraction": fraction,
            "layer": ["a", "b", "c"],
            "channel": [0, 1],
            "depth": ("layer", depth),
        },
    )
    return dataset.assign_attrs(config='{"data": {"name": "cifar10"}, "net": "resnet110"}')


def test_figure4_verdicts_of_the_papers_explosion():
    """Variances of the published size and a power law that is a tenth of its end at 89 %: all but the prediction band,
    for the seeds do not differ."""
    dataset = exploding(growth=0.536, power=20, end=np.exp(-0.536 * 8))
    found = {verdict.statement: verdict for verdict in figure4.verdicts(dataset)}
    band = found.pop("Without BN, the published variances lie in the seeds' 95 % prediction band")
    assert {verdict.verdict for verdict in found.values()} == {REPRODUCED}
    assert band.mean < 3
    visible = next(v for s, v in found.items() if "layer 44" in s)
    assert visible.mean == pytest.approx(100 * 0.1 ** (1 / 20), abs=0.1)  # exact between the points of a power law
    growth = next(v for s, v in found.items() if "at least 0.2 nat" in s)
    assert growth.mean == pytest.approx(0.536)


def test_figure4_verdicts_of_a_slow_growth():
    dataset = exploding(growth=0.05, power=2)
    verdicts = {verdict.statement.split(":")[0]: verdict.verdict for verdict in figure4.verdicts(dataset)}
    assert verdicts["Nothing until the last fifth of the step"] == NOT_REPRODUCED
    growth = "Without BN, at the end of the diverging step the variance grows by at least 0.2 nat from layer to layer"
    assert verdicts[growth] == NOT_REPRODUCED


def test_figure4_gives_no_value_to_what_did_not_diverge_and_none_to_what_overflowed():
    dataset = exploding(growth=0.536, power=20)
    dataset["divergence_step_size"][1, 0] = np.inf
    dataset["variance"][1, 1, -1, 2, 0] = np.nan
    growth = figure4.growth_per_layer(figure4.largest_variance(dataset.sel(norm="none", fraction=1)))
    assert np.isnan(growth).values.tolist() == [False, True, False]
    verdict = next(v for v in figure4.verdicts(dataset) if "at least 0.2 nat" in v.statement)
    assert verdict.diverged == 2 and verdict.verdict == NOT_ENOUGH
    figure4.draw(dataset).draw_without_rendering()


def test_padding_is_no_overflow():
    dataset = exploding(growth=0.5, power=20)
    dataset["variance"][..., 0, 1] = np.nan
    assert np.isnan(figure4.largest_variance(dataset)).any()
    dataset["num_channels"][0] = 1
    assert np.isfinite(figure4.largest_variance(dataset)).all()


def test_figure6_largest_column_is_in_units_of_the_top_value():
    gradient = xr.DataArray(np.zeros((8, 3)), dims=("example", "label"))
    gradient[:, 1] = 1 / 8
    gradient[:2] = [1 / 8, -1 / 8, 0.0]
    assert float(figure6.largest_column(xr.Dataset({"gradient": gradient}))) == pytest.approx(1)


def test_figure6_verdicts_of_one_class_against_many():
    """Without: one wrong class for all. With: every image alone on its own class, and no agreement at all."""
    top = np.zeros((4, 4))
    top[:, 0] = 1 / 4
    own = np.where(np.eye(4) > 0, -0.75 / 4, 0.25 / 4)
    dataset = xr.Dataset(
        {
            "gradient": (("norm", "seed", "example", "label"), np.stack([np.stack([g] * 3) for g in (own, top)])),
            "commonest_share": (("norm", "seed"), [[0.25] * 3, [1.0] * 3]),
            "mean_cosine": (("norm", "seed"), [[-1 / 3] * 3, [1.0] * 3]),
            "common_part": (("norm", "seed"), [[0.0] * 3, [1.0] * 3]),
        },
        {"norm": ["batch", "none"], "seed": [0, 1, 2], "example": range(4), "label": range(4)},
    )
    assert {verdict.verdict for verdict in figure6.verdicts(dataset)} == {REPRODUCED}
    swapped = dataset.assign_coords(norm=["none", "batch"])
    assert {verdict.verdict for verdict in figure6.verdicts(swapped)} == {NOT_REPRODUCED}


def test_first_steps_begin_where_figure6_is(setting, results):
    """The gradient at the logits, written down for cross-entropy, is what the probe measures."""
    start = results["first_steps"].isel(update=0)
    probed = results["figure6"]
    for run, (norm, _) in first_steps.RUNS.items():
        for name in ("mean_cosine", "common_part", "loss"):
            np.testing.assert_allclose(start[name].sel(run=run), probed[name].sel(norm=norm), rtol=1e-4)  # float32
        share = start["predicted_share"].sel(run=run).max("label")
        np.testing.assert_allclose(share, probed["commonest_share"].sel(norm=norm))


def test_first_steps_end_at_a_loss_that_is_not_finite(setting):
    """At a rate of 1e6 the second or third loss is not finite: no value is made up behind it."""
    run = first_steps.first_updates(setting, "none", 1e6, 0)
    assert run.sizes["update"] == first_steps.UPDATES + 1
    finite = np.isfinite(run["loss"].values)
    assert finite[0] and not finite[3:].any()
    assert np.isnan(run["predicted_share"].isel(update=-1)).all() and np.isnan(run["error"][-1])


def test_divergence_is_counted_in_updates():
    loss = xr.DataArray(
        [[1.0, 2.0, 2e3, 1.0], [1.0, np.nan, np.nan, np.nan], [1.0, 0.5, 0.2, 0.1]],
        coords={"update": range(4)},
        dims=("seed", "update"),
    )
    assert first_steps.diverged_at(xr.Dataset({"loss": loss})).values.tolist() == [2, 1, np.inf]


def test_the_first_class_is_followed():
    shares = xr.DataArray(
        [[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [1.0, 0.0]]],
        coords={"update": [0, 1], "label": [0, 1]},
        dims=("seed", "update", "label"),
    )
    followed = first_steps.share_of_first_class(xr.Dataset({"predicted_share": shares}))
    np.testing.assert_allclose(followed, [[0.9, 0.2], [0.7, 0.0]])


def test_what_goes_wrong_is_asked_of_deep_networks_only(results):
    """Ten times the gradient, one class that is given up, and a divergence at the second update, in every seed."""
    dataset = results["first_steps"].copy(deep=True)
    assert len(first_steps.verdicts(dataset)) == 2
    deep = dataset.assign_attrs(config=dataset.attrs["config"].replace("resnet8", "resnet110"))
    with_bn, small, large = first_steps.RUNS
    deep["gradient_norm"].loc[{"run": small}] = 100 * deep["gradient_norm"].sel(run=with_bn)
    deep["predicted_share"].loc[{"run": small}] = 0.0
    deep["predicted_share"].loc[{"run": small, "update": 0, "label": 3}] = 1.0
    deep["loss"].loc[{"run": large, "update": 2}] = np.inf
    found = first_steps.verdicts(deep)[1:-1]
    assert [verdict.verdict for verdict in found] == [REPRODUCED] * 3
    assert [round(verdict.mean, 6) for verdict in found] == [100, 0, 2]

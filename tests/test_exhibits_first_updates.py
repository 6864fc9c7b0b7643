"""Exhibits figure4, figure6 and first_steps: small runs from data to picture and verdicts, and known answers."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import normscope as ns
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits import figure4, figure6, first_steps
from normscope.paper.published import PUBLISHED
from normscope.results import attribute, load, save, with_attributes
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


def deep(dataset: xr.Dataset) -> xr.Dataset:
    """The same as if of the paper's network, whose depth the claims ask for."""
    config = {**attribute(dataset, "config"), "net": "resnet110"}
    return with_attributes(dataset, **{**dataset.attrs, "config": config})


@pytest.mark.parametrize("exhibit", EXHIBITS, ids=lambda exhibit: exhibit.name)
def test_result_is_drawn_judged_and_put_in_words(exhibit, results):
    dataset = results[exhibit.name]
    assert dataset.sizes["seed"] == 3
    assert all(dim in dataset.coords for dim in dataset.dims)
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in dataset.data_vars.values())
    exhibit.draw(dataset).draw_without_rendering()
    assert not exhibit.verdicts(dataset), "eight layers are not asked"
    verdicts = exhibit.verdicts(deep(dataset))
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


def test_figure4_draws_how_the_variance_grows_with_the_step(results):
    dataset = results["figure4"]
    columns = dataset.sizes["layer"]
    growth = figure4.draw(dataset).axes[3 * columns : 4 * columns]
    for ax, layer in zip(growth, dataset["layer"].values, strict=True):
        drawn = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) > 1]
        expected = dataset["variance_against_step"].sel(norm="none", layer=layer).transpose("seed", "multiple")
        np.testing.assert_array_equal(drawn, expected)
    assert growth[0].get_xlabel() == figure4.MULTIPLE


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


def judged(dataset: xr.Dataset, words: str):
    (found,) = [verdict for verdict in figure4.EXHIBIT.verdicts(dataset) if words in verdict.statement]
    return found


def test_figure4_begins_where_the_variance_is_a_tenth_of_its_end():
    late, early = exploding(growth=0.536, power=20), exploding(growth=0.05, power=2)
    for words in ("place of layer 44 reaches", "place of layer 80 reaches"):
        assert judged(late, words).verdict == REPRODUCED and judged(early, words).verdict == NOT_REPRODUCED
    exact = pytest.approx(100 * 0.1 ** (1 / 20), abs=0.1)  # between the points of a power law
    assert judged(late, "place of layer 44 reaches").mean == exact
    assert judged(late, "changes the variance").verdict == REPRODUCED


def at_published(scatter: float, off: float = 1.0) -> xr.Dataset:
    """Variances at the end that scatter around the published ones, times `off` in the lower two layers."""
    dataset = exploding(growth=0.5, power=20).assign_coords(multiple=("multiple", [1.0]))
    random = np.exp(scatter * np.random.default_rng(0).normal(size=(3, 2)))
    ends = np.column_stack([off * random * PUBLISHED["figure4"]["max_variance"][:2], np.full(3, 5.6e16)])
    dataset["variance"][1, :, -1] = ends[:, :, None]
    return dataset


def test_figure4_compares_where_layer_80_has_its_published_variance():
    words = "could be one more seed's"
    assert judged(at_published(0.3), words).verdict == REPRODUCED
    assert judged(at_published(0.3, off=1e5), words).verdict == NOT_REPRODUCED
    assert judged(at_published(3.0), words).verdict == NOT_ENOUGH, "a band wider than four decades"
    missed = at_published(0.3)
    missed["variance"][1, 1, -1, 2] = 1e12
    assert judged(missed, words).diverged == 1 and judged(missed, words).verdict == NOT_ENOUGH


def test_figure4_gives_no_value_to_what_did_not_diverge_and_none_to_what_overflowed():
    dataset = exploding(growth=0.536, power=20)
    dataset["divergence_step_size"][1, 0] = np.inf
    dataset["variance"][1, 1, -1, 2, 0] = np.nan
    verdict = judged(dataset, "place of layer 80 reaches")
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
        attrs={"config": '{"data": {"name": "digits"}, "net": "resnet110"}'},
    )
    assert {verdict.verdict for verdict in figure6.EXHIBIT.verdicts(dataset)} == {REPRODUCED}
    swapped = dataset.assign_coords(norm=["none", "batch"])
    assert {verdict.verdict for verdict in figure6.EXHIBIT.verdicts(swapped)} == {NOT_REPRODUCED}


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


def test_figure6_with_batch_norm_is_compared_with_the_published_picture():
    """Of 128 images the largest entry beside the label's is that of class 0 in 112: its column's median is 0.35."""
    gradient = np.full((128, 10), 0.05)
    gradient[:112, 0], gradient[112:, 1] = 0.35, 0.35
    gradient[np.arange(128), 2] = -0.9
    dataset = xr.Dataset(
        {"gradient": (("norm", "seed", "example", "label"), gradient[None, None] / 128)},
        {"norm": ["batch"], "seed": [0], "example": range(128), "label": range(10)},
    )
    assert figure6.published_picture(dataset)[0] == pytest.approx([112 / 128, 0.35])


def test_first_steps_judge_confidence_and_count_networks(results):
    """Ten times the gradient, one class that is given up, a sure start, and a divergence at the second update."""
    dataset = deep(results["first_steps"].copy(deep=True))
    with_bn, small, large = first_steps.RUNS
    dataset["gradient_norm"].loc[{"run": small}] = 100 * dataset["gradient_norm"].sel(run=with_bn)
    dataset["predicted_share"].loc[{"run": small}] = 0.0
    dataset["predicted_share"].loc[{"run": small, "update": 0, "label": 3}] = 1.0
    dataset["loss"].loc[{"run": small, "update": 0}] = 300.0
    dataset["loss"].loc[{"run": large, "update": 2}] = np.inf
    found = first_steps.EXHIBIT.verdicts(dataset)
    assert [round(verdict.mean, 3) for verdict in found[2:]] == [100, 1, 1, 1]
    assert [verdict.verdict for verdict in found[:3]] == [REPRODUCED] * 3
    assert "3 of 3 seeds" in found[3].measured and found[3].verdict == NOT_ENOUGH, "3 of 3 begin at a share of 0.29"
    assert found[3].seeds_needed == 6
    unsure = dataset.copy(deep=True)
    unsure["loss"].loc[{"run": small, "update": 0}] = 2.5
    unsure["loss"].loc[{"run": large}] = 2.5
    found = first_steps.EXHIBIT.verdicts(unsure)
    assert found[0].verdict == NOT_REPRODUCED and "0 of 3 seeds" in found[4].measured

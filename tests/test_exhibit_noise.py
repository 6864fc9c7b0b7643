"""The exhibit at a small size: what is measured, drawn and judged."""

import itertools

import numpy as np
import pytest
import torch
import xarray as xr

from normscope.data import load_data
from normscope.model.batch import take
from normscope.model.loss import default_loss
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits import noise
from normscope.results import attribute, load, save, with_attributes
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, Verdict

SMALL = {"SMALL_NET": "resnet8", "POPULATION": 4, "PARTITIONS": 6, "BATCH_SIZES": (4, 8), "DEEP_BATCH_SIZE": 8}


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(load_data("digits", train_size=60), seeds=(0, 1, 2), net="resnet14", batch_size=16)


@pytest.fixture(scope="module")
def dataset(setting: Setting) -> xr.Dataset:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(noise, name, value)
        return noise.measure(setting)


def deep(dataset: xr.Dataset) -> xr.Dataset:
    """The same as if of the paper's network, whose depth the claims ask for."""
    config = {**attribute(dataset, "config"), "net": "resnet110"}
    return with_attributes(dataset, **{**dataset.attrs, "config": config})


def verdict(dataset: xr.Dataset, words: str) -> Verdict:
    (found,) = [v for v in noise.EXHIBIT.verdicts(deep(dataset)) if words in v.statement]
    return found


def test_it_holds_both_networks_and_every_seed(dataset):
    sizes = {"norm": 2, "seed": 3, "sampling": 2, "batch_size": 2, "layer": 16}
    assert dict(dataset.sizes) == sizes and set(dataset.dims) <= set(dataset.coords)
    assert all({"long_name", "units"} <= set(variable.attrs) for variable in dataset.variables.values())
    assert attribute(dataset, "config")["seeds"] == [0, 1, 2] and dataset.attrs["small_net"] == "resnet8"
    assert dataset["decouples"].sel(norm="none").all() and not dataset["decouples"].sel(norm="batch").any()
    assert np.isnan(dataset["predicted_variance"].sel(norm="batch")).all()
    assert len(np.unique(dataset["exact_variance"])) == 12, "a network or a population came twice"


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_enumeration_is_over_all_mini_batches_each_run_by_itself(setting, dataset, norm):
    """Again in float64, with a backward pass of its own for each of the 16 draws and the 6 subsets."""
    net = setting.build(norm, 1, net="resnet8").double().train()
    images, labels = setting.first_batch(1)
    population = (images[:4].double(), labels[:4])

    def of(draw):
        net.zero_grad()
        default_loss(net, take(population, list(draw))).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()]).numpy()

    one = dataset.sel(norm=norm, seed=1)
    draws = {
        "with replacement": list(itertools.product(range(4), repeat=2)),
        "without replacement": list(itertools.combinations(range(4), 2)),
    }
    rows = {sampling: np.stack([of(draw) for draw in some]) for sampling, some in draws.items()}
    for sampling, gradients in rows.items():
        # Float32 gradients, those with batch norm through statistics of two images.
        exact = float(one["exact_variance"].sel(sampling=sampling))
        np.testing.assert_allclose(exact, gradients.var(0).sum(), rtol=1e-3)
    bias = ((rows["without replacement"].mean(0) - of(range(4))) ** 2).sum()
    np.testing.assert_allclose(one["exact_bias"], bias, rtol=1e-3, atol=1e-9)
    pairs = [(0, 5), (1, 4), (2, 3)]  # the subsets without a common image
    fresh = [((rows["without replacement"][i] - rows["without replacement"][j]) ** 2).sum() / 2 for i, j in pairs]
    np.testing.assert_allclose(one["exact_fresh_variance"], np.mean(fresh), rtol=1e-3)


def test_without_batch_norm_every_formula_holds(dataset):
    without = dataset.sel(norm="none")
    np.testing.assert_allclose(without["exact_variance"], without["predicted_variance"], rtol=1e-4)
    np.testing.assert_allclose(without["estimated_variance"], without["exact_fresh_variance"], rtol=1e-4)
    scaled = without["variance"] * without["batch_size"]
    np.testing.assert_allclose(scaled.isel(batch_size=0), scaled.isel(batch_size=1), rtol=1e-6)


def test_it_survives_the_disk_and_can_be_judged_and_drawn_there(dataset, tmp_path):
    again = load(save(dataset, tmp_path / "noise.nc"))
    assert again.identical(dataset)
    assert [v.verdict for v in noise.EXHIBIT.verdicts(again)] == [v.verdict for v in noise.EXHIBIT.verdicts(dataset)]
    figure = noise.draw(again)
    enumeration, sizes, activations, weights = figure.axes
    points = [line for line in enumeration.lines if line.get_marker() in "os^v"]
    assert len(points) == 4 and all(len(line.get_xdata()) == 3 for line in points)
    assert len([line for line in sizes.lines if len(line.get_xdata()) == 2 and line.get_label()[0] != "_"]) >= 2
    assert activations.get_ylabel() == "rms of the output's gradient" and activations.get_yscale() == "log"
    assert weights.get_ylabel() == "norm of the weight's gradient"
    assert "resnet8" in sizes.get_title() and sizes.get_xlabel() == "mini-batch size |B|"


def changed(dataset: xr.Dataset, name: str, norm: str, values) -> xr.Dataset:
    """The dataset with a variable of one network, over seeds, in place of its own."""
    array = dataset[name].copy(deep=True)
    array.loc[{"norm": norm}] = xr.DataArray(list(values), dims="seed", coords={"seed": dataset["seed"]})
    return dataset.assign({name: array})


def test_an_estimator_that_is_off_is_refuted(dataset):
    for sampling in noise.SAMPLINGS:
        words = f"Drawn {sampling}, "
        assert verdict(dataset, words).verdict == REPRODUCED
        biased = dataset.assign(predicted_variance=dataset["predicted_variance"] * 0.97)
        assert verdict(biased, words).verdict == NOT_REPRODUCED


@pytest.mark.parametrize(
    ("words", "name", "reference"),
    [
        ("the variance estimated", "estimated_variance", "exact_fresh_variance"),
        ("so is the bias", "estimated_bias", "exact_bias"),
    ],
)
def test_partitions_are_held_against_enumeration(dataset, words, name, reference):
    exact = dataset[reference].sel(norm="batch").values
    assert verdict(changed(dataset, name, "batch", exact * [0.99, 1, 1.02]), words).verdict == REPRODUCED
    assert verdict(changed(dataset, name, "batch", exact * [2.0, 2.1, 2.2]), words).verdict == NOT_REPRODUCED
    assert verdict(changed(dataset, name, "batch", exact * [0.3, 1, 3]), words).verdict == NOT_ENOUGH


@pytest.mark.parametrize(("ratio", "judged"), [(1000, REPRODUCED), (10, NOT_REPRODUCED)])
def test_networks_are_compared_by_seed(dataset, ratio, judged):
    with_bn = dataset["deep_variance"].sel(norm="batch").values
    louder = changed(dataset, "deep_variance", "none", with_bn * ratio * np.array([0.9, 1, 1.1]))
    assert verdict(louder, "100 times the noise").verdict == judged


def test_what_is_asked_of_deep_networks_is_not_asked_of_shallow_ones(dataset):
    statements = {v.statement for v in noise.EXHIBIT.verdicts(dataset)}
    left_out = {v.statement for v in noise.EXHIBIT.verdicts(deep(dataset))} - statements
    assert len(left_out) == 2 and all("without BN" in statement for statement in left_out)


def test_a_gradient_that_is_not_finite_is_not_averaged_away(dataset):
    weights = dataset["weight_gradient_norm"].copy(deep=True)
    weights.loc[{"norm": "none", "seed": 1, "layer": "layer1.0.conv1"}] = np.nan
    judged = verdict(dataset.assign(weight_gradient_norm=weights), "Weight gradients")
    assert judged.verdict != REPRODUCED and judged.diverged == 1


def test_what_we_saw_names_both_networks(dataset):
    text = noise.we_saw(dataset)
    assert "with batch norm" in text and "without" in text and "nan" not in text

"""Figure 2 at a small size: what is measured, drawn and judged."""

import numpy as np
import pytest
import xarray as xr

from normscope.data import load_data
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits.figure2 import EXHIBIT, measure, pooled_kurtosis
from normscope.probes.gradient_histogram import kurtosis
from normscope.results import attribute, load, save, with_attributes
from normscope.statistics.verdict import NOT_REPRODUCED, REPRODUCED


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    return measure(Setting(load_data("digits", train_size=100), net="resnet20", batch_size=16))


def on(dataset: xr.Dataset, data: str) -> xr.Dataset:
    """The same as if of the paper's network, on these data."""
    config = attribute(dataset, "config")
    config["data"]["name"], config["net"] = data, "resnet110"
    return with_attributes(dataset, **{**dataset.attrs, "config": config})


def with_numbers(dataset: xr.Dataset, **numbers: tuple[list[float], list[float]]) -> xr.Dataset:
    """The dataset with a variable's values over seeds, with and without batch norm, put in."""
    changed = dataset.copy(deep=True)
    for name, values in numbers.items():
        changed[name].values[..., 0] = values
    return changed


def test_it_holds_the_middle_layer_of_both_networks(dataset: xr.Dataset, tmp_path) -> None:
    assert dataset["layer"].values.tolist() == ["layer2.1.conv2"] and dataset["depth"].item() == 11
    assert dataset.sizes["norm"] == 2 and dataset.sizes["seed"] == 3
    assert (dataset["count"].sum("bin") == 32 * 32 * 9).all()
    assert len(np.unique(dataset["std"])) == 6, "a network came twice"
    assert load(save(dataset, tmp_path / "x.nc")).identical(dataset)


def test_each_panel_shows_its_network_over_its_whole_range(dataset: xr.Dataset) -> None:
    figure = EXHIBIT.draw(dataset)
    assert [ax.get_title() for ax in figure.axes] == ["layer 11, with batch norm", "layer 11, without"]
    for ax, norm in zip(figure.axes, dataset["norm"], strict=True):
        assert len(ax.patches) == 3
        counts = [patch.get_data()[0] for patch in ax.patches]
        np.testing.assert_array_equal(counts, dataset["count"].sel(norm=norm).isel(layer=0))
        assert ax.get_ylim()[1] > dataset["count"].max()
        low, high = ax.get_xlim()
        assert low <= dataset["minimum"].sel(norm=norm).min() and high >= dataset["maximum"].sel(norm=norm).max()


def test_verdicts_follow_the_numbers(dataset: xr.Dataset) -> None:
    wide = ([1.0, 1.1, 0.9], [100.0, 120.0, 80.0])
    heavy = ([3.0, 3.1, 3.2], [12.0, 15.0, 11.0])
    light = ([6.0, 5.5, 5.8], [2.0, 2.2, 2.4])
    dataset = on(dataset, "digits").drop_dims("kernel")
    as_in_the_paper = with_numbers(dataset, std=wide, kurtosis=heavy, tail_index=light)
    assert {v.verdict for v in EXHIBIT.verdicts(as_in_the_paper)} == {REPRODUCED}
    assert "kurtosis 3.1 and 13, tail index 5.8 and 2.2" in EXHIBIT.we_saw(as_in_the_paper)
    no_tails = ([3.0, 3.1, 3.2], [3.1, 3.0, 2.9])
    both_alike = with_numbers(
        dataset, std=([1.0, 1.1, 0.9], [1.2, 1.0, 1.1]), kurtosis=no_tails, tail_index=(light[1], light[0])
    )
    assert {v.verdict for v in EXHIBIT.verdicts(both_alike)} == {NOT_REPRODUCED}


def test_kernels_are_pooled_each_by_its_own_spread(dataset: xr.Dataset) -> None:
    """The kurtosis of entries of which each layer's are divided by their own standard deviation, against the mean."""
    assert dataset.sizes["kernel"] == 19 and dataset["kernel"].values[0] == 1
    normal, heavy = np.random.default_rng(0).normal(size=3000), np.random.default_rng(1).laplace(size=1000)
    parts = [one - one.mean() for one in (normal, heavy)]
    scaled = np.concatenate([one / one.std() for one in parts])
    two = xr.Dataset(
        {
            "kernel_kurtosis": ("kernel", [kurtosis(one) for one in parts]),
            "kernel_num_entries": ("kernel", [3000, 1000]),
        }
    )
    assert float(pooled_kurtosis(two)) == pytest.approx(kurtosis(scaled))


def test_published_ranges_are_compared_on_the_papers_data_only(dataset: xr.Dataset) -> None:
    assert not EXHIBIT.verdicts(dataset), "twenty layers are not asked"
    assert len(EXHIBIT.verdicts(on(dataset, "digits"))) == 5
    cifar = on(dataset, "cifar10")
    ends = ([0.035, 0.03, 0.04], [9.0, 12.0, 7.0])
    verdicts = EXHIBIT.verdicts(with_numbers(cifar, maximum=ends, minimum=([-0.01] * 3, [-0.2] * 3)))[5:]
    assert [v.verdict for v in verdicts] == [REPRODUCED, REPRODUCED]
    ends = ([0.4, 0.3, 0.4], [0.03, 0.031, 0.029])
    verdicts = EXHIBIT.verdicts(with_numbers(cifar, maximum=ends, minimum=([-0.01] * 3, [-0.02] * 3)))[5:]
    assert [v.verdict for v in verdicts] == [NOT_REPRODUCED, NOT_REPRODUCED]

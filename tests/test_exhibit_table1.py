"""Table 1 at a small size: what is measured, drawn and judged."""

import numpy as np
import pytest
import xarray as xr

from normscope.data import load_data
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits.table1 import EXHIBIT, measure, paper_layers, paper_num_terms, scaled_layer
from normscope.paper.published import PUBLISHED
from normscope.results import attribute, load, save, with_attributes
from normscope.statistics.verdict import NOT_REPRODUCED, REPRODUCED


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    return measure(Setting(load_data("digits", train_size=100), net="resnet20", batch_size=16))


def as_if_on_cifar10(dataset: xr.Dataset, ratio: dict[str, list[float]]) -> xr.Dataset:
    """The published setting and its layers, with these a/b and batch norm's for the control."""
    depth = np.array([*PUBLISHED["table1"]["layer"], 110.0])
    few = dataset.isel(layer=slice(0, 4)).assign_coords(depth=("layer", depth))
    n = xr.DataArray([*paper_num_terms(), 128], dims="layer")
    values = [[*ratio[norm], 1.0] for norm in ("batch", "batch", "none")]
    few["ratio"] = xr.DataArray(values, dims=("norm", "layer")).expand_dims(seed=3).transpose("norm", "seed", "layer")
    few["normalized_ratio"] = few["ratio"] / np.sqrt(n)
    config = attribute(dataset, "config")
    config["data"]["name"], config["net"] = "cifar10", "resnet110"
    return with_attributes(few, **{**dataset.attrs, "config": config})


@pytest.mark.parametrize(
    ("depth", "expected"), [(110, [18, 54, 55, 90]), (20, [4, 10, 11, 16]), (56, [10, 28, 29, 46]), (3, [1, 2, 3, 2])]
)
def test_layers_keep_their_place_in_networks_of_other_depths(depth: int, expected: list[int]) -> None:
    assert [scaled_layer(layer, depth) for layer in (18, 54, 55, 90)] == expected


def test_the_scaled_layers_are_the_same_convolution_of_the_same_stage(dataset: xr.Dataset) -> None:
    assert paper_layers(dataset)["layer"].values.tolist() == ["layer1.1.conv1", "layer2.1.conv1", "layer3.1.conv1"]


def test_it_holds_three_networks_and_every_layer(dataset: xr.Dataset, tmp_path) -> None:
    assert dataset["norm"].values.tolist() == ["batch", "frozen", "none"]
    assert dict(dataset.sizes) == {"norm": 3, "seed": 3, "layer": 22}
    assert all({"long_name", "units"} <= set(v.attrs) for v in dataset.variables.values())
    ratio = dataset["ratio"]
    assert (ratio >= 1).all()
    same = ratio.sel(norm="batch") == ratio.sel(norm="frozen")
    assert same[:, -1].all(), "the forward pass is the same, and nothing is normalized behind the last layer"
    assert not same[:, :-1].any()
    last = dataset.isel(layer=-1)  # the same forward pass, and no batch norm behind it
    np.testing.assert_allclose(last["ratio"].sel(norm="frozen"), last["ratio"].sel(norm="batch"), rtol=1e-3)
    assert load(save(dataset, tmp_path / "x.nc")).identical(dataset)


def test_the_picture_has_every_network_twice(dataset: xr.Dataset) -> None:
    figure = EXHIBIT.draw(dataset)
    assert [ax.get_ylabel() for ax in figure.axes] == ["cancellation a/b", "cancellation (a/b)/√n"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[:3] == ["with batch norm", "statistics frozen", "without"]
    assert "published, about" not in labels
    published = as_if_on_cifar10(dataset, PUBLISHED["table1"]["ratio"])
    marks = [line for line in EXHIBIT.draw(published).axes[0].lines if line.get_marker() == "o"]
    assert [list(mark.get_ydata()) for mark in marks] == [PUBLISHED["table1"]["ratio"][n] for n in ("batch", "none")]


def test_the_papers_own_numbers_are_reproduced_and_no_cancellation_is_not(dataset: xr.Dataset) -> None:
    assert not EXHIBIT.verdicts(dataset), "twenty layers are not asked"
    ratio = PUBLISHED["table1"]["ratio"]
    verdicts = EXHIBIT.verdicts(as_if_on_cifar10(dataset, ratio))
    assert "252, 113, 41 with batch norm" in EXHIBIT.we_saw(as_if_on_cifar10(dataset, ratio))
    assert len(verdicts) == 9 and {v.verdict for v in verdicts} == {REPRODUCED}
    verdicts = EXHIBIT.verdicts(as_if_on_cifar10(dataset, {"batch": [6.0, 6.0, 6.0], "none": [6.0, 6.0, 6.0]}))
    assert {v.verdict for v in verdicts} == {NOT_REPRODUCED}

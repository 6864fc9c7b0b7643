"""The exhibit at a small size: what is measured, drawn and judged."""

import numpy as np
import pytest
import torch
import xarray as xr

from normscope.data import load_data
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits import figure7
from normscope.paper.published import PUBLISHED
from normscope.results import attribute, load, save
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, Verdict

SMALL = {"SIZE": 64, "DRAWS": 4, "DEPTHS": (8, 14), "BATCH_SIZE": 4}


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(load_data("digits", train_size=60), seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def dataset(setting: Setting) -> xr.Dataset:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SMALL.items():
            patch.setattr(figure7, name, value)
        return figure7.measure(setting)


def verdict(dataset: xr.Dataset, words: str) -> Verdict:
    (found,) = [v for v in figure7.EXHIBIT.verdicts(dataset) if words in v.statement]
    return found


def test_it_holds_products_and_networks(dataset: xr.Dataset) -> None:
    products = {"factor": 3, "draw": 4, "index": 64, "fraction": 200}
    assert dict(dataset.sizes) == products | {"family": 2, "norm": 2, "depth": 2, "seed": 3, "feature": 64}
    assert dataset["factor"].values.tolist() == PUBLISHED["figure7"]["factors"]
    assert set(dataset.dims) == set(dataset.coords)
    assert all({"long_name", "units"} <= set(v.attrs) for v in dataset.variables.values())
    assert attribute(dataset, "config")["seeds"] == [0, 1, 2]
    rank = dataset["network_effective_rank"]
    assert ((rank >= 1) & (rank <= 64)).all()
    assert len(np.unique(dataset["largest"])) == 12 and len(np.unique(rank)) == 24, "a draw or a network came twice"
    share = dataset["network_outside_share"]
    assert (share.sel(norm="none") == 0).all() and (share.sel(norm="batch") > 0).all()


def test_the_networks_jacobian_is_that_of_the_features(setting: Setting) -> None:
    """Without batch norm: one image, every feature differentiated by itself, in float64."""
    net = setting.build("none", 1, net="resnet8").double()
    features = []
    net.fc.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    images, _ = next(setting.batches(1, figure7.BATCH_SIZE))
    leaf = images[:1].double().requires_grad_()
    net(leaf)
    rows = [torch.autograd.grad(feature, leaf, retain_graph=True)[0].flatten() for feature in features[0][0]]
    exact = torch.linalg.svdvals(torch.stack(rows)).numpy()
    measured = figure7.jacobian_of_features(*figure7.network_of_features(setting, "resnet8", "none", 1), "none")
    measured = measured["singular_value"][0]
    np.testing.assert_allclose(measured / exact[0], exact / exact[0], atol=1e-5)  # float32 through eight layers


def test_features_of_one_direction_have_rank_one_and_orthogonal_ones_as_many_as_there_are() -> None:
    net = torch.nn.Flatten()
    assert figure7.rank_of_features(net, torch.ones(4, 9) * torch.arange(1, 5)[:, None]) == pytest.approx(1)
    assert figure7.rank_of_features(net, torch.eye(4, 9)) == pytest.approx(4)


def test_it_survives_the_disk_and_can_be_judged_and_drawn_there(dataset: xr.Dataset, tmp_path) -> None:
    again = load(save(dataset, tmp_path / "figure7.nc"))
    assert again.identical(dataset)
    assert [v.verdict for v in figure7.EXHIBIT.verdicts(again)] == [
        v.verdict for v in figure7.EXHIBIT.verdicts(dataset)
    ]
    figure = figure7.draw(again)
    panels = figure.axes
    assert [ax.get_title() for ax in panels[:3]] == ["M = 1, N = 64", "M = 3, N = 64", "M = 5, N = 64"]
    assert len(panels) == 5 and {ax.get_yscale() for ax in panels[3:]} == {"log"}
    for ax, published in zip(panels[:3], (2.0, 3.08, 3.86), strict=True):
        assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"] == [published]


def test_the_law_is_confirmed_or_refuted(dataset: xr.Dataset) -> None:
    edge = dataset.assign(largest=dataset["edge"] * xr.DataArray([0.99, 1.0, 1.0, 1.01], dims="draw"))
    assert verdict(edge, "M = 3: the largest").verdict == REPRODUCED
    assert verdict(edge.assign(largest=edge["largest"] * 1.1), "M = 3: the largest").verdict == NOT_REPRODUCED
    near = dataset.assign(ks_distance=dataset["ks_distance"] * 0 + xr.DataArray([3e-3, 3e-3, 4e-3, 4e-3], dims="draw"))
    assert verdict(near, "M = 5: the spectrum follows").verdict == REPRODUCED
    assert verdict(dataset, "M = 5: the spectrum follows").verdict == NOT_REPRODUCED, "N = 64 is far too small"
    assert verdict(dataset, "Mass piles up").verdict == REPRODUCED
    flat = dataset.assign(singular_value=dataset["singular_value"] * 0 + 1)
    assert verdict(flat, "Mass piles up").verdict == NOT_REPRODUCED


def test_a_condition_number_beyond_resolution_counts_as_a_bound(dataset: xr.Dataset) -> None:
    words = "The condition number with M = 5"
    number = dataset["condition_number"] * 0 + xr.DataArray([1.0, 1e2, 1e4], dims="factor")
    known = dataset.assign(condition_number=number, condition_is_bound=dataset["condition_is_bound"] & False)
    assert verdict(known, words).verdict == REPRODUCED and verdict(known, words).mean == pytest.approx(1e4)
    alike = known.assign(condition_number=number * 0 + 5)
    assert verdict(alike, words).verdict == NOT_REPRODUCED
    is_bound = known["condition_is_bound"] | ((known["factor"] == 5) & (known["draw"] == 0))
    bounded = verdict(known.assign(condition_is_bound=is_bound), words)
    assert bounded.verdict == REPRODUCED and bounded.bounded == 1
    few_too = is_bound | ((known["factor"] == 1) & (known["draw"] == 0))
    assert verdict(known.assign(condition_is_bound=few_too), words).verdict == NOT_ENOUGH


@pytest.mark.parametrize(
    ("with_norm", "judged"),
    [((6.0, 7, 8), REPRODUCED), ((0.5, 0.6, 0.7), NOT_REPRODUCED), ((0.2, 1, 9), NOT_ENOUGH)],
)
def test_batch_norm_is_compared_by_seed(dataset: xr.Dataset, with_norm: tuple, judged: str) -> None:
    norm = xr.DataArray([[1.0, 1, 1], with_norm], dims=("norm", "seed"))
    rank = (dataset["network_effective_rank"] * 0 + 1) * norm
    assert verdict(dataset.assign(network_effective_rank=rank), "resnet110: batch norm gives").verdict == judged


def test_what_we_saw_names_the_deepest_networks(dataset: xr.Dataset) -> None:
    assert "resnet14" in figure7.we_saw(dataset) and "64 directions" in figure7.we_saw(dataset)

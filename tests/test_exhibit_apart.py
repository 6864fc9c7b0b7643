"""Batch norm taken apart at a small size: what is measured, drawn and judged."""

import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import normscope as ns
from normscope.data import load_data
from normscope.errors import InvalidConfig
from normscope.figures.style import figure_of
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits import apart, apart_rates
from normscope.paper.ladder import AT_THE_START, OF_RATES, PREDICTIONS, RUNGS
from normscope.paper.ladder_map import draw_cells, shares
from normscope.paper.measurement import reproduce
from normscope.paper.rungs import build, small_lr
from normscope.results import load

SOME = ("none", "batch", "batch_mean", "batch_std", "batch_first")


@pytest.fixture(scope="module")
def setting() -> Setting:
    return Setting(load_data("digits", train_size=100), net="resnet8", batch_size=16)


@pytest.fixture(scope="module")
def folder(setting: Setting, tmp_path_factory: pytest.TempPathFactory):
    """The rates of one seed and three rungs, since they take longest."""
    out = tmp_path_factory.mktemp("apart")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "AT_START", SOME)
        patch.setattr(apart_rates, "WITH_RATES", ("none", "batch", "batch_std"))
        patch.setattr(apart_rates, "STEPS", 4)
        patch.setattr(apart_rates, "BATCH_SIZE", 8)
        patch.setattr(apart_rates, "TOLERANCE", 0.3)
        reproduce(["apart"], setting, out)
        reproduce(["apart_rates"], replace(setting, seeds=(0,)), out)
    return out


def test_every_rung_and_seed_is_there_with_every_effect(folder) -> None:
    start, rates = load(folder / "apart.nc"), load(folder / "apart_rates.nc")
    assert start["norm"].values.tolist() == list(SOME) and start.sizes["seed"] == 3
    assert rates["norm"].values.tolist() == ["none", "batch", "batch_std"]
    for dataset in (start, rates):
        assert all({"long_name", "units"} <= set(v.attrs) for v in dataset.variables.values())
    assert start["update"].values.tolist() == [0, 1, 10]
    assert np.isfinite(start.to_array()).all()
    assert not (folder / "unfinished").exists()


def test_what_it_measures_is_what_the_probes_say(setting: Setting, folder) -> None:
    one = load(folder / "apart.nc").sel(norm="batch_std", seed=1)
    batch = setting.first_batch(1)
    net = build(setting, "batch_std", 1)
    curve = ns.relative_loss(net, batch, step_sizes=np.geomspace(1e-2, 1e6, 300))
    assert float(one["divergence_step_size"].sel(update=0)) == pytest.approx(
        float(curve["divergence_step_size"]), rel=0.17
    )
    assert float(one["common_part"]) == pytest.approx(float(ns.output_gradients(net, batch)["common_part"]))
    assert small_lr(setting) == 0.01


def test_no_rung_silently_is_another(setting: Setting) -> None:
    """Every pair differs in its outputs before or after one step, on the second mini-batch: on the first that they see,
    running averages and the first batch's statistics are the same by definition; and branches that end in zeros start
    as those that are multiplied by zero."""
    several = replace(setting, batch_size=48)  # three ghost batches
    walk = several.batches(0)
    images, labels = [next(walk) for _ in range(2)][1]
    seen = {}
    for rung in RUNGS:
        net = build(several, rung, 0)
        before = net(images)
        F.cross_entropy(before, labels).backward()
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        seen[rung] = before.detach(), net(images).detach()
    assert len(seen) == 19
    for a, b in combinations(seen, 2):
        pairs = zip(seen[a], seen[b], strict=True)
        apart_by = [float((one - other).norm() / (one.norm() + other.norm()).clamp(min=1e-6)) for one, other in pairs]
        assert max(apart_by) > 1e-3, (a, b)


def test_a_first_batch_that_was_seen_is_not_taken_again(setting: Setting, folder) -> None:
    """Where the statistics are constants for ever, no step is corrected: it goes less far than batch norm's."""
    far = load(folder / "apart.nc")["divergence_step_size"].sel(update=0)
    assert (far.sel(norm="batch_first") < far.sel(norm="batch") / 10).all()
    running = build(setting, "batch_first", 0).get_buffer("norm1.num_batches_tracked")
    assert int(running) == 1


def test_shares_of_batch_norm_itself_are_one(folder) -> None:
    for name, effects in (("apart", AT_THE_START), ("apart_rates", OF_RATES)):
        share = shares(load(folder / f"{name}.nc"), effects)["share"]
        known = share.isel(effect=np.flatnonzero(share.sel(norm="batch").notnull()))
        assert known.sizes["effect"]
        np.testing.assert_allclose(known.sel(norm="batch"), 1)
        np.testing.assert_allclose(known.sel(norm="none"), 0, atol=1e-12)


@pytest.mark.parametrize("exhibit", [apart.EXHIBIT, apart_rates.EXHIBIT], ids=lambda exhibit: exhibit.name)
def test_it_is_judged_drawn_and_told(folder, exhibit) -> None:
    dataset = load(folder / f"{exhibit.name}.nc")
    verdicts = exhibit.verdicts(dataset)
    assert len(verdicts) >= 5
    assert not any("Fixup" in one.statement for one in verdicts), "rungs that are not there"
    drawn = exhibit.draw(dataset).axes[0]
    assert [text.get_text() for text in drawn.get_yticklabels()][:2] == ["no norm", "batch norm"]
    cells = [text.get_text() for text in drawn.texts]
    assert any(text.endswith(("▲", "▼")) for text in cells)
    assert "Scaling alone buys" in exhibit.we_saw(dataset)


def test_a_seed_without_a_value_leaves_the_cell_empty(folder) -> None:
    dataset = load(folder / "apart.nc")
    one = dataset["norm"] == "batch_std"
    broken = dataset.assign(common_part=dataset["common_part"].where(~(one & (dataset["seed"] == 1))))
    assert math.isnan(float(shares(broken, AT_THE_START)["share"].sel(norm="batch_std", effect="common")))


def test_a_cell_says_how_sure_it_is() -> None:
    """Sure to lie on one side of a half: bold. A whole that is not told apart from none: grey. None at all: empty."""
    whole = np.array([1.0, 1.1, 0.9])
    cells = {
        ("batch_mean", "usable"): (0.1 * whole, whole),
        ("batch_std", "usable"): (np.array([0.2, 0.9, 0.5]), whole),
        ("batch_ghost", "usable"): (0.9 * whole, np.array([1.0, -0.8, 0.5])),
        ("group", "usable"): (whole, -whole),
        ("layer", "usable"): (np.array([1.0, np.nan, 1.0]), whole),
    }
    norms = [norm for norm, _ in cells]
    axes = figure_of(1, 1)[1]
    draw_cells(axes[0, 0], cells, norms, {"usable": "rate"}, PREDICTIONS, reference=("none", "batch"))
    texts = {norms[round(text.get_position()[1])]: text for text in axes[0, 0].texts}
    assert list(texts) == ["batch_mean", "batch_std", "batch_ghost"]
    assert [text.get_fontweight() for text in texts.values()] == ["bold", "normal", "normal"]
    assert [text.get_color() for text in texts.values()] == ["black", "black", "0.6"]
    assert [text.get_text()[-1] for text in texts.values()][:2] == ["▼", "▲"]


def test_rates_are_judged_before_all_rungs_are_measured(setting: Setting, monkeypatch, tmp_path) -> None:
    """What is there with all seeds is taken, nothing is measured, and its parts are kept for the rest."""
    one = replace(setting, seeds=(0,))
    monkeypatch.setattr(apart_rates, "WITH_RATES", ("none", "batch", "batch_std"))
    monkeypatch.setattr(apart_rates, "STEPS", 2)
    monkeypatch.setattr(apart_rates, "BATCH_SIZE", 8)
    parts = replace(one, parts=tmp_path / "unfinished")
    with pytest.raises(InvalidConfig, match="no rung"):
        reproduce(["apart_rates"], replace(one, trains=False), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(apart_rates, "WITH_RATES", ("none", "batch"))
        apart_rates.measure(parts)
    monkeypatch.setattr(apart_rates, "stable_lr", None)
    reproduce(["apart_rates"], replace(one, trains=False), tmp_path)
    assert load(tmp_path / "apart_rates.nc")["norm"].values.tolist() == ["none", "batch"]
    assert len(list((tmp_path / "unfinished").iterdir())) == 2
    with pytest.raises(InvalidConfig, match="no rung of apart is"):
        reproduce(["apart"], replace(one, trains=False), tmp_path)


def test_what_is_measured_of_another_exhibit_outlives_it(setting: Setting, tmp_path) -> None:
    """Figure 6 is finished and clears its own networks away; those of an interrupted figure 3 are kept."""
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/figure3-none-seed0.nc").write_bytes(b"numbers")
    reproduce(["figure6"], replace(setting, seeds=(0,)), tmp_path)
    assert [path.name for path in (tmp_path / "unfinished").iterdir()] == ["figure3-none-seed0.nc"]


def test_it_is_measured_only_where_it_is_named(setting: Setting, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("normscope.paper.measurement.chosen", lambda names: [apart.EXHIBIT, apart_rates.EXHIBIT])
    reproduce([], setting, tmp_path)
    assert not list(tmp_path.glob("*.nc"))

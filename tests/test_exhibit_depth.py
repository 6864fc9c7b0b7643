"""Depth: what each network takes is what stable_lr says of it, and both verdicts can fail."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import normscope as ns
from normscope.data import load_data
from normscope.paper import rate_searches
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits import depth
from normscope.paper.measurement import reproduce
from normscope.paper.reproduction import report_reproduction
from normscope.paper.scale import SCALES, Scale
from normscope.results import labelled, load
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED
from normscope.training.train import num_threads

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = Scale(
    net="resnet8", data="digits", train_size=128, held_out=32, epochs=1, batch_size=16, evaluate_every=1, lrs=(0.1,),
    small=0.1, noise_net="resnet8", noise_lrs=(0.1,), noise_batch_sizes=(8,), depths=(8, 14), depth_steps=4,
    deeper_net=None, deeper_lrs={}, reduced="",
)  # fmt: skip


def found(
    shallow: list[float], deep: list[float], deep_found: str = "bracketed", shallow_found: str = "bracketed"
) -> xr.Dataset:
    """A result of two depths, the same for both boundaries."""
    values, dims = [shallow, deep], ("depth", "seed")
    how = [[shallow_found] * 3, [deep_found] * 3]
    variables = {}
    for name in depth.BOUNDARIES:
        variables[name] = dims, values, name, "1"
        variables[f"{name}_found"] = dims, how, name, "1"
    coords = {"depth": ([8, 56], "layers", "1"), "seed": ([0, 1, 2], "seed", "1")}
    return labelled(variables, coords, scale="quick", steps=40)


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (found([0.1, 0.12, 0.1], [0.01, 0.012, 0.008]), REPRODUCED),
        (found([0.1, 0.12, 0.1], [0.05, 0.06, 0.05]), NOT_REPRODUCED),
        (found([0.1, 0.12, 0.1], [0.01, 0.012, 0.1]), NOT_ENOUGH),
        (found([0.1, 0.12, 0.1], [np.nan] * 3, "below the range"), REPRODUCED),
        (found([np.nan] * 3, [0.01, 0.012, 0.008], shallow_found="below the range"), NOT_REPRODUCED),
        (found([0.1, 0.12, 0.1], [np.inf] * 3, "above the range"), NOT_REPRODUCED),
        (found([0.1, 0.12, 0.1], [0.01, 0.012, 0.008], "unfinished"), NOT_ENOUGH),
        # in so few steps at no rate: that does not tell slow from never
        (found([0.1, 0.12, 0.1], [np.nan] * 3, "nowhere"), NOT_ENOUGH),
        (found([np.nan] * 3, [0.01, 0.012, 0.008], shallow_found="nowhere"), NOT_ENOUGH),
        (found([np.nan] * 3, [np.nan] * 3, "nowhere", "nowhere"), NOT_ENOUGH),
    ],
)
def test_every_verdict_can_fail(dataset: xr.Dataset, expected: str) -> None:
    claims = depth.EXHIBIT.verdicts(dataset)
    assert {claim.verdict for claim in claims} == {expected}
    assert not any("nan" in claim.measured for claim in claims)
    shallow_learns = dataset["lr_usable_found"].sel(depth=8).isin(["bracketed", "unfinished"]).all()
    assert f"ResNet-8 up to {'0.1 ' if shallow_learns else '0 (learns at no rate)'}" in depth.we_saw(dataset)
    axes = depth.EXHIBIT.draw(dataset).axes[0]
    lowest = [line for line in axes.lines if line.get_marker() == "v"]
    expected_marks = int(dataset["lr_usable_found"].isin(["nowhere", "below the range"]).sum())
    assert [len(line.get_xdata()) for line in lowest] == [expected_marks] * 2


def test_every_network_has_a_search_of_its_own_and_it_is_that_of_stable_lr(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SCALES, "quick", TINY)
    data = load_data("digits", train_size=128, held_out=32)
    reproduce(["depth"], Setting(data, seeds=(0, 1), net="resnet8"), tmp_path)
    dataset = load(tmp_path / "depth.nc")
    assert dict(dataset.sizes) == {"depth": 2, "seed": 2}

    def build() -> torch.nn.Module:
        net = ns.build_net("resnet14", norm="none", seed=1, in_channels=1, image_size=8)
        return net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    stream = ns.batches(data, 16, seed=1)
    first = [next(stream) for _ in range(4)]
    alone = ns.stable_lr(
        build,
        lambda seed: list(first),
        optimizer="momentum",
        steps=4,
        seeds=1,
        lr_range=rate_searches.LR_RANGE,
        recommend=False,
    )
    for name in ("lr_stable", "lr_usable", "train_steps"):
        assert dataset[name].sel(depth=14, seed=1).item() == alone[name].item() or np.isnan(alone[name].item())
    page, _ = report_reproduction(tmp_path)
    assert "Depth and the largest learning rate" in page.read_text()


def test_searches_are_kept_and_interrupted_or_side_by_side_give_the_same_bits(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SCALES, "quick", TINY)
    setting = Setting(load_data("digits", train_size=128, held_out=32), seeds=(0, 1), net="resnet8")
    reproduce(["depth"], setting, tmp_path / "undisturbed")
    searched = []

    def counted(*args, **options):
        searched.append(args)
        if len(searched) == 3:
            raise KeyboardInterrupt
        return ns.stable_lr(*args, **options)

    monkeypatch.setattr(rate_searches, "stable_lr", counted)
    with pytest.raises(KeyboardInterrupt):
        reproduce(["depth"], setting, tmp_path / "interrupted")
    damaged = tmp_path / "interrupted" / "training" / "searches" / "resnet14-seed0.nc"
    damaged.write_bytes(damaged.read_bytes()[:100])
    reproduce(["depth"], setting, tmp_path / "interrupted")
    assert len(searched) == 3 + 3, "the interrupted one, the damaged one, and the one that was never begun"
    with num_threads(2):
        reproduce(["depth"], setting, tmp_path / "two at once")
    undisturbed = load(tmp_path / "undisturbed" / "depth.nc")
    for name in ("interrupted", "two at once"):
        xr.testing.assert_identical(undisturbed, load(tmp_path / name / "depth.nc"))
    (tmp_path / "interrupted" / "depth.nc").unlink()
    reproduce(["depth"], setting, tmp_path / "interrupted")
    assert len(searched) == 6, "all of them are kept"
    xr.testing.assert_identical(undisturbed, load(tmp_path / "interrupted" / "depth.nc"))
    reproduce(["depth"], replace(setting, seeds=(0, 1, 2)), tmp_path / "interrupted")
    assert len(searched) == 6 + 2, "another seed, at both depths"

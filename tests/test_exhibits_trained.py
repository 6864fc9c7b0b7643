"""Figure 1 and batch norm before the last layer alone: every verdict can fail, and runs are kept one by one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from normscope.data import load_data
from normscope.descent.outcome import Outcome
from normscope.errors import InvalidConfig, ResultError
from normscope.paper.exhibit import Setting
from normscope.paper.exhibits import deeper, figure1, final, flatness, noise_training
from normscope.paper.measurement import RUNS, reproduce
from normscope.paper.reproduction import report_reproduction
from normscope.paper.scale import SCALES, Scale, scale_of
from normscope.results import attribute, labelled, load
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, Verdict

LRS = (0.1, 0.03, 0.01)
AS_PUBLISHED = {
    "batch": {0.1: 93, 0.03: 88, LRS[2]: 82},
    "none": {0.1: None, 0.03: None, LRS[2]: 82},
    "final": {0.1: None, 0.03: 90, LRS[2]: 82},
}
"""Test accuracy at the end; None where it diverges."""


def as_if_trained(ends: dict, *, train: float = 1.0, spread: float = 0.004, epochs: int = 4) -> xr.Dataset:
    """A result with these accuracies at the end, the same on held-out images, scattered over three seeds."""
    norms, seeds = list(ends), (0, 1, 2)
    shape = (len(norms), len(LRS), len(seeds), epochs)
    accuracy = np.full(shape, np.nan)
    outcome = np.full(shape[:3], Outcome.DIVERGED.value, dtype=object)
    steps = np.zeros(shape, dtype=int)
    for i, norm in enumerate(norms):
        for j, lr in enumerate(LRS):
            trained = 1 if ends[norm][lr] is None else epochs
            end = 0.1 if ends[norm][lr] is None else ends[norm][lr] / 100
            for k in seeds:
                accuracy[i, j, k, :trained] = np.linspace(0.1, end, epochs)[:trained] + spread * (k - 1) * (-1) ** (
                    i + j
                )
                steps[i, j, k, :trained] = 10
                if ends[norm][lr] is not None:
                    outcome[i, j, k] = Outcome.LEARNS.value
    fitted = np.where(steps > 0, train, np.nan)
    dims = ("norm", "lr", "seed", "epoch")
    return labelled(
        {
            "test_accuracy": (dims, accuracy, "test accuracy", "1"),
            "held_out_accuracy": (dims, accuracy, "held-out accuracy", "1"),
            "train_accuracy": (dims, fitted, "training accuracy", "1"),
            "steps": (dims, steps, "mini-batches", "1"),
            "outcome": (dims[:3], outcome.astype(str), "outcome", "1"),
        },
        {
            "norm": (norms, "normalization", "1"),
            "lr": (list(LRS), "learning rate", "1"),
            "seed": (list(seeds), "seed", "1"),
            "epoch": (np.arange(1, epochs + 1), "epoch", "1"),
        },
        config={"data": {"num_classes": 10}},
        scale="standard",
    )


def changed(norm: str, lr: float, end: float | None) -> dict:
    return {**AS_PUBLISHED, norm: {**AS_PUBLISHED[norm], lr: end}}


def verdict_on(claims: list[Verdict], statement: str) -> str:
    return next(claim.verdict for claim in claims if statement in claim.statement)


def test_what_came_out_as_published_is_reproduced() -> None:
    dataset = as_if_trained(AS_PUBLISHED)
    assert {claim.verdict for claim in figure1.EXHIBIT.verdicts(dataset)} == {REPRODUCED}
    assert {claim.verdict for claim in final.EXHIBIT.verdicts(dataset)} == {REPRODUCED}
    assert "with batch norm the best rate is 0.1 (93.0 %" in figure1.we_saw(dataset).lower()
    assert "82.0 % at 0.01 without, 90.0 % at 0.03" in final.we_saw(dataset)


@pytest.mark.parametrize(
    ("ends", "options", "statement", "expected"),
    [
        (changed("none", LRS[2], 70), {}, "as good as with it", NOT_REPRODUCED),
        (AS_PUBLISHED, {"train": 0.97}, "as good as with it", NOT_ENOUGH),
        (changed("none", 0.1, 60), {}, "out of reach", NOT_REPRODUCED),
        (changed("none", 0.03, 95), {}, "above that without at its best", NOT_REPRODUCED),
        (changed("batch", LRS[2], 92.9), {}, "the large rate is the better one", NOT_REPRODUCED),
        (changed("final", 0.03, 84), {}, "recovers at least half", NOT_REPRODUCED),
        (changed("final", 0.03, None), {}, "3 times larger", NOT_REPRODUCED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_verdict_can_fail(ends: dict, options: dict, statement: str, expected: str) -> None:
    dataset = as_if_trained(ends, **options)
    assert verdict_on([*figure1.EXHIBIT.verdicts(dataset), *final.EXHIBIT.verdicts(dataset)], statement) == expected


def test_no_claim_compares_a_rate_with_itself() -> None:
    claims = figure1.EXHIBIT.verdicts(as_if_trained(changed("batch", LRS[2], 94)))
    for statement in ("the large rate is the better one", "out of reach"):
        claim = next(claim for claim in claims if statement in claim.statement)
        assert claim.verdict == NOT_ENOUGH
        assert claim.measured == "3 of 3 seeds with BN best at the smallest rate compared"


def test_a_rate_at_the_end_of_those_tried_is_a_bound() -> None:
    claims = final.EXHIBIT.verdicts(as_if_trained(changed("final", 0.1, 80)))
    ratio = next(claim for claim in claims if "3 times larger" in claim.statement)
    assert ratio.verdict == REPRODUCED and ratio.bounded == 3 and ratio.measured.startswith("at least 10 times")


@pytest.mark.parametrize(
    ("final_ends", "none_ends", "expected"),
    [
        ({0.1: 80}, {0.1: 82, 0.03: 82}, NOT_ENOUGH),  # both learn at all rates
        ({}, {0.1: 82, 0.03: 82}, NOT_REPRODUCED),  # without it larger ones, by a factor that is not known
        ({0.03: None, LRS[2]: None}, {}, NOT_REPRODUCED),
        ({}, {LRS[2]: None}, REPRODUCED),  # without it none of those tried: three times is the least
        ({0.03: None}, {LRS[2]: None}, NOT_ENOUGH),
        ({0.03: None, LRS[2]: None}, {LRS[2]: None}, NOT_ENOUGH),  # neither learns
    ],
)
def test_the_rate_gained_where_one_end_is_not_known(final_ends: dict, none_ends: dict, expected: str) -> None:
    ends = {
        **AS_PUBLISHED,
        "final": {**AS_PUBLISHED["final"], **final_ends},
        "none": {**AS_PUBLISHED["none"], **none_ends},
    }
    ratio = next(claim for claim in final.EXHIBIT.verdicts(as_if_trained(ends)) if "3 times larger" in claim.statement)
    assert ratio.verdict == expected


def test_up_to_which_rate_every_seed_learns() -> None:
    dataset = as_if_trained(AS_PUBLISHED)
    assert "Every seed learns up to 0.1 with it and up to 0.01 without" in figure1.we_saw(dataset)
    assert "Every seed learns up to 0.01 without, up to 0.03 with it before the last" in final.we_saw(dataset)
    dataset["outcome"].loc[{"norm": "none", "seed": 1}] = Outcome.DIVERGED.value
    assert "Every seed learns up to 0.1 with it and at no rate without" in figure1.we_saw(dataset)
    assert "Every seed learns at no rate without, up to 0.03 with it before the last" in final.we_saw(dataset)


def test_what_diverged_counts_as_guessing_and_is_drawn_as_a_cross() -> None:
    dataset = as_if_trained(AS_PUBLISHED)
    assert figure1.at_the_end(dataset).sel(norm="none", lr=0.1).values.tolist() == [10, 10, 10]
    curves, tests, ends = figure1.EXHIBIT.draw(dataset).axes
    crosses = [line for line in curves.lines if line.get_marker() == "x"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in crosses] == [(25, 10)]  # after one epoch of four
    assert sum(len(line.get_xdata()) for line in ends.lines if line.get_marker() == "x") == 3 * 3
    names = [text.get_text() for text in curves.get_legend().get_texts()]
    assert names == ["BN, 0.1", "BN, 0.03", "BN, 0.01", "without, 0.1", "without, 0.01"]
    assert tests.get_ylabel() == "accuracy [%]"
    assert len(final.EXHIBIT.draw(dataset).axes) == 1


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        (lambda lr, size: 50 + 5 * np.log2(lr / size), [REPRODUCED, REPRODUCED]),
        (lambda lr, size: 50 - 5 * np.log2(lr / size), [REPRODUCED, NOT_REPRODUCED]),
        (lambda lr, size: 50 + 5 * np.log2(lr), [NOT_REPRODUCED, REPRODUCED]),
    ],
    ids=["follows α/|B|", "falls with α/|B|", "follows α alone"],
)
def test_noise_in_training_is_judged_by_its_ratio(accuracy, expected: list[str]) -> None:
    lrs, sizes, seeds = (0.1, 0.025, 0.00625), (16, 64, 256), (0, 1, 2)
    values = [[[[(accuracy(lr, size) + 0.2 * k) / 100] for k in seeds] for size in sizes] for lr in lrs]
    outcomes = np.full((3, 3, 3), Outcome.LEARNS.value, dtype="U16")
    dims = ("lr", "batch_size", "seed", "epoch")
    dataset = labelled(
        {
            "test_accuracy": (dims, values, "test accuracy", "1"),
            "train_accuracy": (dims, values, "training accuracy", "1"),
            "outcome": (dims[:3], outcomes, "outcome", "1"),
        },
        {name: (list(each), name, "1") for name, each in zip(dims, (lrs, sizes, seeds, [1]), strict=True)},
        scale="quick",
        config={"data": {"num_classes": 10}},
    )
    assert noise_training.diagonal(dataset).sizes == {"rung": 3, "seed": 3}
    assert [claim.verdict for claim in noise_training.EXHIBIT.verdicts(dataset)] == expected
    left, right = noise_training.EXHIBIT.draw(dataset).axes
    assert len(left.lines) == len(right.lines) == 3
    assert "where α/|B| is the same" in noise_training.we_saw(dataset)
    correlation = noise_training.rank_correlation(dataset, "test_accuracy").mean()
    assert f"has a rank correlation of {correlation:.2f} with α/|B|" in noise_training.we_saw(dataset)

    on_the_diagonal = {"lr": 0.1, "batch_size": 256}
    dataset["outcome"].loc[on_the_diagonal] = Outcome.DIVERGED.value
    dataset["test_accuracy"].loc[on_the_diagonal] = np.nan
    assert (noise_training.end(dataset).sel(on_the_diagonal) == 10).all(), "what diverged counts as guessing"
    assert noise_training.EXHIBIT.verdicts(dataset)[0].verdict == NOT_REPRODUCED
    dataset["outcome"][:] = Outcome.DEAD.value
    dataset["test_accuracy"][:] = 0.1
    assert [claim.verdict for claim in noise_training.EXHIBIT.verdicts(dataset)] == [NOT_ENOUGH] * 2, (
        "all alike, and all dead"
    )


def test_flatness_is_judged_by_the_ratio_of_eigenvalues() -> None:
    dataset = as_if_trained(AS_PUBLISHED)
    for flatter, expected in ((0.2, [REPRODUCED, REPRODUCED]), (5.0, [NOT_REPRODUCED, REPRODUCED])):
        values = np.ones((3, 3, 3)) * np.array([flatter, 1, 1])[None, :, None] * np.array([1, 1.1, 0.9])
        with_values = dataset.assign(eigenvalue=(("norm", "lr", "seed"), values))
        assert [claim.verdict for claim in flatness.EXHIBIT.verdicts(with_values)] == expected
        assert len(flatness.EXHIBIT.draw(with_values).axes) == 2
    apart = dataset.assign(eigenvalue=(("norm", "lr", "seed"), np.stack([np.full((3, 3), v) for v in (9.0, 1.0, 1.0)])))
    assert flatness.EXHIBIT.verdicts(apart)[1].verdict == NOT_REPRODUCED
    apart["outcome"].loc[{"norm": "none", "seed": 1}] = Outcome.DEAD.value
    assert flatness.EXHIBIT.verdicts(apart)[1].verdict == NOT_ENOUGH
    best_at_small = as_if_trained(changed("batch", LRS[2], 94)).assign(eigenvalue=apart["eigenvalue"])
    assert flatness.EXHIBIT.verdicts(best_at_small)[0].verdict == NOT_ENOUGH


def test_the_lines_of_flatness_pass_over_rates_that_were_not_measured() -> None:
    values = np.ones((3, 3, 3)) * np.array([1, np.nan, 2])[None, :, None]
    dataset = as_if_trained(AS_PUBLISHED).assign(eigenvalue=(("norm", "lr", "seed"), values))
    by_lr, by_accuracy = flatness.EXHIBIT.draw(dataset).axes
    assert {tuple(line.get_ydata()) for line in by_lr.lines} == {(1, 2)}
    assert {len(line.get_xdata()) for line in by_accuracy.lines} == {2}


TINY = Scale(
    net="resnet8", data="digits", train_size=64, held_out=32, epochs=1, batch_size=32, evaluate_every=1,
    lrs=(0.1, 0.003), small=0.003,
    noise_net="resnet8", noise_lrs=(0.1, 0.025), noise_batch_sizes=(8, 32), depths=(8, 14), depth_steps=3,
    deeper_net="resnet14", deeper_lrs={"batch": 0.1, "final": 0.03, "none": 0.003}, reduced="",
)  # fmt: skip


def test_runs_are_trained_once_for_both_and_kept(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SCALES, "quick", TINY)
    setting = Setting(load_data("digits"), seeds=(0, 1), net="resnet8")
    reproduce(["final"], setting, tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / RUNS / "runs").glob("*.json")}
    assert len(kept) == 3 * 2 * 2
    reproduce(["figure1", "final", "flatness"], setting, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / RUNS / "runs").glob("*.json")} == kept
    dataset = load(tmp_path / "figure1.nc")
    assert dict(dataset.sizes) == {"norm": 2, "lr": 2, "seed": 2, "epoch": 1}
    config = attribute(dataset, "config")
    assert config["scale"] == "quick" and config["net"] == "resnet8" and config["batch_size"] == 32
    assert config["data"]["train_size"] == 64 and dataset.attrs["threads"] == 1, "of the runs, not of their reader"
    sharp = load(tmp_path / "flatness.nc")["eigenvalue"]
    assert sharp.dims == ("norm", "lr", "seed") and (sharp.sel(lr=0.003) > 0).all()
    reproduce(["noise_training"], setting, tmp_path)
    assert dict(load(tmp_path / "noise_training.nc")["test_accuracy"].sizes) == {
        "lr": 2, "batch_size": 2, "seed": 2, "epoch": 1
    }  # fmt: skip
    reproduce(["deeper"], setting, tmp_path)
    dataset = load(tmp_path / "deeper.nc")
    assert attribute(dataset, "config")["scale"] == "quick"
    trained = (dataset["steps"] > 0).all(["seed", "epoch"])
    rates = {norm: dataset["lr"].values[trained.sel(norm=norm).values].tolist() for norm in dataset["norm"].values}
    assert rates == {"batch": [0.1], "final": [0.03], "none": [0.003]}
    page, claims = report_reproduction(tmp_path)
    assert {claim.verdict for claim in claims} == {NOT_ENOUGH}, "two seeds are no evidence"
    assert "What normalization buys in training" in page.read_text()


def test_finished_runs_without_weights_are_refused_before_anything_is_trained(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(SCALES, "quick", TINY)
    data = load_data("digits")
    reproduce(["figure1"], Setting(data, seeds=(0,), net="resnet8"), tmp_path)
    runs = tmp_path / RUNS / "runs"
    for weights in runs.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ResultError, match=r"4 finished runs lack their weights.* put .*safetensors .*back, or delete"):
        reproduce(["flatness"], Setting(data, seeds=(0, 1), net="resnet8"), tmp_path)
    assert len(list(runs.iterdir())) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [({"net": "resnet111"}, "ResNet depth must be 6n"), ({"net": "resnet8", "batch_size": 2000}, "2000")],
    ids=["network", "mini-batch"],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_trained(options, message, tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match=message):
        reproduce(["figure1", "figure2"], Setting(load_data("digits"), **options), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_deeper_network_is_judged_at_one_rate_for_each_norm() -> None:
    ends = {
        "batch": {0.1: 93, 0.03: None, LRS[2]: None},
        "none": {0.1: None, 0.03: None, LRS[2]: 82},
        "final": {0.1: None, 0.03: 90, LRS[2]: None},
    }
    for change, expected in (({}, [REPRODUCED, REPRODUCED]), ({0.03: 84}, [REPRODUCED, NOT_REPRODUCED])):
        dataset = as_if_trained({**ends, "final": {**ends["final"], **change}})
        assert [claim.verdict for claim in deeper.EXHIBIT.verdicts(dataset)] == expected
        assert "with batch norm at 0.1: 93.0 %" in deeper.we_saw(dataset)
        assert len(deeper.EXHIBIT.draw(dataset).axes[0].lines) == 3
    assert (
        deeper.EXHIBIT.verdicts(as_if_trained({**ends, "none": {**ends["batch"], 0.1: 95}}))[0].verdict
        == NOT_REPRODUCED
    )


def test_an_exhibit_that_a_scale_does_not_have_is_left_out_or_refused(tmp_path: Path) -> None:
    setting = Setting(load_data("digits"), seeds=(0,), net="resnet8", scale="quick")
    assert not deeper.EXHIBIT.applies(setting) and deeper.EXHIBIT.applies(replace(setting, scale="standard"))
    with pytest.raises(InvalidConfig, match="deeper is not measured at scale quick"):
        reproduce(["deeper", "figure1"], setting, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_scale_is_refused_by_name_before_anything_runs() -> None:
    with pytest.raises(InvalidConfig, match="unknown scale 'standart': did you mean 'standard'"):
        scale_of("standart")
    with pytest.raises(InvalidConfig, match="nowhere to keep the runs"):
        figure1.measure(replace(Setting(load_data("digits")), seeds=(0,)))


@pytest.mark.parametrize("scale", [s for s in SCALES.values() if not s.own_exhibit], ids=str)
def test_scales_can_be_trained(scale: Scale) -> None:
    configs = scale.configs(("batch", "none"), (0, 1, 2), "cpu")
    assert len(configs) == len(set(configs)) == 6 * len(scale.lrs)
    assert scale.small in scale.lrs and list(scale.lrs) == sorted(scale.lrs, reverse=True)

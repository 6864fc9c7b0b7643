"""diagnose: broken models and set-ups get the right diagnosis, healthy ones none; the rules on numbers alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from broken import CASES, Case, by_name
from torch import nn
from zoo import ZOO, Entry, disturb, no_trace

import normscope as ns
from normscope.diagnosis.batch_tests import coupling, extensivity, standardized
from normscope.diagnosis.finding import Finding, as_findings, findings_dataset
from normscope.diagnosis.rules import findings
from normscope.diagnosis.signal import repeated_calls, sequence_growth, signal
from normscope.errors import InvalidModel
from normscope.model.batch import joined
from normscope.statistics.numbers import number


def faults(tree: xr.DataTree) -> list[str]:
    return [f.name for f in as_findings(tree["findings"].to_dataset()) if f.fault]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_broken_and_healthy_set_ups_are_told_apart(case: Case) -> None:
    tree = ns.diagnose(case.model_or_build(), case.batches(), optimizer=case.optimizer, loss_fn=case.loss_fn)
    found = faults(tree)
    assert (found[0] if found else "healthy") == case.expected


def test_there_are_eleven_kinds_of_broken_and_as_many_healthy() -> None:
    assert len({case.expected for case in CASES} - {"healthy"}) >= 11
    assert sum(case.expected == "healthy" for case in CASES) >= 12


EVERY = [e for e in ZOO if e.name != "bf16"]


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_leaves_no_trace(entry: Entry) -> None:
    model, batches = disturb(entry.build(0)), [entry.batch(i) for i in range(3)]
    with no_trace(model, batches):
        ns.diagnose(model, batches, optimizer="momentum", loss_fn=entry.loss_fn, steps=3)


def measured(**numbers: Any) -> xr.Dataset:
    """The evidence of a healthy network of ten layers, but for the numbers given."""
    layers = [f"layer{i}" for i in range(10)]
    along = np.linspace(1, 3, 6)[:, None] * np.ones(10)
    scalars: dict[str, Any] = {
        "start_loss": 2.3,
        "constant_loss": 2.3,
        "diverging_lr": 50.0,
        "steepness": 2.0,
        "amplification": 1.0,
        "trainable_share": 1.0,
        "reached_share": 1.0,
        "extensivity": 1.0,
        "coupling": 0.3,
        "input_scale": 1.0,
        "feature_imbalance": 1.0,
        "overflows": False,
        "scaling_gain": math.nan,
        "scaled_spread": math.nan,
        "resized_layer": "",
        "resizing_gain": math.nan,
        "sequence_layer": "",
        "forward_growth": 0.0,
        "backward_growth": 0.0,
        "output_spread": 0.5,
        "output_spread_later": 0.5,
        "softmax": True,
        "confidence": 0.9,
        "num_outputs": 10,
        "commonest_share": 0.4,
        "mean_cosine": 0.0,
        "sharpness": 3.0,
        "one_batch": 0.1,
        "contrast": 0.6,
        "contrast_p": 0.025,
        "contrast_detectable": 0.05,
        "control": 0.5,
        "trial_steps": 40,
    }
    per_layer: dict[str, Any] = {
        "size": np.ones(10),
        "gain": np.ones(10),
        "gradient_size": np.ones(10),
        "gradient_size_later": np.ones(10),
        "silent_share": np.zeros(10),
        "silent_share_later": np.zeros(10),
    }
    unknown = set(numbers) - scalars.keys() - per_layer.keys() - {"size_along_step"}
    assert not unknown
    return xr.Dataset(
        {
            **{name: numbers.get(name, value) for name, value in scalars.items()},
            **{name: ("layer", numbers.get(name, value)) for name, value in per_layer.items()},
            "relative_loss": ("lr", [0.5, 2.0, 1e3]),
            "size_along_step": (("fraction", "layer"), numbers.get("size_along_step", along)),
        },
        {"layer": layers, "depth": ("layer", np.arange(1.0, 11)), "fraction": np.linspace(0, 1, 6)},
    )


def names(evidence: xr.Dataset) -> list[str]:
    return [finding.name for finding in findings(evidence)]


def some(value: float, *places: int, otherwise: float = 0.0) -> np.ndarray:
    values = np.full(10, float(otherwise))
    values[list(places)] = value
    return values


def both_times(**numbers: Any) -> dict[str, Any]:
    """At the start and some steps later."""
    return {**numbers, **{f"{name}_later": value for name, value in numbers.items()}}


def no_contrast(**numbers: float) -> dict[str, float]:
    """Labels that tell nothing, by the second stage."""
    return {"one_batch": 0.1, "contrast": 0.05, "contrast_p": 0.5, **numbers}


def test_nothing_wrong_leaves_curvature_alone() -> None:
    (found,) = findings(measured())
    assert found.name == "curvature" and not found.fault
    assert "power 2.0" in found.sentence and "curvature 3" in found.sentence


@pytest.mark.parametrize(
    ("name", "below", "above"),
    [
        ("summed", {"extensivity": 1.4}, {"extensivity": 2.0}),
        ("frozen", {"trainable_share": 0.6}, {"trainable_share": 0.4}),
        ("frozen", {"reached_share": 0.6}, {"reached_share": 0.4}),
        ("inputs", {"scaling_gain": 9.0}, {"scaling_gain": 11.0}),
        ("inputs", {"scaling_gain": 0.11}, {"scaling_gain": 0.09}),
        ("inputs", {"scaled_spread": 4.0}, {"scaled_spread": 6.0}),
        ("oversized", {"resizing_gain": 9.0}, {"resizing_gain": 11.0, "resized_layer": "layer3"}),
        ("vanishing", both_times(output_spread=2e-3), both_times(output_spread=5e-4)),
        ("vanishing", {"output_spread": 0.0}, both_times(output_spread=0.0)),
        (
            "vanishing",
            both_times(gradient_size=some(2e-4, 0, otherwise=1)),
            both_times(gradient_size=some(5e-5, 0, otherwise=1)),
        ),
        ("recurrent", {"forward_growth": 6.8}, {"forward_growth": 7.0, "sequence_layer": "layer2"}),
        ("recurrent", {"backward_growth": 6.8}, {"backward_growth": 7.0, "sequence_layer": "layer2"}),
        ("exploding", {"steepness": 7.0}, {"steepness": 8.0}),
        ("exploding", {"size": some(25, 8, 9, otherwise=1)}, {"size": some(35, 8, 9, otherwise=1)}),
        ("batch_noise", {"coupling": 0.7}, {"coupling": 0.8}),
        ("saturated", {"confidence": 0.98, "start_loss": 8.0}, {"confidence": 1.0, "start_loss": 8.0}),
        ("saturated", {"confidence": 1.0, "start_loss": 6.0}, {"confidence": 1.0, "start_loss": 8.0}),
        ("saturated", {"softmax": False, "confidence": 1.0, "start_loss": 8.0}, {"confidence": 1.0, "start_loss": 8.0}),
        (
            "aligned",
            {"commonest_share": 0.95, "mean_cosine": 0.5, "start_loss": 3.0},
            {"commonest_share": 0.95, "mean_cosine": 0.5, "start_loss": 4.0},
        ),
        ("labels", no_contrast(contrast_p=0.05), no_contrast()),
        ("labels", no_contrast(contrast=0.11), no_contrast(contrast=0.09)),
        ("labels", no_contrast(contrast_detectable=0.26), no_contrast(contrast_detectable=0.24)),
        ("labels", no_contrast(control=0.14), no_contrast(control=0.16)),
        ("labels", no_contrast(control=math.nan), no_contrast()),
        ("stuck", no_contrast(one_batch=0.8, contrast_p=0.05), no_contrast(one_batch=0.8)),
        ("stuck", no_contrast(one_batch=0.6, control=0.1), no_contrast(one_batch=0.8)),
        ("stuck", no_contrast(one_batch=0.8, contrast=0.15), no_contrast(one_batch=0.8)),
    ],
)
def test_each_rule_decides_at_its_threshold(name: str, below: dict[str, Any], above: dict[str, Any]) -> None:
    assert name not in names(measured(**below))
    assert names(measured(**above))[0] == name


def test_a_summed_loss_is_not_called_saturated_as_well() -> None:
    assert "saturated" not in names(measured(extensivity=2.0, confidence=30.0, start_loss=74.0))


def silent(later: np.ndarray | None = None, **start: np.ndarray) -> xr.Dataset:
    return measured(silent_share_later=start["start"] if later is None else later, silent_share=start["start"])


def test_a_dead_layer_is_the_last_one_that_lets_nothing_through() -> None:
    (dead, _) = findings(silent(start=some(1.0, 0, 1, 2, 3)))
    assert dead.name == "dead" and "layer3" in dead.sentence and "3 earlier layers" in dead.sentence


def test_units_that_wake_up_are_not_dead() -> None:
    assert names(silent(start=some(1.0, 4), later=np.zeros(10))) == ["curvature"]


def test_many_dead_units_come_after_the_cause() -> None:
    evidence = silent(start=some(0.7, 4))
    assert names(evidence) == ["dead_units", "curvature"]
    assert names(evidence.assign(steepness=9.0)) == ["exploding", "dead_units"]


def test_labels_are_not_judged_of_a_model_that_has_something_else() -> None:
    assert names(measured(**no_contrast(), steepness=9.0)) == ["exploding"]
    assert names(measured(**no_contrast())) == ["labels", "curvature"]


def test_an_explosion_is_described_from_where_it_starts() -> None:
    growing = np.ones((6, 10))
    growing[-1, 4:] = 2.0 ** np.arange(2, 8)  # 4, 8, ... 128 from layer4 on
    found = findings(measured(steepness=9.0, size_along_step=growing))[0]
    assert found.numbers["growth_per_layer"] == pytest.approx(128 ** (1 / 6))
    assert found.numbers["growth"] == pytest.approx(128)
    assert "from layer layer4 on" in found.sentence and "at layer layer9" in found.sentence


def test_findings_survive_their_dataset() -> None:
    found = [Finding("a", "b", "c", "d", True, {"x": 1.5}), Finding("e", "f", "g", "", False)]
    assert as_findings(findings_dataset(found)) == found


def test_numbers_are_short() -> None:
    values = [0, 0.0123, 12.3, 99.6, 123.4, 12345, 1.24e-5, 1e20, math.inf, math.nan]
    assert [number(v) for v in values] == ["0", "0.012", "12", "100", "123", "1.2e4", "1.2e-5", "1e20", "∞", "–"]


def test_growth_along_a_sequence_is_the_slope_of_a_straight_line() -> None:
    assert sequence_growth(np.exp(0.5 * np.arange(9))) == pytest.approx(4.0)
    assert sequence_growth(np.exp(-0.5 * np.arange(9))) == pytest.approx(-4.0)
    assert sequence_growth([1, 1, 1, 1, 1, 1, 50]) == 0, "one last place that stands out is no growth"
    assert sequence_growth([1, 10, 100]) == 0, "too short"
    assert sequence_growth([1, 2, 4, 8, math.inf, 32]) == 0


def test_signal_of_a_linear_chain_is_known() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(3 * torch.eye(4))
        model[1].weight.copy_(torch.eye(2, 4) * 0.5)
    x, y = torch.randn(6, 4), torch.randint(2, (6,))
    seen = signal(model, [(x, y)])
    assert seen.values("gain")[0] == pytest.approx(3, rel=1e-6)
    assert seen.values("size")[0] == pytest.approx(3 * float(x.square().mean().sqrt()), rel=1e-6)
    # Logits do not depend on the last two features, so that their units get no gradient.
    assert seen.values("silent_share").tolist() == [0.5, 0.0]


def test_repeated_calls_are_followed_forwards_and_backwards() -> None:
    case = by_name("exploding recurrent product")
    seen = signal(case.model_or_build()(0), case.batches()[:2])
    layer, forward, backward = repeated_calls(seen)
    # Gain 2.2, halved in square by the relu: 32 calls make 31 · ln(2.2 / √2) nats, less what saturates.
    assert layer == "state" and forward == pytest.approx(31 * math.log(2.2 / math.sqrt(2)), rel=0.35)
    assert backward == pytest.approx(31 * math.log(2.2 / math.sqrt(2)), rel=0.35)


def test_extensivity_tells_sums_from_means() -> None:
    case = by_name("healthy MLP with batch norm")
    model, batch = case.model_or_build()(0), case.batches()[0]
    assert extensivity(model, batch) == pytest.approx(1, rel=1e-5)
    dropping = nn.Sequential(nn.Dropout(0.9), model)
    assert extensivity(dropping, batch) == pytest.approx(1, rel=1e-5), "other draws on the batch taken twice"
    summed = extensivity(model, batch, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="sum"))
    assert summed == pytest.approx(2, rel=1e-5)


def test_coupling_grows_as_batches_shrink_and_is_zero_without_batch_norm() -> None:
    plain = by_name("healthy with dropout")
    assert coupling(plain.model_or_build()(0).eval(), plain.batches()[:4]) == pytest.approx(0, abs=0.2)
    case = by_name("healthy MLP with batch norm")
    x, y = case.batches()[0]
    found = [
        coupling(case.model_or_build()(0), list(zip(x.split(size), y.split(size), strict=True))[:8])
        for size in (2, 4, 16)
    ]
    assert found[0] > found[1] > found[2] > 0.1


def test_batches_of_any_kind_are_joined_or_given_up() -> None:
    x, y = torch.ones(2, 3), torch.zeros(2)
    assert joined([(x, y), (x, y)])[0].shape == (4, 3)
    assert joined([{"a": [x], "b": y}] * 3)["a"][0].shape == (6, 3)
    assert joined([(x, "text"), (x, "text")]) is None
    assert joined([(x, y), (torch.ones(2, 4), y)]) is None


def test_standardized_scales_inputs_and_leaves_targets() -> None:
    images, labels = 100 + 50 * torch.randn(64, 3, 5, 5), torch.randn(64)
    scaled, same = standardized((images, labels))
    assert same is labels
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(scaled.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    mapping = standardized({"input_ids": torch.arange(4), "pixels": images, "labels": labels})
    assert mapping["labels"] is labels and mapping["input_ids"].dtype == torch.int64
    assert torch.equal(mapping["pixels"], scaled)


def test_the_result_survives_the_disk(tmp_path: Any) -> None:
    case = by_name("shuffled labels")
    tree = ns.diagnose(case.model_or_build(), case.batches(), optimizer="sgd", steps=20)
    ns.save(tree, tmp_path / "tree.nc")
    again = ns.load_tree(tmp_path / "tree.nc")
    assert faults(again) == faults(tree) == ["labels"]
    assert names(again["evidence"].to_dataset()) == names(tree["evidence"].to_dataset())


def test_what_cannot_be_diagnosed_is_one_line() -> None:
    case = by_name("healthy MLP")
    with pytest.raises(InvalidModel, match="of type int: give an nn"):
        ns.diagnose(3, case.batches(), optimizer="sgd")
    frozen = case.model_or_build()(0).requires_grad_(False)
    with pytest.raises(InvalidModel, match="no trainable parameter"):
        ns.diagnose(frozen, case.batches(), optimizer="sgd")


def test_the_curvature_of_a_very_large_model_is_left_out_with_a_line(monkeypatch):
    monkeypatch.setattr("normscope.diagnosis.evidence.NO_PRODUCTS", 100)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    batches = [(torch.randn(12, 8), torch.arange(12) % 3) for _ in range(3)]
    tree = ns.diagnose(model, batches, optimizer="sgd", steps=3, seconds=0.2)
    assert np.isnan(tree["evidence"]["sharpness"])
    assert "The sharpest curvature was not measured" in tree["findings"].attrs["skipped"]

"""Half precision: the layer near float16's end is named, and the wider format measured; sound ones are left alone."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.diagnosis.finding import Finding, as_findings
from normscope.diagnosis.half_precision import watching, wider


class Half(nn.Module):
    """Three layers under autocast; the second layer's weights are `gain` times as large, and a norm follows it."""

    def __init__(self, gain: float = 1.0, dtype: torch.dtype = torch.float16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.norm = nn.Linear(12, 32), nn.Linear(32, 32), nn.LayerNorm(32)
        self.head, self.dtype = nn.Linear(32, 3), dtype
        with torch.no_grad():
            self.second.weight.mul_(gain)
            self.second.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", self.dtype):
            return self.head(self.norm(self.second(self.first(x).relu()))).float()


def batches() -> list[Any]:
    g = torch.Generator().manual_seed(0)
    made = [torch.randn(32, 12, generator=g) for _ in range(6)]
    return [(x, x[:, :3].argmax(1)) for x in made]


def found(model: nn.Module, loss_fn: Any = None) -> list[Finding]:
    tree = ns.diagnose(model, batches(), optimizer="adam", loss_fn=loss_fn, seconds=0.5)
    return [finding for finding in as_findings(tree["findings"].to_dataset()) if finding.fault]


def largest(model: Half) -> float:
    """What the second layer gives in float32, at most."""
    outputs = [model.second(model.first(x).relu()).abs().max() for x, _ in batches()[:1]]
    return float(torch.stack(outputs).max().detach())


@pytest.fixture(scope="module")
def near() -> float:
    """The gain at which the second layer gives 70 % of float16's range."""
    return 0.7 * 65504 / largest(Half())


def test_the_layer_near_the_end_of_float16_is_named_and_the_wider_format_measured(near: float) -> None:
    one = found(Half(near))[0]
    assert (one.name, one.place, one.category) == ("number_range", "second", "numerics")
    assert one.numbers["range_share"] == pytest.approx(0.7, rel=0.02)
    assert one.numbers["wider_lr"] > 3 * one.numbers["diverging_lr"] > 0
    assert "bfloat16" in one.code and "65,504" in one.sentence


@pytest.mark.parametrize("model", [Half(), Half(30.0), Half(1e4, torch.bfloat16)], ids=["plain", "30", "bfloat16"])
def test_half_precision_with_room_is_no_fault(model: nn.Module) -> None:
    assert not {"number_range", "underflow", "not_finite"} & {one.name for one in found(model)}


def test_what_overflows_before_any_step_is_told_from_an_operation(near: float) -> None:
    one = found(Half(2 * near))[0]
    assert one.name == "not_finite" and "leaves the range of float16 in second" in one.sentence
    assert "bfloat16" in one.code


def test_gradients_that_float16_loses_are_found_by_parameter() -> None:
    def tiny(model: nn.Module, batch: Any) -> torch.Tensor:
        return 4e-6 * nn.functional.cross_entropy(model(batch[0]), batch[1])

    lost = [one for one in found(Half(), tiny) if one.name == "underflow"]
    assert lost and lost[0].numbers["lost_share"] >= 0.5 and "GradScaler" in lost[0].code
    with wider():
        assert not [one for one in found(Half(), tiny) if one.name == "underflow"]


def test_the_watch_sees_what_the_module_gives_and_no_masks(near: float) -> None:
    model = Half(near)
    with watching(model) as watch:
        model(batches()[0][0])
    assert watch.largest.layer == "second" and watch.largest.format == "float16"
    assert watch.largest.largest == pytest.approx(largest(model), rel=2e-3)  # float16 has 11 bits
    with watching(model) as watch:
        scores = torch.ones(2, 4, dtype=torch.float16).masked_fill(torch.eye(4)[:2] > 0, -math.inf)
        scores + torch.finfo(torch.float16).min
    assert watch.largest.share < 1e-3 and not watch.first_overflow.format
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_autocast_is_as_it_was_after_the_wider_one() -> None:
    enter = torch.autocast.__enter__
    with pytest.raises(ZeroDivisionError), wider():
        raise ZeroDivisionError
    assert torch.autocast.__enter__ is enter

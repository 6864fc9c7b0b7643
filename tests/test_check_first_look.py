"""check looks at every batch before it tries a rate: what cannot be trained on is said first, and left out."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import xarray as xr
from broken import build_seeded, by_name, mlp
from torch import nn

import normscope as ns
from normscope.checkup.answer import answer
from normscope.checkup.headline import headline
from normscope.checkup.limits import HEALTHY
from normscope.checkup.rows import rows
from normscope.diagnosis.finding import as_findings
from normscope.errors import InvalidBatch

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

STEPS = 12

OPTIONS: dict[str, Any] = {"optimizer": "sgd", "steps": STEPS, "seeds": 1, "repair": []}


def build(seed: int) -> nn.Module:
    return build_seeded(partial(mlp, width=16), seed)


def batches(bad: int | None = None) -> list[Any]:
    made = by_name("healthy MLP").batches()[:STEPS]
    if bad is not None:
        inputs = made[bad][0].clone()
        inputs[3] = float("nan")
        made[bad] = inputs, made[bad][1]
    return made


def names(tree: xr.DataTree) -> list[str]:
    return [finding.name for finding in as_findings(tree["findings"].to_dataset())]


def rooted(model: nn.Module, batch: Any) -> torch.Tensor:
    """A loss whose gradient is NaN, since a norm is taken of zeros."""
    logits = model(batch[0])
    return nn.functional.cross_entropy(logits, batch[1]) + (0 * logits).square().sum().sqrt()


def dead(model: nn.Module, batch: Any) -> torch.Tensor:
    """A loss whose gradient is zero everywhere."""
    return nn.functional.cross_entropy((model(batch[0]) - 1e3).relu(), batch[1])


@pytest.mark.parametrize(
    ("loss_fn", "name", "options"),
    [(rooted, "not_finite", {"lr": 0.1}), (rooted, "not_finite", {"repair": ["batch"]}), (dead, "zero_gradient", {})],
)
def test_no_rate_is_tried_where_none_can_be(loss_fn: Any, name: str, options: dict[str, Any], tmp_path: Path) -> None:
    tree = ns.check(build, batches(), loss_fn=loss_fn, **{**OPTIONS, **options})
    assert [row.status for row in rows(tree)] == ["not tried"]
    assert name in names(tree) and "rates" not in tree["as_it_is"].children
    assert headline(tree).startswith("No rate was tried: before any step ")
    text = answer(tree)
    assert "What is wrong: " in text and HEALTHY not in text and "diverges" not in text and "train at" not in text
    page = ns.report(tree, tmp_path / "page.html").read_text()
    assert "What is wrong" in page and HEALTHY not in page


@pytest.mark.parametrize("kind", ["list", "function"])
def test_rates_are_those_of_the_batches_that_can_be_trained_on(kind: str) -> None:
    def of_seed(without: int | None) -> Any:
        def given(seed: int) -> Iterator[Any]:
            made = batches(bad=7)
            yield from (made[i] for i in range(len(made)) if i != without)

        return given

    every = batches(bad=7)
    sources = (every, [*every[:7], *every[8:]]) if kind == "list" else (of_seed(None), of_seed(7))
    found, alone = (ns.check(build, source, **OPTIONS) for source in sources)
    xr.testing.assert_equal(found["as_it_is/rates"].to_dataset(), alone["as_it_is/rates"].to_dataset())
    assert headline(found).startswith("Everything else was measured without batch 7 of 12.")
    assert names(found)[0] == "not_finite_data" and "example 3" in answer(found)
    assert "What is wrong: the data are not finite" in " ".join(answer(found).split())
    assert not {"not_finite_data", "not_finite", "last_batch"} & set(names(alone)) and "without batch" not in answer(
        alone
    )


def test_one_batch_is_no_evidence_that_nothing_is_wrong() -> None:
    many, one = (ns.check(build, source, **OPTIONS) for source in (batches(), batches()[:1]))
    assert all(not f.fault for tree in (many, one) for f in as_findings(tree["findings"].to_dataset()))
    assert HEALTHY in answer(many)
    assert HEALTHY not in answer(one) and "one batch only" in answer(one)


def test_what_no_batch_is_taken_by_is_refused_before_anything_runs() -> None:
    with pytest.raises(InvalidBatch, match="does not take this batch"):
        ns.check(build, [(torch.randn(8, 3), torch.zeros(8, dtype=torch.long))] * 2, **OPTIONS)


class Enlarged(nn.Module):
    """A sum of a thousand numbers of 400: out of float16's range, within float32's."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.wide = body, nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.body(x)
        return logits + 1e-6 * self.wide(4e5 + 0 * logits)


@pytest.mark.parametrize(("precision", "name"), [("fp16", "not_finite"), ("bf16", ""), ("fp32", "")])
def test_the_batches_are_looked_at_in_the_precision_they_are_trained_in(precision: str, name: str) -> None:
    model = Enlarged(build(0))
    tree = ns.check(model, batches(), **{**OPTIONS, "steps": 4}, precision=precision)
    assert ("not_finite" in names(tree)) is (name == "not_finite")

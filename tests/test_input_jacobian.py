"""The input-output Jacobian against a naive float64 twin, against differences, and in known cases."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from zoo import EXAMPLES, ZOO, Entry, disturb, in_float64, no_trace

from normscope.errors import InvalidBatch, InvalidConfig, InvalidModel
from normscope.nets import build_net
from normscope.probes.input_jacobian import input_jacobian


def in_place_on_its_input() -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 4))


def small_resnet() -> nn.Module:
    return build_net("resnet8", norm="batch", in_channels=1, image_size=8, width=4)


MODELS = [
    *(entry for entry in ZOO if entry.name != "embedding_tied"),  # numbers of words cannot be differentiated
    Entry("in_place_on_its_input", in_place_on_its_input, lambda: torch.randn(EXAMPLES, 6)),
    Entry("resnet", small_resnet, lambda: torch.randn(EXAMPLES, 1, 8, 8), couples=True),
]


def naive(model: nn.Module, batch: Any, num_examples: int) -> tuple[np.ndarray, np.ndarray]:
    """One forward and backward in float64 for every output of every example."""
    double, batch = in_float64(model).train(), in_float64(batch)
    inputs = batch["pixels"] if isinstance(batch, dict) else batch[0] if isinstance(batch, tuple) else batch

    def outputs(x: Tensor) -> Tensor:
        torch.manual_seed(0)  # the same dropout in every pass
        if isinstance(batch, dict):
            return double(**{**batch, "pixels": x}).logits
        return double(x).flatten(1)

    values, shares = [], []
    for b in range(num_examples):
        rows = []
        for k in range(outputs(inputs.clone()).shape[1]):
            leaf = inputs.clone().requires_grad_()
            outputs(leaf.clone())[b, k].backward()
            assert leaf.grad is not None
            rows.append(leaf.grad.flatten(1))
        jacobian = torch.stack(rows)
        values.append(np.linalg.svd(jacobian[:, b].numpy(), compute_uv=False))
        total = float(jacobian.square().sum())
        shares.append(1 - float(jacobian[:, b].square().sum()) / total if total else 0.0)
    return np.array(values), np.array(shares)


@pytest.mark.parametrize("entry", MODELS, ids=str)
def test_it_equals_the_naive_twin(entry: Entry) -> None:
    model, batch = entry.build(), entry.batch()
    values, shares = naive(model, batch, 2)
    torch.manual_seed(0)
    ds = input_jacobian(model, batch, loss_fn=entry.loss_fn, num_examples=2)
    # Rounding of a few layers, relative to the largest value; batch norm over six examples amplifies it.
    close = {"rtol": 0, "atol": (100 if entry.couples else 10) * torch.finfo(entry.dtype).eps}
    largest = np.where(values[:, :1] > 0, values[:, :1], 1)  # dropout may leave an example nothing
    np.testing.assert_allclose(ds["singular_value"] / largest, values / largest, **close)
    np.testing.assert_allclose(ds["outside_share"], shares, **close)
    assert (shares > 0.01).any() == entry.couples and (ds["outside_share"] > 0).any() == entry.couples


def test_it_leaves_no_trace_where_it_fails() -> None:
    model, batch = disturb(nn.Sequential(nn.BatchNorm1d(3), nn.Flatten(0))), torch.randn(4, 3)
    with no_trace(model, batch), pytest.raises(InvalidModel):
        input_jacobian(model, batch)


def test_the_jacobian_under_batch_norm_is_what_moving_the_example_does() -> None:
    """Central differences of the network as it computes, statistics included."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x, h = torch.randn(6, 4).double(), 1e-5
    columns = []
    for i in range(4):
        step = torch.zeros_like(x)
        step[0, i] = h
        columns.append((model(x + step)[0] - model(x - step)[0]) / (2 * h))
    values = torch.linalg.svdvals(torch.stack(columns, 1)).detach().numpy()
    measured = input_jacobian(model, x, num_examples=1)["singular_value"].values[0]
    np.testing.assert_allclose(
        measured, values, rtol=1e-8
    )  # h^2 of the differences, 1e-10, and their rounding, 1e-11 / h
    frozen = input_jacobian(model, x, num_examples=1, training=False)
    assert float(frozen["outside_share"][0]) == 0 and not np.allclose(frozen["singular_value"][0], values, rtol=0.01)


def test_a_linear_map_has_its_own_singular_values() -> None:
    model = nn.Linear(6, 4)
    with torch.no_grad():
        model.weight.copy_(torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0])) @ torch.eye(4, 6))
    ds = input_jacobian(model, (torch.randn(3, 6), torch.zeros(3)), num_examples=9)
    np.testing.assert_array_equal(ds["singular_value"], np.tile([8.0, 4, 2, 1], (3, 1)))
    np.testing.assert_array_equal(ds["condition_number"], 8)
    np.testing.assert_allclose(ds["effective_rank"], 85**2 / (8**4 + 4**4 + 2**4 + 1))
    assert ds["resolved"].all() and not ds["condition_is_bound"].any() and not ds["outside_share"].any()


def test_directions_that_relu_cuts_make_the_condition_number_a_bound() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU())
    nn.init.eye_(model[0].weight)
    ds = input_jacobian(model, torch.tensor([[1.0, 1, -1], [1, 1, 1], [-1, -1, -1]]))
    assert ds["condition_is_bound"].values.tolist() == [True, False, False]
    assert float(ds["condition_number"][0]) > 1e4 and float(ds["condition_number"][1]) == 1
    assert np.isnan(ds["condition_number"][2]) and np.isnan(ds["effective_rank"][2])  # dead: no direction at all
    np.testing.assert_allclose(ds["effective_rank"][:2], [2, 3])


def test_overflow_is_the_networks_own_and_kept() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4, bias=False) for _ in range(3)))
    for layer in model:
        nn.init.constant_(layer.weight, 1e20)
    assert np.isnan(input_jacobian(model, torch.ones(2, 4))["singular_value"]).all()
    assert np.isfinite(input_jacobian(model.double(), torch.ones(2, 4).double())["effective_rank"]).all()


def test_mappings_and_loss_functions_feed_the_model() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 4)

        def forward(self, pixels: Tensor, mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            return {"loss": torch.zeros(()), "logits": self.linear(pixels * mask[:, None])}

    model, x, mask = Masked(), torch.randn(3, 6), torch.tensor([1, 2, 0])
    weights = torch.linalg.svdvals(model.linear.weight).detach().numpy()
    batch = {"pixels": x, "mask": mask, "labels": torch.zeros(3)}
    for ds in (
        input_jacobian(model, batch),
        input_jacobian(model, [x], loss_fn=lambda m, b: F.mse_loss(m(b[0], mask=mask)["logits"], torch.zeros(3, 4))),
    ):
        np.testing.assert_allclose(ds["singular_value"], np.outer([1, 2, 0], weights), rtol=1e-5)


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).float()


@pytest.mark.parametrize(
    ("model", "batch", "options", "error", "says"),
    [
        (
            nn.Embedding(5, 3),
            torch.zeros(2, dtype=torch.long),
            {},
            InvalidBatch,
            "0 of the model's 1 arguments",
        ),
        (nn.Linear(3, 2), torch.zeros(4, 5), {}, InvalidBatch, "does not take this batch"),
        (nn.BatchNorm1d(3), torch.zeros(1, 3), {}, InvalidBatch, "one example has no batch statistics"),
        (Counts(), torch.zeros(4, 5), {}, InvalidModel, "does not depend on the input"),
        (nn.Flatten(0), torch.zeros(4, 5), {}, InvalidModel, r"\(20,\), not one row for each of 4"),
        (nn.Linear(2, 5000), torch.zeros(2, 2), {}, InvalidModel, "5000 outputs"),
        (nn.Linear(2, 2), torch.zeros(2, 2), {"loss_fn": lambda m, b: b.sum()}, InvalidModel, "did not call"),
        (nn.Linear(2, 2), torch.zeros(2, 2), {"num_examples": 0}, InvalidConfig, "at least 1"),
        (nn.Linear(2, 2), torch.zeros(0, 2), {}, InvalidBatch, "empty"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    model: nn.Module, batch: Tensor, options: dict, error: type, says: str
) -> None:
    with pytest.raises(error, match=f"^[^\n]*{says}[^\n]*$"):
        input_jacobian(model, batch, **options)

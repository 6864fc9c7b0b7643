"""Gradients at the output equal a float64 twin, whatever the output is; agreement has known answers."""

import itertools
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import CLASSES, EXAMPLES, ZOO, by_name, in_float64, scaled, squared_error

import normscope as ns
from normscope.errors import InvalidConfig, InvalidModel
from normscope.model.loss import default_loss
from normscope.probes.output_gradients import common_part, commonest_share, mean_pairwise_cosine, predictions

matplotlib.use("Agg")


def naive(model, batch, loss_fn):
    """(logits, gradient) as rows, by running the model once and the loss on a leaf in place of its output."""
    found = {}

    def swap(_module, _inputs, output):
        logits = getattr(output, "logits", output)
        found["leaf"] = logits.detach().clone().requires_grad_()
        if logits is output:
            return found["leaf"]
        loss = F.cross_entropy(found["leaf"], batch["labels"])
        return SimpleNamespace(logits=found["leaf"], loss=loss)

    handle = model.register_forward_hook(swap)
    (loss_fn or default_loss)(model, batch).backward()
    handle.remove()
    leaf = found["leaf"]
    return leaf.detach().reshape(-1, leaf.shape[-1]).numpy(), leaf.grad.reshape(-1, leaf.shape[-1]).numpy()


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_equals_its_float64_twin(entry):
    model, batch = entry.build(0), entry.batch(0)
    torch.manual_seed(3)
    dataset = ns.output_gradients(model, batch, loss_fn=entry.loss_fn)
    torch.manual_seed(3)
    # dropout draws other masks in float64
    double = (model, batch) if entry.random else (in_float64(model), in_float64(batch))
    logits, gradient = naive(*double, entry.loss_fn)
    # bfloat16 logits of order 1 are good to 1e-2, and so is their softmax over |B| = 6; float32 to some 1e-6
    tolerance = 5e-3 if entry.dtype == torch.bfloat16 else 2e-6
    np.testing.assert_allclose(dataset["gradient"], gradient, rtol=0, atol=tolerance)
    if entry.dtype != torch.bfloat16:
        np.testing.assert_array_equal(dataset["predicted"], logits.argmax(1))
    pairs = list(itertools.combinations(np.asarray(dataset["gradient"], dtype=np.float64), 2))
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in pairs]
    assert float(dataset["mean_cosine"]) == pytest.approx(np.mean(cosines), abs=1e-10)
    rows = np.asarray(dataset["gradient"], dtype=np.float64)
    common = (rows.mean(0) ** 2).sum() / (rows**2).sum(1).mean()
    assert float(dataset["common_part"]) == pytest.approx(common, rel=1e-10)
    counts = np.bincount(dataset["predicted"])
    assert float(dataset["commonest_share"]) == counts.max() / len(rows)


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.loss_fn is None], ids=str)
def test_a_cross_entropy_gradient_sums_to_zero_and_stays_below_one_over_the_batch(entry):
    gradient = ns.output_gradients(entry.build(0), entry.batch(0))["gradient"]
    one = 1e-2 if entry.dtype == torch.bfloat16 else 1e-6
    np.testing.assert_allclose(gradient.sum("label"), 0, atol=one / EXAMPLES)
    assert (abs(gradient) <= (1 + one) / gradient.sizes["example"]).all()


def test_one_class_for_all_is_one_column_at_one_over_the_batch():
    """Figure 6 without batch norm, by construction: a huge bias on one class, which no label is."""
    model = nn.Linear(7, CLASSES)
    with torch.no_grad():
        model.bias.copy_(torch.tensor([0.0, 0.0, 1e3, 0.0]))
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    dataset = ns.output_gradients(model, (torch.randn(EXAMPLES, 7), labels))
    np.testing.assert_allclose(dataset["gradient"].sel(label=2), 1 / EXAMPLES, rtol=1e-6)
    assert float(dataset["commonest_share"]) == 1
    # rows (-1, 0, 1, 0) and (0, -1, 1, 0), three each: cosine 1 in 6 of 15 pairs, 1/2 in 9
    assert float(dataset["mean_cosine"]) == pytest.approx(10.5 / 15)
    assert float(dataset["common_part"]) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("rows", "cosine", "common"),
    [
        ([[1, 2], [1, 2], [1, 2]], 1.0, 1.0),
        ([[1, 0], [-1, 0]], -1.0, 0.0),
        ([[1, 0], [0, 1]], 0.0, 0.5),
        ([[3, 0], [0, 0], [1, 0]], 1.0, (4 / 3) ** 2 / (10 / 3)),
        ([[1, 0], [0, 0]], np.nan, 0.5),
        ([[0, 0], [0, 0]], np.nan, np.nan),
        ([[1e30, 0], [1e30, 0]], 1.0, 1.0),
        ([[1e-30, 0], [1e-30, 0]], 1.0, 1.0),
    ],
)
def test_agreement_of_known_rows(rows, cosine, common):
    rows = torch.tensor(rows, dtype=torch.float32)
    assert mean_pairwise_cosine(rows) == pytest.approx(cosine, nan_ok=True)
    assert common_part(rows) == pytest.approx(common, nan_ok=True)


def test_independent_rows_share_one_over_their_number():
    rows = torch.randn(4000, 10, generator=torch.Generator().manual_seed(0))
    # standard deviations: 1/(n sqrt(d)) of the part, and of the mean cosine sqrt(2/d)/n
    assert common_part(rows) == pytest.approx(1 / 4000, abs=5 / 4000 / np.sqrt(10))
    assert mean_pairwise_cosine(rows) == pytest.approx(0, abs=5 * np.sqrt(2 / 10) / 4000)


def test_an_output_that_is_nan_predicts_nothing():
    outputs = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
    assert predictions(outputs).tolist() == [1, -1, 0]
    assert commonest_share(torch.tensor([1, -1, 1])) == pytest.approx(2 / 3)
    assert np.isnan(commonest_share(torch.tensor([-1, -1])))


def test_a_network_that_overflowed_is_reported_not_hidden():
    entry = by_name("mlp")
    dataset = ns.output_gradients(entry.build(0), scaled(entry.batch(0), 1e38 * 1e10))
    assert not np.isfinite(dataset["loss"])
    assert np.isnan(dataset["mean_cosine"]) and np.isnan(dataset["common_part"])


def test_an_output_changed_in_place_by_the_loss_is_seen_as_the_model_gave_it():
    def tempered(model, batch):
        logits = model(batch[0])
        return F.cross_entropy(logits.mul_(-2.0), batch[1])

    entry = by_name("mlp")
    model, batch = entry.build(0), entry.batch(0)
    dataset = ns.output_gradients(model, batch, loss_fn=tempered)
    logits = model(batch[0]).detach()
    own = (-2 * logits).softmax(1) - F.one_hot(batch[1], CLASSES)
    np.testing.assert_allclose(dataset["gradient"], -2 * own / EXAMPLES, atol=1e-6)  # float32
    np.testing.assert_array_equal(dataset["predicted"], logits.argmax(1))


def test_pixels_are_examples_with_their_classes_along_dimension_one():
    model = nn.Sequential(nn.Conv2d(3, CLASSES, 1), nn.Identity())
    batch = torch.randn(2, 3, 4, 5), torch.randint(CLASSES, (2, 4, 5))
    dataset = ns.output_gradients(model, batch)
    assert dataset["gradient"].shape == (2 * 4 * 5, CLASSES)
    logits = model(batch[0]).detach().permute(0, 2, 3, 1).reshape(-1, CLASSES)
    own = (logits.softmax(1) - F.one_hot(batch[1].flatten(), CLASSES)) / 40
    np.testing.assert_allclose(dataset["gradient"], own, atol=1e-7)  # float32


def test_ignored_labels_have_no_gradient_and_no_cosine():
    entry = by_name("embedding_tied")
    tokens, labels = entry.batch(0)
    labels[:, 2:] = -100
    dataset = ns.output_gradients(entry.build(0), (tokens, labels))
    silent = (dataset["gradient"] == 0).all("label")
    np.testing.assert_array_equal(silent, labels.flatten() == -100)
    assert np.isfinite(dataset["mean_cosine"])


def test_several_calls_follow_each_other():
    def in_two_halves(model, batch):
        halves = zip(batch[0].chunk(2), batch[1].chunk(2), strict=True)
        return torch.stack([F.cross_entropy(model(x), y) for x, y in halves]).mean()

    entry = by_name("mlp")
    whole = ns.output_gradients(entry.build(0), entry.batch(0))
    halves = ns.output_gradients(entry.build(0), entry.batch(0), loss_fn=in_two_halves)
    np.testing.assert_allclose(halves["gradient"], whole["gradient"], atol=1e-7)  # float32


def test_one_number_an_example_has_no_commonest_class():
    model = nn.Sequential(nn.Linear(7, 1), nn.Flatten(0))
    batch = torch.randn(EXAMPLES, 7), torch.randn(EXAMPLES)
    dataset = ns.output_gradients(model, batch, loss_fn=squared_error)
    assert dataset["gradient"].shape == (EXAMPLES, 1)
    assert np.isnan(dataset["commonest_share"])


def test_a_models_own_loss_is_passed_over():
    class TupleOutput(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(7, CLASSES)

        def forward(self, x, y):
            logits = self.fc(x)
            return F.cross_entropy(logits, y), logits

    batch = by_name("mlp").batch(0)
    model = TupleOutput()
    dataset = ns.output_gradients(model, batch, loss_fn=lambda m, b: m(*b)[0])
    twin = ns.output_gradients(nn.Sequential(model.fc), batch)
    np.testing.assert_array_equal(dataset["gradient"], twin["gradient"])


def test_refuses_what_has_no_output_to_look_at():
    entry = by_name("mlp")
    model, batch = entry.build(0), entry.batch(0)
    with pytest.raises(InvalidModel, match="never calls Sequential itself"):
        ns.output_gradients(model, batch, loss_fn=lambda m, b: F.cross_entropy(m.forward(b[0]), b[1]))
    with pytest.raises(InvalidModel, match="does not depend on the output tensor"):
        ns.output_gradients(model, batch, loss_fn=lambda m, b: m(b[0]).detach().sum() + m[0].weight.square().sum())
    with pytest.raises(InvalidModel, match="no output tensor that depends on its parameters"):
        ns.output_gradients(nn.Sequential(nn.Linear(7, 4), Silent()), batch)


class Silent(nn.Module):
    def forward(self, x):
        return x.detach()


def test_picture_is_examples_by_classes_on_a_scale_about_zero():
    entry = by_name("mlp")
    dataset = ns.output_gradients(entry.build(0), entry.batch(0))
    dataset["gradient"][1, 2] = np.nan
    ax = ns.plot_output_gradients(dataset, ax=matplotlib.figure.Figure().subplots())
    mesh = ax.collections[0]
    assert mesh.get_array().shape == (EXAMPLES, CLASSES)
    assert np.argwhere(mesh.get_array().mask).tolist() == [[1, 2]]
    largest = float(abs(dataset["gradient"]).max())
    assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((-largest, largest))
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first example on top
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("label", "example")
    assert mesh.get_rasterized()


def test_picture_of_several_networks_is_refused():
    entry = by_name("mlp")
    dataset = ns.output_gradients(entry.build(0), entry.batch(0)).expand_dims("norm")
    with pytest.raises(InvalidConfig, match="choose along norm"):
        ns.plot_output_gradients(dataset)

"""The loss by the batch's type, the loss of the best constant, and one line for all that can be wrong."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normscope as ns
from normscope.errors import InvalidBatch, InvalidModel, NormscopeError
from normscope.model.batch import num_examples
from normscope.model.loss import checked_loss, constant_loss, cross_entropy, default_loss, output_spread

LABELS = torch.tensor([0, 1, 2, 0])
BATCH = (torch.arange(12.0).reshape(4, 3), LABELS)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def test_pair_is_cross_entropy_by_hand():
    model = net()
    logits = model(BATCH[0]).double()
    by_hand = -torch.log_softmax(logits, 1)[torch.arange(4), LABELS].mean()
    assert default_loss(model, BATCH).item() == pytest.approx(by_hand.item(), rel=1e-6)


def test_mapping_is_the_models_own_loss():
    class Own(nn.Module):
        def forward(self, x, labels):
            return {"loss": x.mean() + labels.sum()}

    assert default_loss(Own(), {"x": torch.ones(2), "labels": torch.tensor([1, 2])}).item() == 4.0


def test_classes_may_lie_last_or_in_dimension_one():
    tokens, labels = torch.randn(2, 7, 5), torch.randint(5, (2, 7))
    expected = F.cross_entropy(tokens.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(cross_entropy(tokens, labels), expected)
    torch.testing.assert_close(cross_entropy(tokens.transpose(1, 2), labels), expected)


def test_bf16_logits_are_compared_in_float32():
    logits = torch.randn(4, 3).bfloat16()
    assert cross_entropy(logits, LABELS).dtype == torch.float32


def test_constant_loss_is_the_entropy_of_the_labels():
    assert constant_loss(net(), [BATCH]) == pytest.approx(-0.5 * math.log(0.5) - 0.5 * math.log(0.25))
    half = (BATCH[0], torch.tensor([0, -100, 1, -100]))
    assert constant_loss(net(), [half]) == pytest.approx(math.log(2)), "ignored labels do not count"


def squared(model, batch):
    return F.mse_loss(model(batch[0]), batch[1])


def test_constant_loss_of_a_regression_is_the_variance_of_the_targets():
    x = torch.tensor([[0.0], [1.0], [2.0]])
    assert constant_loss(nn.Identity(), [(x, x)], squared) == pytest.approx(2 / 3)
    assert constant_loss(nn.Linear(1, 1), [(x, 100 * x)], squared) == pytest.approx(2e4 / 3, rel=1e-4)


@pytest.mark.parametrize("shape", ["last", "first", "flat"])
def test_constant_loss_of_positions_is_the_entropy_of_their_labels(shape):
    """By the labels' shares whatever their shape, also under a loss of one's own."""
    labels = torch.randint(5, (64, 7), generator=torch.Generator().manual_seed(0)).clamp(max=2)
    x = torch.randn(64, 7, 4)
    layer = nn.Linear(4, 6)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            out = self.layer(x)
            return {"last": out, "first": out.movedim(2, 1), "flat": out.flatten(0, 1)}[shape]

    def loss(model, batch):
        out = model(batch[0])
        return F.cross_entropy(
            out.flatten(0, 1) if shape == "last" else out, batch[1].flatten() if shape != "first" else batch[1]
        )

    shares = torch.bincount(labels.flatten()).double() / labels.numel()
    entropy = float(-(shares * shares.log()).sum())
    assert constant_loss(Net(), [(x, labels)], loss) == pytest.approx(entropy, abs=1e-3)  # LBFGS' own tolerance
    if shape != "flat":
        assert constant_loss(Net(), [(x, labels)]) == pytest.approx(entropy)


def test_constant_loss_of_a_language_model_is_the_entropy_of_its_labels():
    labels = torch.randint(3, (8, 20), generator=torch.Generator().manual_seed(0))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Embedding(3, 3)

        def forward(self, input_ids, labels):
            logits = self.layer(input_ids)
            return {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), "logits": logits}

    model, batch = Model(), {"input_ids": labels, "labels": labels}
    entropy = float(-sum(p * p.log() for p in torch.bincount(labels.flatten()).double() / labels.numel()))
    assert constant_loss(model, [batch]) == pytest.approx(entropy)


def test_constant_loss_of_what_differentiates_inside_or_calls_parts_permutes_the_targets():
    x = torch.tensor([[0.0], [1.0], [2.0]])
    model = nn.Sequential(nn.Identity())
    found = constant_loss(model, [(x, x)], lambda model, batch: F.mse_loss(model[0](batch[0]), batch[1]))
    assert found == pytest.approx(2.0), "targets moved on by one: (1 + 1 + 4) / 3"

    def slope(model, batch):
        inputs = batch[0].clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        return (gradient - batch[1]).square().mean()

    assert constant_loss(nn.Linear(1, 1), [(x, x)], slope) > 0


def test_constant_loss_is_unknown_where_targets_cannot_be_told():
    assert math.isnan(constant_loss(net(), [object()], lambda model, batch: torch.tensor(1.0)))


def test_constant_loss_sees_through_a_batch_that_comes_sorted():
    x = torch.arange(10.0)[:, None].repeat_interleave(10, 0)
    parts = nn.Sequential(nn.Identity())
    sorted_loss = constant_loss(parts, [(x, x)], lambda model, batch: F.mse_loss(model[0](batch[0]), batch[1]))
    # independent pairs differ by twice the variance, 2 · (10² − 1)/12 = 16.5; of 100 pairs one draw scatters by ± 2
    assert sorted_loss == pytest.approx(16.5, abs=6)


def test_constant_loss_needs_two_targets():
    one = (torch.ones(1, 2), torch.ones(1, 2))
    assert math.isnan(constant_loss(nn.Identity(), [one], lambda model, batch: F.mse_loss(*batch)))
    assert math.isnan(constant_loss(net(), [], lambda model, batch: F.mse_loss(*batch)))
    assert math.isnan(constant_loss(net(), [(BATCH[0], LABELS * 0 - 100)]))
    assert constant_loss(net(), [(BATCH[0], LABELS * 0)]) == 0.0


def test_constant_loss_of_a_mapping_permutes_its_labels():
    seen = []

    def loss(model, batch):
        seen.append(batch["labels"].tolist())
        return batch["x"].sum()

    constant_loss(net(), [{"x": torch.zeros(5), "labels": torch.arange(5)}], loss)
    assert sorted(seen[-1]) == [0, 1, 2, 3, 4] and all(label != place for place, label in enumerate(seen[-1]))


def test_output_spread_of_nothing():
    assert output_spread(nn.Identity(), (torch.zeros(4, 3), None)) == 0, "the same whatever it sees"
    assert output_spread(nn.Identity(), (torch.tensor([1.0, -1.0]), None)) == pytest.approx(1.0)
    assert math.isnan(output_spread(nn.GRU(3, 3), (torch.zeros(4, 3), None))), "no logits to see"


def test_output_spread():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(len(x), 3)

    assert output_spread(Constant(), BATCH) == 0
    assert output_spread(nn.Identity(), (torch.tensor([[1.0], [-1.0]]), None)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("batch", "examples"),
    [(BATCH, 4), ({"x": BATCH[0]}, 4), (torch.zeros(3, 2), 3), (object(), None), ((1, torch.zeros(2)), 2)],
)
def test_num_examples(batch, examples):
    assert num_examples(batch) == examples


def wrong(model, batch, loss_fn=None) -> str:
    with pytest.raises(NormscopeError) as caught:
        checked_loss(model, batch, loss_fn)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_what_is_wrong_is_said_in_one_line():
    images, labels = BATCH
    assert "no trainable parameter" in wrong(nn.ReLU(), BATCH)
    assert "no trainable parameter" in wrong(net().requires_grad_(False), BATCH)
    assert "labels go from 0 to 7, but the model has 3 outputs" in wrong(net(), (images, torch.tensor([0, 1, 7, 2])))
    assert "labels go from -1" in wrong(net(), (images, torch.tensor([0, 1, -1, 2])))
    assert "not integers" in wrong(net(), (images, labels.float()))
    assert "one example" in wrong(net(), (images[:1], labels[:1]))
    assert "empty" in wrong(net(), (images[:0], labels[:0]))
    assert "does not take this batch" in wrong(net(), (images[:, :2], labels))
    assert "does not take this batch" in wrong(net(), (images, labels[:3]))
    assert "(4,)" in wrong(net(), BATCH, lambda model, batch: model(batch[0]).sum(1))
    assert "float" in wrong(net(), BATCH, lambda model, batch: 1.0)
    assert "depends on no trainable parameter" in wrong(net(), BATCH, lambda model, batch: torch.tensor(1.0))
    assert "KeyError" in wrong(net(), BATCH, lambda model, batch: {}["missing"])
    assert "mapping" in wrong(net(), (images, labels, labels))
    assert "tuple" in wrong(nn.GRU(3, 3), (images, labels))


def test_one_example_is_enough_where_batch_norm_does_not_train():
    loss = checked_loss(net().eval(), (BATCH[0][:1], LABELS[:1]))
    assert torch.isfinite(loss)


def test_an_error_of_ours_passes_as_it_is():
    def refuse(model, batch):
        raise InvalidModel("mine")

    with pytest.raises(InvalidModel, match="mine"):
        checked_loss(net(), BATCH, refuse)


def test_a_bug_in_somebodys_loss_keeps_its_cause():
    def buggy(model, batch):
        raise ZeroDivisionError("oops")

    with pytest.raises(InvalidBatch, match="ZeroDivisionError: oops"):
        checked_loss(net(), BATCH, buggy)


def test_a_loss_that_differentiates_inside_itself_is_passed_wherever_no_gradients_are_needed():
    def penalty(model, batch):
        inputs = batch.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(inputs).sum(), inputs, create_graph=True)
        return gradient.square().mean()

    model, batch = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(16, 4)
    changed = ns.with_norm(model, "batch", batch=batch, loss_fn=penalty)
    assert any(isinstance(module, nn.BatchNorm1d) for module in changed.modules())
    moments = ns.channel_moments(model, batch, loss_fn=penalty)
    torch.testing.assert_close(torch.as_tensor(moments["mean"].values[0, :8]).float(), model[0](batch).mean(0).detach())
    assert isinstance(ns.with_norm(model, "weight_std", batch=batch, loss_fn=penalty), nn.Module)

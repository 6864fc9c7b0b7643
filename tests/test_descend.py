"""The descent loop: equal to the loop people write, and a reader may look and stop before each step."""

import copy

import pytest
import torch
from torch import nn
from zoo import ZOO

from normscope.descent.loop import descend
from normscope.model.loss import default_loss


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batches(count: int):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(16, 4, generator=generator), torch.randint(3, (16,), generator=generator)) for _ in range(count)
    ]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def same_bits(one: nn.Module, two: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_equals_the_plain_loop_bit_for_bit():
    walked, plain = net(), net()
    losses = [step.loss.item() for step in descend(walked, sgd(walked), batches(5))]
    optimizer, expected = sgd(plain), []
    for images, labels in batches(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(plain(images), labels)
        loss.backward()
        expected.append(loss.item())
        optimizer.step()
    assert losses == expected
    assert same_bits(walked, plain)


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_equals_the_plain_loop_on_any_model(entry):
    walked, plain = entry.build(0), entry.build(0)
    taken = [entry.batch(seed) for seed in range(4)]
    torch.manual_seed(5)
    losses = [step.loss for step in descend(walked, sgd(walked), taken, loss_fn=entry.loss_fn)]
    torch.manual_seed(5)
    optimizer = sgd(plain)
    for batch, loss in zip(taken, losses, strict=True):
        optimizer.zero_grad()
        own = (entry.loss_fn or default_loss)(plain, batch)
        own.backward()
        optimizer.step()
        assert torch.equal(own, loss) and not loss.requires_grad
    assert same_bits(walked, plain)


def test_a_step_is_seen_before_it_is_taken():
    model = net()
    before = copy.deepcopy(model)
    for step in descend(model, sgd(model), batches(3)):
        weights = [p.clone() for p in model.parameters()]
        assert all(torch.equal(p, q) for p, q in zip(before.parameters(), weights, strict=True)) == (step.index == 0)
        assert all(p.grad is not None for p in model.parameters())
        assert step.batch[0].shape == (16, 4)


def test_break_leaves_the_model_where_it_stands():
    model = net()
    start = [p.clone() for p in model.parameters()]
    for _step in descend(model, sgd(model), batches(3)):
        break
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True))


def test_steps_bounds_the_walk_and_takes_no_batch_more():
    taken = []

    def endless():
        while True:
            taken.append(0)
            yield batches(1)[0]

    model = net()
    assert [step.index for step in descend(model, sgd(model), endless(), steps=4)] == [0, 1, 2, 3]
    assert len(taken) == 4
    assert not list(descend(model, sgd(model), endless(), steps=0))
    assert len(taken) == 4


def test_a_diverged_loss_is_passed_on():
    model = net()
    bad = (torch.full((16, 4), float("nan")), torch.zeros(16, dtype=torch.long))
    losses = [step.loss for step in descend(model, sgd(model), [bad, *batches(1)])]
    assert torch.isnan(losses[0])
    assert len(losses) == 2


def test_before_step_runs_after_the_reader_and_before_the_optimizer():
    model, order = net(), []

    def clip(index: int) -> None:
        order.append(("before_step", index))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.0)

    start = [p.clone() for p in model.parameters()]
    plain = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in descend(model, plain, batches(2), before_step=clip):
        order.append(("reader", step.index))
    assert order == [("reader", 0), ("before_step", 0), ("reader", 1), ("before_step", 1)]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), start, strict=True)), "a gradient clipped to 0"

"""`untouched` restores everything, bit for bit, whatever was done inside."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import ZOO, by_name, disturb, fingerprint, no_trace, scaled

from normscope.errors import InvalidModel
from normscope.model.loss import default_loss
from normscope.model.state import untouched
from normscope.probes.channel_moments import channel_moments
from normscope.probes.relative_loss import relative_loss


def train_a_step(model, entry):
    model.train().requires_grad_()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (entry.loss_fn or default_loss)(model, entry.batch(1)).backward()
    optimizer.step()


def replace_a_parameter(model, entry):
    module, name = next((m, n) for m in model.modules() for n, p in m._parameters.items() if p is not None)
    setattr(module, name, nn.Parameter(torch.zeros_like(getattr(module, name))))
    module.register_buffer("left_behind", torch.zeros(3))
    module.register_parameter("too", nn.Parameter(torch.zeros(3)))


def freeze_and_hook(model, entry):
    for parameter in model.parameters():
        parameter.requires_grad_(not parameter.requires_grad)
        parameter.grad = None
    for module in model.modules():
        module.register_forward_hook(lambda *_: None, always_call=True)
        module.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    model.eval()


def write_in_place(model, entry):
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 7)
            if tensor.grad is not None:
                tensor.grad.mul_(-1)


def draw_random_numbers(model, entry):
    torch.manual_seed(12345)
    torch.randn(17)


ACTIONS = [train_a_step, replace_a_parameter, freeze_and_hook, write_in_place, draw_random_numbers]


@given(
    entry=st.sampled_from(ZOO),
    actions=st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    raises=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_everything_comes_back_whatever_was_done(entry, actions, seed, raises):
    model, batch = disturb(entry.build(seed), seed), entry.batch(seed)
    with no_trace(model, batch):
        try:
            with untouched(model):
                for action in actions:
                    action(model, entry)
                if raises:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert raises


@given(entry=st.sampled_from(ZOO), seed=st.integers(0, 10**6), scale=st.sampled_from([1.0, 1e25, float("nan")]))
@settings(max_examples=40, deadline=None)
def test_the_probes_leave_no_trace(entry, seed, scale):
    if entry.dtype == torch.bfloat16 and scale > 1:
        scale = 1e10
    model, batch = disturb(entry.build(seed), seed), scaled(entry.batch(seed), scale)
    with no_trace(model, batch):
        relative_loss(model, batch, loss_fn=entry.loss_fn, step_sizes=[1e-3, 1.0, 1e8])
        channel_moments(model, batch, loss_fn=entry.loss_fn)


def test_the_fingerprint_sees_what_each_action_does():
    for action in ACTIONS:
        model, entry = disturb(by_name("batch_norm").build(0)), by_name("batch_norm")
        with torch.random.fork_rng(devices=[]):
            before = fingerprint(model)
            action(model, entry)
            assert fingerprint(model) != before, action.__name__


def test_yields_the_values_as_they_were():
    model = by_name("mlp").build(0)
    kept = [p.detach().clone() for p in model.parameters()]
    with untouched(model) as values:
        write_in_place(model, None)
        assert all(torch.equal(values[p], k) for p, k in zip(model.parameters(), kept, strict=True))


def test_random_numbers_go_on_as_if_nothing_had_been_drawn():
    model = nn.Linear(2, 2)
    torch.manual_seed(3)
    expected = torch.randn(5)
    torch.manual_seed(3)
    with untouched(model):
        torch.randn(100)
    assert torch.equal(torch.randn(5), expected)


def test_backward_hooks_go():
    model = nn.Linear(3, 2)
    with no_trace(model), untouched(model):
        model.register_full_backward_hook(lambda *_: None)
        model.register_full_backward_pre_hook(lambda *_: None)
    model.register_backward_hook(lambda *_: None)  # which torch refuses beside full ones


def test_nested():
    model = by_name("cnn_inplace").build(0)
    with no_trace(model), untouched(model):
        write_in_place(model, None)
        with no_trace(model), untouched(model):
            model.eval()


def test_expanded_buffers_and_gradients_are_no_obstacle():
    model = nn.Linear(3, 2)
    model.register_buffer("mask", torch.ones(1).expand(4))
    model.weight.grad = torch.ones(1, 1).expand(2, 3)
    with no_trace(model), untouched(model):
        model.weight.grad = None


def test_sparse_gradients_are_restored():
    model = nn.Embedding(10, 3, sparse=True)
    model(torch.tensor([1, 4])).sum().backward()
    grad, dense = model.weight.grad, model.weight.grad.to_dense()
    with untouched(model):
        model(torch.tensor([2])).sum().backward()
        assert not torch.equal(model.weight.grad.to_dense(), dense)
    assert model.weight.grad is grad
    assert torch.equal(model.weight.grad.to_dense(), dense)


def test_a_lazy_module_is_refused_in_one_line():
    message = r"^the model has lazy parameters .* call it once on a batch first$"
    with pytest.raises(InvalidModel, match=message), untouched(nn.Sequential(nn.LazyLinear(4))):
        pass

"""`untouched` restores everything, bit for bit, whatever was done inside."""

import copy
import random
import signal
import time
from collections import OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from zoo import ZOO, by_name, disturb, everything, fingerprint, no_trace, scaled

import normscope
from normscope.diagnosis.diagnose import diagnose
from normscope.errors import InvalidModel
from normscope.model.loss import default_loss
from normscope.model.state import untouched
from normscope.model.structure import Structure
from normscope.probes.channel_moments import channel_moments
from normscope.probes.moments_along_step import moments_along_step
from normscope.probes.relative_loss import relative_loss
from normscope.probes.sharpness import sharpness


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


class Captures(nn.Module):
    """Hangs hooks on its layers in its first call, notes that it did, and fails where it finds them gone."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(7, 5), nn.Linear(5, 4)
        self.caught = []

    def forward(self, x):
        if not getattr(self, "hooked", False):
            self.body.register_forward_hook(lambda _module, _inputs, output: self.caught.append(output))
            self.hooked = True
        self.caught.clear()
        self.body(x)
        return self.head(self.caught[0].relu())


class RebindsABuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(7, 4)
        self.register_buffer("ema", torch.zeros(4))

    def forward(self, x):
        y = self.body(x)
        self.ema = 0.9 * self.ema + 0.1 * y.mean(0)
        return y - self.ema


class RebindsABufferWithoutGraph(RebindsABuffer):
    def forward(self, x):
        y = super().forward(x)
        self.ema = self.ema.detach()
        return y


class Registers(nn.Module):
    """A parameter, a buffer and a module of its own in every call that does not find them."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(7, 4), None

    def forward(self, x):
        y = self.body(x)
        if self.head is None:
            self.head = nn.Linear(4, 4)
            self.shift = nn.Parameter(torch.ones(4))
            self.register_buffer("calls", torch.zeros(()))
        self.calls += 1
        return self.head(y) + self.calls * self.shift


class Replaces(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(7, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.head(self.body(x))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.body.weight = nn.Parameter(self.body.weight.detach() * 2)
        return y


class Parametrizes(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(7, 4)

    def forward(self, x):
        if not nn.utils.parametrize.is_parametrized(self.body):
            nn.utils.parametrizations.spectral_norm(self.body)
        return self.body(x)


class Freezes(nn.Module):
    """A bias, and thaws it in its next call."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(7, 4)

    def forward(self, x):
        y = self.body(x)
        self.body.bias.requires_grad_(not self.body.bias.requires_grad)
        return y


@dataclass
class Notes:
    calls: int = 0
    seen: list = field(default_factory=list)


class Remembers(nn.Module):
    """In plain attributes of every sort, some in each other."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(7, 4)
        self.cache, self.by_name, self.names, self.last = [], {"inner": [1]}, {"a"}, deque([0], maxlen=2)
        self.order, self.notes, self.plain = OrderedDict(b=1, a=2), Notes(), SimpleNamespace(calls=0)
        self.mean, self.in_a_list = torch.zeros(4), [torch.zeros(4)]
        self.hidden = [nn.BatchNorm1d(4)]

    def forward(self, x):
        y = self.hidden[0](self.body(x))
        self.cache.append(y)
        self.by_name["inner"].append(2)
        self.by_name["other"] = 3
        self.names.add("b")
        self.last.extend([1, 2, 3])
        self.order.move_to_end("b")
        self.notes.calls += 1
        self.notes.seen.append(y)
        self.plain.calls += 1
        self.mean.add_(y.detach().mean(0))
        self.in_a_list[0] += 1
        self.count = getattr(self, "count", 0) + 1
        return y + self.mean + self.in_a_list[0] + self.count + len(self.cache)

    def remembered(self):
        parts = [self.cache, self.by_name, self.names, self.last, list(self.order), self.notes, self.plain]
        return copy.deepcopy([*parts, self.mean.tolist(), self.in_a_list[0].tolist(), fingerprint(self.hidden[0])])


class Draws(nn.Module):
    """From generators of its own, and counts in arrays."""

    def __init__(self):
        super().__init__()
        self.body, self.counts, self.fixed = nn.Linear(7, 4), np.zeros(2), np.ones(2)
        self.fixed.flags.writeable = False
        self.drawn = [torch.Generator().manual_seed(1), random.Random(2), random.SystemRandom()]
        self.more = {"new": np.random.default_rng(3), "old": np.random.RandomState(4)}

    def numbers(self):
        first, second, *_ = self.drawn
        self.counts += 1
        drawn = [torch.randn((), generator=first), second.random(), self.more["new"].random(), self.more["old"].rand()]
        drawn += [random.random(), np.random.rand()]
        return [float(each) for each in (*drawn, *self.counts)]

    def forward(self, x):
        return self.body(x) * sum(self.numbers())


def test_generators_and_arrays_of_its_own_come_back():
    def fresh():
        random.seed(5)
        np.random.seed(6)
        return Draws()

    expected, model = fresh().numbers(), fresh()
    relative_loss(model, BATCH, step_sizes=[0.1])
    with untouched(model) as saved:
        losses = []
        for _ in range(2):
            with saved.one_pass():
                losses.append(float(default_loss(model, BATCH).detach()))
    assert losses[0] == losses[1]
    assert model.numbers() == expected


class MovesItsMemory(nn.Module):
    """Other memory, another dtype, hooks of tensors."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(7, 4)

    def forward(self, x):
        y = self.body(x)
        self.body.bias.register_hook(lambda gradient: gradient)
        self.body.bias.register_post_accumulate_grad_hook(lambda _: None)
        self.body.weight.data = self.body.weight.data * 2
        self.body.bias.data = self.body.bias.data.double()
        return y


CHANGING = [
    Captures,
    RebindsABuffer,
    RebindsABufferWithoutGraph,
    Registers,
    Replaces,
    Parametrizes,
    Freezes,
    Remembers,
    MovesItsMemory,
]
BATCH = torch.randn(6, 7, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 4


@pytest.mark.parametrize("build", CHANGING)
def test_a_model_that_changes_itself_comes_back_as_it_was(build):
    torch.manual_seed(0)
    model = disturb(build())
    before, remembered = everything(model, BATCH), model.remembered() if build is Remembers else None
    with untouched(model) as saved:
        first = default_loss(model, BATCH)
        first.backward()
        assert everything(model, BATCH) != before
        saved.restore()
        saved.restore()
        assert {k: v for k, v in everything(model, BATCH).items() if k != "random state"} == {
            k: v for k, v in before.items() if k != "random state"
        }
        default_loss(model, BATCH).backward()
    assert everything(model, BATCH) == before
    assert not isinstance(model, Remembers) or model.remembered() == remembered
    torch.manual_seed(1)
    expected = default_loss(build_again(build), BATCH)
    torch.manual_seed(1)
    assert torch.equal(default_loss(build_again(build, probed=True), BATCH), expected)


def build_again(build, probed=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        if probed:
            relative_loss(model, BATCH, step_sizes=[0.1, 1.0])
    return model


@pytest.mark.parametrize("build", CHANGING)
def test_probes_of_a_model_that_changes_itself(build):
    torch.manual_seed(0)
    model = build()
    before, remembered = everything(model, BATCH), model.remembered() if build is Remembers else None
    found = relative_loss(model, BATCH, step_sizes=[1e-9, 0.1, 0.2])
    moments = moments_along_step(model, BATCH, step_size=0.2, fractions=[0.0, 0.5, 1.0], layers="body")
    channel_moments(model, BATCH)
    assert everything(model, BATCH) == before
    assert not isinstance(model, Remembers) or model.remembered() == remembered
    # every point starts from the model as it was: nothing that a pass did is there in the next one
    assert float(found["relative_loss"][0]) == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(float(found["loss"][2]), float(moments["loss"][2]), rtol=0, atol=0)
    torch.testing.assert_close(float(found["loss"][1]), float(moments["loss"][1]), rtol=0, atol=0)


@pytest.mark.parametrize("build", [Captures, RebindsABufferWithoutGraph, Registers, Parametrizes])
def test_a_diagnosis_of_a_model_that_changes_itself_blames_no_batch(build):
    torch.manual_seed(0)
    model = build()
    before = everything(model, BATCH)
    diagnose(model, [BATCH] * 3, optimizer="sgd")
    assert everything(model, BATCH) == before


def test_a_buffer_that_was_left_with_a_graph_keeps_it():
    model = RebindsABuffer()
    model(BATCH[0])
    ema = model.ema
    with untouched(model):
        model(BATCH[0])
    assert model.ema is ema and ema.grad_fn is not None


def test_what_was_made_in_inference_mode_is_restored():
    model = nn.Linear(7, 4)
    with torch.inference_mode():
        model.table = torch.ones(3)
        with untouched(model):
            model.table.zero_()
    with untouched(model), torch.inference_mode():
        model.table.zero_()
    assert model.table.tolist() == [1, 1, 1]


def test_views_and_second_names_of_a_tensor_cost_no_second_copy():
    model = nn.Linear(7, 4)
    model.names, model.rows = [model.weight, model.bias], list(model.weight.unbind())
    with untouched(model) as saved:
        assert set(saved) == {model.weight, model.bias}
    assert all(row._base is model.weight for row in model.rows)


def test_the_public_name_is_the_function():
    with normscope.untouched(nn.Linear(2, 2)) as saved:
        assert len(saved) == 2


def test_a_context_that_was_lost_open_does_not_restore_later_on():
    model = by_name("batch_norm").build(0)
    before = everything(model, BATCH)
    with untouched(model):
        model[0].weight.data.zero_()
        lost = untouched(model)
        lost.__enter__()
        model.eval()
    assert everything(model, BATCH) == before
    model.eval()
    lost.__exit__(None, None, None)
    assert not model.training


class Alarm(KeyboardInterrupt):
    pass


def probes_to_interrupt():
    norm = by_name("batch_norm")
    changing, batch = Remembers(), norm.batch(0)
    return [
        (disturb(norm.build(0)), lambda m: relative_loss(m, batch, step_sizes=[1e-3, 0.1])),
        (disturb(norm.build(0)), lambda m: channel_moments(m, batch)),
        (disturb(norm.build(0)), lambda m: sharpness(m, batch, max_products=2)),
        (changing, lambda m: moments_along_step(m, BATCH, step_size=0.1, fractions=[0.0, 1.0], layers="body")),
        (disturb(norm.build(0)), enter_and_leave),
    ]


def enter_and_leave(model):
    for _ in range(5):
        with untouched(model):
            model.train()
            model[0].weight.data.zero_()


# Python drops what a handler raises in the middle of a collection of garbage, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_at_any_moment_leaves_no_trace():
    def ring(*_):
        raise Alarm

    old = signal.signal(signal.SIGALRM, ring)
    rng, arrived, kept = random.Random(0), 0, None
    try:
        for model, probe in probes_to_interrupt():
            start = time.perf_counter()
            probe(model)
            took, before = time.perf_counter() - start, everything(model, BATCH)
            begun, wanted = time.perf_counter(), arrived + 10
            # For a while; on a busy machine, where few signals arrive in time, longer.
            while (lasted := time.perf_counter() - begun) < 0.4 or (arrived < wanted and lasted < 20):
                try:
                    try:
                        signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1.1 * took))
                        probe(model)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Alarm as error:
                    kept = error  # with all frames: nothing may wait until they are dropped
                    arrived += 1
                assert everything(model, BATCH) == before
                assert signal.getsignal(signal.SIGALRM) is ring
    finally:
        signal.signal(signal.SIGALRM, old)
    assert arrived >= 50 and kept is not None


def test_a_signal_while_restoring_is_handled_when_the_model_is_back(monkeypatch):
    model, handled = by_name("batch_norm").build(0), []
    before = everything(model, BATCH)

    def handler(signum, _frame):
        handled.append((signum, everything(model, BATCH) == before))
        raise Alarm

    for sent in (signal.SIGTERM, signal.SIGUSR1):
        monkeypatch.setattr(Structure, "restore", interrupted(sent, Structure.restore))
    old = [signal.signal(each, handler) for each in (signal.SIGTERM, signal.SIGUSR1)]
    try:
        with pytest.raises(Alarm), untouched(model):
            write_in_place(model, None)
    finally:
        for each, previous in zip((signal.SIGTERM, signal.SIGUSR1), old, strict=True):
            signal.signal(each, previous)
    assert sorted(handled) == sorted([(signal.SIGTERM, True), (signal.SIGUSR1, True)])


def interrupted(signum, method):
    def restore(self):
        signal.raise_signal(signum)
        method(self)

    return restore


def test_a_signal_in_the_body_is_handled_at_once_and_handlers_set_there_stay():
    old = signal.getsignal(signal.SIGUSR1)
    came = []
    try:
        signal.signal(signal.SIGUSR1, lambda *_: came.append(1))
        with untouched(nn.Linear(2, 2)), untouched(nn.Linear(2, 2)):
            signal.raise_signal(signal.SIGUSR1)
            assert came == [1]
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_threads_that_probe_models_of_their_own():
    entry = by_name("dropout")
    models = [disturb(entry.build(seed), seed) for seed in range(8)]
    batch, before, state = entry.batch(0), [everything(model, BATCH) for model in models], torch.get_rng_state()

    def probe(model):
        for _ in range(5):
            relative_loss(model, batch, step_sizes=[0.1, 1.0])
            channel_moments(model, batch)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(probe, models))
    assert [everything(model, BATCH) for model in models] == before
    assert torch.equal(torch.get_rng_state(), state)


def test_of_overlapping_contexts_the_last_restores_the_random_state_of_the_first():
    first, second = untouched(nn.Linear(2, 2)), untouched(nn.Linear(2, 2))
    before = torch.get_rng_state()
    first.__enter__()
    torch.randn(3)
    second.__enter__()
    torch.randn(3)
    first.__exit__(None, None, None)
    torch.randn(3)
    second.__exit__(None, None, None)
    assert torch.equal(torch.get_rng_state(), before)


def test_inside_another_large_tensors_are_copied_only_where_their_bits_differ():
    model = nn.Linear(1024, 1024)
    model.weight.data.zero_()
    with untouched(model) as outer:
        with untouched(model) as inner:
            assert inner[model.weight] is outer[model.weight]
            assert inner[model.bias] is not outer[model.bias]
            model.weight.data.fill_(1)
        assert not model.weight.any()
        model.weight.data[0, 0] = -0.0  # equal, but not in its bits
        with untouched(model) as inner:
            assert inner[model.weight] is not outer[model.weight]
            model.weight.data.fill_(1)
        assert model.weight[0, 0].signbit()
    assert not model.weight[0, 0].signbit()

"""`ns.watch` beside a training: what it measures, that it changes nothing, and when it measures."""

import copy
import math
import multiprocessing
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, by_name, disturb, no_trace

import normscope as ns
from normscope.errors import InvalidConfig, TrainingAlarm
from normscope.model.loss import default_loss
from normscope.monitoring.critical_multiple import PASSES, critical_multiple
from normscope.monitoring.measurement import measure
from normscope.monitoring.next_update import NextUpdate
from normscope.monitoring.schedule import Schedule

pytestmark = pytest.mark.usefixtures("one_thread")


def network() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout(0.2)]
    return nn.Sequential(*body, nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4))


def batch_of(step: int):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 8, 8, generator=generator), torch.randint(4, (8,), generator=generator)


SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}


def train(model, optimizer, *, watched=None, steps=12, place="before", autocast=False, scaler=None, accumulate=1):
    """A loop as people write it."""
    torch.manual_seed(1)
    seen = ns.watch(model, optimizer, **watched) if watched is not None else None
    for step in range(steps):
        batch = batch_of(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(model(batch[0]).float(), batch[1])
        if seen is not None and place == "before backward":
            seen.step(loss, batch)
        (loss if scaler is None else scaler.scale(loss)).backward()
        if seen is not None and place == "before":
            seen.step(loss, batch)
        if (step + 1) % accumulate == 0:
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            optimizer.zero_grad()
        if seen is not None and place == "after":
            seen.step(loss, batch)
    return seen


def bits(model, optimizer):
    state = [t for s in optimizer.state.values() for t in s.values() if isinstance(t, torch.Tensor)]
    return [*model.state_dict().values(), *state, torch.random.get_rng_state()]


LOOPS = {
    "before": {},
    "after": {"place": "after"},
    "before backward": {"place": "before backward"},
    "autocast": {"autocast": True},
    "scaler": {"scaler": True},
    "accumulating": {"accumulate": 3},
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_training_has_the_same_bits_with_and_without(loop, kind, tmp_path):
    ends = []
    for watched in (None, {"every": 3, "out": tmp_path / "flight"}):
        model = network()
        optimizer = kind(model.parameters(), **(SGD if kind is torch.optim.SGD else {"lr": 0.01}))
        options = dict(LOOPS[loop])
        if options.get("scaler"):
            options["scaler"] = torch.amp.GradScaler("cpu", init_scale=64.0)
        seen = train(model, optimizer, watched=watched, **options)
        ends.append(bits(model, optimizer))
    assert seen is not None and len(seen.measurements) == 4 and not seen.notes
    assert len(ends[0]) == len(ends[1])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_a_compiled_model_is_measured_without_a_graph_break():
    import torch._dynamo as dynamo

    ends = []
    for watched in (None, {"every": 3}):
        dynamo.reset()
        dynamo.utils.counters.clear()
        model = network()
        compiled = torch.compile(model, backend="aot_eager")
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        seen = train(compiled, optimizer, watched=watched, steps=6)
        ends.append((bits(model, optimizer), dict(dynamo.utils.counters["stats"])))
        assert not dynamo.utils.counters["graph_break"]
    assert ends[0][1] == ends[1][1], "compiled anew"
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0], ends[1][0], strict=True))
    assert seen is not None and seen.measurements[0].layers == ["0", "4", "7"]


def test_sharpness_on_request_is_that_of_the_probe_and_changes_nothing():
    def started():
        model = network()
        model[3] = nn.Identity()  # without dropout the probe sees the loss that the watch saw
        return model, torch.optim.SGD(model.parameters(), **SGD)

    ends = []
    for watched in (None, {"every": 4, "sharpness": True}):
        model, optimizer = started()
        seen = train(model, optimizer, watched=watched, steps=5)
        ends.append(bits(model, optimizer))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    model, optimizer = started()
    train(model, optimizer, steps=3)
    by_hand = ns.sharpness(model, batch_of(3), tolerance=1e-2, max_products=30)["eigenvalue"][0]
    assert seen is not None and seen.record()["sharpness"].values.tolist() == [float(by_hand)]


class OnceOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad


def test_where_there_is_no_sharpness_the_rest_is_measured(capsys):
    class Once(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(64, 4)

        def forward(self, x):
            return OnceOnly.apply(self.body(x.flatten(1)))

    model = Once()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = train(model, optimizer, watched={"every": 1, "sharpness": True}, steps=3)
    assert seen is not None and len(seen.measurements) == 3 and "sharpness" not in seen.record()
    assert capsys.readouterr().err.count("no sharpness from step 0 on") == 1


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_model_in_ddp_is_measured_as_the_bare_one(one_process):
    ends = []
    for wrap in (nn.parallel.DistributedDataParallel, lambda model: model):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), **SGD)
        seen = train(wrap(model), optimizer, watched={"every": 3})
        ends.append((bits(model, optimizer), seen.measurements[-1].scalars["critical_multiple"]))
    assert ends[0][1] == ends[1][1]
    assert all(torch.equal(a, b) for a, b in zip(ends[0][0], ends[1][0], strict=True))


def one_of_two(rank: int, folder, watched: bool) -> None:
    """The training of one process of two; its bits, and what it has measured, go into a file."""
    torch.set_num_threads(1)
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{watched}", rank=rank, world_size=2)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    wrapped = nn.parallel.DistributedDataParallel(model)
    seen = ns.watch(wrapped, optimizer, every=2) if watched else None
    for step in range(4):
        optimizer.zero_grad()
        batch = batch_of(2 * step + rank)
        loss = F.cross_entropy(wrapped(batch[0]), batch[1])
        loss.backward()
        if seen is not None:
            seen.step(loss, batch)
        optimizer.step()
    measured = len(seen.measurements) if seen is not None else 0
    torch.save([*model.state_dict().values(), torch.tensor(measured)], f"{folder}/{watched}-{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_of_ddp_train_as_without_and_the_first_measures(tmp_path, monkeypatch):
    """In processes that are spawned: a fork of one in which gloo or autograd had threads may wait for ever."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    spawn = multiprocessing.get_context("spawn")
    for watched in (False, True):
        both = [spawn.Process(target=one_of_two, args=(rank, tmp_path, watched)) for rank in range(2)]
        for process in both:
            process.start()
        for process in both:
            process.join(300)
            process.kill()  # one that waits for another, which is no more
            process.join()
        assert [process.exitcode for process in both] == [0, 0]
    found = {(w, r): torch.load(tmp_path / f"{w}-{r}.pt", weights_only=True) for w in (False, True) for r in range(2)}
    for rank in range(2):
        pairs = zip(found[False, rank][:-1], found[True, rank][:-1], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert [int(found[True, rank][-1]) for rank in range(2)] == [2, 0]


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="this torch shards nothing on a CPU")
def test_of_a_sharded_model_only_what_is_free_is_watched(one_process, capsys):
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    mesh = torch.distributed.init_device_mesh("cpu", (1,))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = train(model, optimizer, watched={"every": 1}, steps=3)
    assert "the model is sharded: only loss and rate are watched" in capsys.readouterr().err
    assert not seen.measurements and seen.record()["loss"].notnull().all()


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_a_measurement_leaves_no_trace(entry):
    model, batch = disturb(entry.build(0)), entry.batch(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = copy.deepcopy(optimizer.state_dict())
    with no_trace(model, batch):
        found = measure(model, optimizer, batch, step=0, loss_fn=entry.loss_fn)
    assert optimizer.state_dict() == before
    assert found.scalars["measured_loss"] > 0 and len(found.tried) <= PASSES


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "maximize": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, maximize=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "groups": lambda p: torch.optim.SGD([{"params": (q := list(p))[:2], "lr": 0.5}, {"params": q[2:]}], lr=0.01),
}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_next_update_is_the_step_that_the_optimizer_then_makes(name, steps):
    entry = by_name("mlp")
    model = entry.build(0).double()
    x, y = entry.batch(0)
    x = x.double()
    optimizer = OPTIMIZERS[name](model.parameters())

    def move(seed):
        optimizer.zero_grad()
        F.cross_entropy(model(x + seed), y).backward()
        optimizer.step()

    for step in range(steps):
        move(step)
    parameters = list(model.parameters())
    starts = [p.detach().clone() for p in parameters]
    gradients = list(torch.autograd.grad(F.cross_entropy(model(x), y), parameters))
    slope = NextUpdate(optimizer, model)
    kept = [g.clone() for g in gradients]
    with torch.no_grad():
        updates = [u.clone() for u in slope(parameters, starts, gradients)]
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.copy_(start)
    move(0)
    for parameter, start, update in zip(parameters, starts, updates, strict=True):
        torch.testing.assert_close(parameter.detach() - start, update)  # float64
    expected = sum(float((g * u).sum()) for g, u in zip(kept, updates, strict=True))
    assert float(slope.slope) == pytest.approx(expected)


@pytest.mark.parametrize("stable", [0.02, 0.3, 0.7, 1.0001, 3.0, 50.0, 900.0])
@pytest.mark.parametrize("guess", [None, 0.9, 2.0])
def test_on_a_parabola_the_critical_multiple_is_known(stable, guess):
    passes = []

    def loss_at(s):
        passes.append(s)
        return (1 - 2 * s / stable) ** 2

    found = critical_multiple(loss_at, 1.0, slope=-4 / stable, guess=guess)
    assert len(passes) <= PASSES
    assert found.low <= stable <= found.high
    assert found.low > 0 and found.high <= 4 * max(found.low, 1 / 256)


def test_a_step_that_raises_the_loss_at_once_has_no_multiple_and_one_that_never_does_has_no_end():
    assert critical_multiple(lambda s: 1 + s, 1.0, slope=1.0).value == 0
    assert math.isinf(critical_multiple(lambda s: 1 / (1 + s), 1.0).high)
    assert critical_multiple(lambda s: math.nan, 1.0).low == 0


def test_activations_gradients_and_logits_equal_the_naive_ones():
    entry = by_name("attention")
    model, batch = entry.build(0), entry.batch(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = measure(model, optimizer, batch, step=0)
    twin, (x, y) = copy.deepcopy(model).double(), (batch[0].double(), batch[1])
    outputs = {}
    for path in ("feed_forward.1", "feed_forward.3", "head"):
        twin.get_submodule(path).register_forward_hook(lambda m, i, o, path=path: outputs.update({path: o}))
    logits = twin(x)
    F.cross_entropy(logits, y).backward()
    per_layer = {name: dict(zip(found.layers, values, strict=True)) for name, values in found.per_layer.items()}
    for path, output in outputs.items():
        own = [p.grad for p in twin.get_submodule(path).parameters()]
        norm = math.sqrt(sum(float(g.square().sum()) for g in own))
        assert per_layer["activation_size"][path] == pytest.approx(
            float(output.detach().square().mean().sqrt()), rel=1e-5
        )
        assert per_layer["layer_gradient_norm"][path] == pytest.approx(norm, rel=1e-4)  # float32 against float64
    total = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters()))
    assert found.scalars["measured_gradient_norm"] == pytest.approx(total, rel=1e-4)
    assert found.scalars["output_logit"] == pytest.approx(float(logits.detach().abs().max()), rel=1e-5)
    mapped = F.linear(twin.norm(x), twin.attention.in_proj_weight, twin.attention.in_proj_bias)
    q, k = mapped.detach().split(8, -1)[:2]
    q, k = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k))
    scores = (q @ k.transpose(-2, -1)) / 2
    assert found.scalars["attention_logit"] <= float(scores.max()) * (1 + 1e-5)
    assert found.scalars["attention_logit"] >= float(scores[:2].max()) * (1 - 1e-5)


def test_what_overflows_is_kept_and_its_share_is_told():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].weight[0] = math.inf
    batch = torch.ones(5, 3), torch.tensor([0, 1, 0, 1, 0])
    found = measure(model, torch.optim.SGD(model.parameters(), lr=0.1), batch, step=0)
    assert found.per_layer["not_finite"].tolist() == [0.25, 1.0]
    assert math.isinf(found.per_layer["activation_size"][0])


def test_batch_norms_gap_is_the_loss_in_evaluation_over_that_in_training():
    entry = by_name("batch_norm")
    model, batch = entry.build(0), entry.batch(0)
    found = measure(model, torch.optim.SGD(model.parameters(), lr=0.1), batch, step=0)
    train_loss, eval_loss = (
        float(default_loss(copy.deepcopy(model).train(mode), batch).detach()) for mode in (True, False)
    )
    assert found.scalars["batch_norm_gap"] == pytest.approx(eval_loss / train_loss, rel=1e-5)
    assert "attention_logit" not in found.scalars


def taken(schedule: Schedule, now: list[float], steps: int, *, suspicious_from: int = 10**9) -> list[int]:
    """The steps, of a second each, at which a measurement of five seconds was taken."""
    found = []
    for step in range(1, steps + 1):
        now[0] += 1.0
        if schedule.due(step, suspicious=step >= suspicious_from):
            now[0] += 5.0
            schedule.spend(5.0, measurement=True)
            found.append(step)
    return found


def test_the_schedule_keeps_to_its_share_and_every_wins():
    now = [0.0]
    schedule = Schedule(0.02, None, lambda: now[0])
    found = taken(schedule, now, 5000)
    assert found[0] == 2 and len(found) == 20, "the first on credit, then one in 250 steps"
    assert found[1] == 500, "which pay it back before the next"
    assert schedule.share <= 0.02
    fixed = Schedule(0.02, 4, lambda: now[0])
    assert [step for step in range(1, 13) if fixed.due(step)] == [4, 8, 12]


def test_where_it_is_suspicious_one_more_is_taken_on_credit():
    now = [0.0]
    schedule = Schedule(0.02, None, lambda: now[0])
    found = taken(schedule, now, 5000, suspicious_from=40)
    assert found[:4] == [2, 40, 250, 500]
    assert schedule.share == pytest.approx(0.02 + 2 * 5 / 5000)


def test_the_norm_that_a_loop_clips_to_is_seen():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with ns.watch(model, optimizer) as seen:
        for step in range(12):
            optimizer.zero_grad()
            loss = default_loss(model, batch_of(step))
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            seen.step(loss, batch_of(step))
            assert step < 9 or seen.signals.clip_norm == pytest.approx(0.25, rel=1e-3)
            optimizer.step()


def test_the_record_is_a_labelled_dataset_over_steps_measurements_and_layers():
    model = network()
    seen = train(model, torch.optim.AdamW(model.parameters(), lr=0.01), watched={"every": 4})
    record = seen.record()
    assert dict(record.sizes) == {"step": 12, "measurement": 3, "layer": 3}
    assert record["measurement"].values.tolist() == [3, 7, 11]
    assert all({"long_name", "units"} <= set(v.attrs) for v in record.variables.values())
    assert not record["gradient_seen"].values[0] and np.isfinite(record["gradient_norm"].values[1:]).all()
    assert np.isfinite(record["adam_lag"]).all() and record["called"].all()


def test_a_batch_that_cannot_be_measured_ends_the_measuring_and_not_the_training(capsys):
    model = network()
    with ns.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), every=1) as seen:
        for _ in range(2):
            seen.step(torch.tensor(1.0), "no batch")
    assert len(seen.notes) == 1 and "nothing is measured from step 0 on" in capsys.readouterr().err
    assert seen.record().sizes["step"] == 2


def test_the_hook_on_the_optimizer_goes_when_the_watch_is_closed():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ns.watch(model, optimizer):
        assert len(optimizer._optimizer_step_pre_hooks) == 1
    assert not optimizer._optimizer_step_pre_hooks


def explode(on_alarm):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with ns.watch(model, optimizer, every=2, on_alarm=on_alarm) as seen:
        for step in range(12):
            if seen.should_stop:
                break
            if step == 6:
                optimizer.param_groups[0]["lr"] = 1e6
            optimizer.zero_grad()
            loss = default_loss(model, batch_of(step))
            loss.backward()
            seen.step(loss, batch_of(step))
            optimizer.step()
    return seen


def test_an_alarm_is_told_and_can_stop_or_raise_or_be_handed_over(capsys):
    told = []
    seen = explode(told.append)
    assert [alarm.kind for alarm in told] == ["rate"] and told == seen.alarms and not seen.should_stop
    assert told[0].step == 7 and "the loss is" in told[0].sentence and capsys.readouterr().err == ""
    assert explode("tell").steps == 12
    assert "normscope: step 7" in capsys.readouterr().err
    assert explode("stop").steps == 8
    with pytest.raises(TrainingAlarm, match="step 7"):
        explode("raise")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overhead": 0}, "overhead is a share"),
        ({"every": 0}, "every is a number of steps"),
        ({"on_alarm": "shout"}, "on_alarm is a function or one of tell, stop, raise"),
        ({"optimizer": "sgd"}, "takes the torch optimizer"),
        ({"model": lambda x: x}, "takes the nn.Module"),
    ],
)
def test_what_cannot_be_watched_is_refused_in_one_line(options, message):
    model = network()
    given = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)} | options
    with pytest.raises(InvalidConfig, match=message):
        ns.watch(**given)


def test_an_optimizer_of_another_model_and_a_loss_of_many_numbers_are_told(capsys):
    model = network()
    watch = ns.watch(model, torch.optim.SGD(network().parameters(), lr=0.1))
    assert "the optimizer holds none of this model's parameters" in capsys.readouterr().err
    with pytest.raises(InvalidConfig, match=r"one number, not \(8,\)"):
        watch.step(F.cross_entropy(model(batch_of(0)[0]), batch_of(0)[1], reduction="none"), batch_of(0))
    watch.close()


def test_numbers_that_no_file_takes_end_the_record_and_not_the_training(tmp_path, capsys):
    model = nn.Linear(4, 3)
    batch = torch.eye(4).to_sparse(), torch.arange(4) % 3, torch.ones(2, dtype=torch.complex64), torch.tensor([])

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0].to_dense()), batch[1])

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ns.watch(model, optimizer, loss_fn, every=1, out=tmp_path) as watch:
        for _ in range(3):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            watch.step(loss, batch)
            optimizer.step()
        watch.step(torch.tensor(math.inf), batch)  # with a post-mortem
    assert watch.steps == 4 and len(watch.measurements) == 3 and watch.postmortem is not None
    assert [note for note in watch.notes if "no flight record" not in note] == []


def test_a_gradient_whose_norm_cannot_be_taken_is_a_note(capsys, monkeypatch):
    def fails(_):
        raise RuntimeError("no norm of these")

    monkeypatch.setattr("normscope.monitoring.watch.gradient_norm", fails)
    model = network()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1), watched={"every": 2}, steps=3)
    assert "the gradient's norm is not seen: no norm of these" in capsys.readouterr().err


def test_a_model_without_parameters_is_watched_for_its_loss():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with ns.watch(nn.Flatten(), optimizer) as watch:
        watch.step(1.0)
    assert watch.record().sizes["step"] == 1


def test_several_watches_of_one_training_change_nothing(tmp_path):
    alone = network()
    train(alone, torch.optim.SGD(alone.parameters(), **SGD))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), **SGD)
    with ns.watch(model, optimizer, every=3) as other, ns.watch(model[0], optimizer) as part:
        train(model, optimizer, watched={"every": 2, "out": tmp_path})
        other.step(1.0, batch_of(0))
        part.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), model.state_dict().values(), strict=True))


class Drops(nn.Module):
    """Half of its numbers, by Python's and numpy's dice."""

    def forward(self, x):
        return x * (random.random() < 0.5) + x * np.random.rand()


def test_a_model_that_draws_from_python_and_numpy_trains_as_without():
    def trained(watched):
        random.seed(0)
        np.random.seed(0)
        model = nn.Sequential(network(), Drops())
        train(model, torch.optim.SGD(model.parameters(), lr=0.05), watched=watched)
        return [*model.state_dict().values(), torch.tensor([random.random(), np.random.rand()])]

    assert all(torch.equal(a, b) for a, b in zip(trained(None), trained({"every": 1}), strict=True))

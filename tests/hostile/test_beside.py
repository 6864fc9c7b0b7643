"""Beside other work: a watched training that is killed, and eight threads that probe models of their own."""

import os
import random
import select
import signal
import struct
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
import xarray as xr
from torch import nn

import normscope as ns
from normscope.errors import ResultError
from normscope.model.loss import default_loss
from normscope.monitoring.flight import read_flight

pytestmark = pytest.mark.usefixtures("one_thread")

EVERY, STEPS, ROW = 3, 60, struct.Struct("qd")


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))


def batch_of(step: int):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(8, 12, generator=generator)
    return x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()


def train(folder: Path | None, tell) -> None:
    """A training that tells of each step once the watch has it."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    seen = ns.watch(model, optimizer, every=EVERY, out=folder) if folder else None
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = default_loss(model, batch_of(step))
        loss.backward()
        if seen is not None:
            seen.step(loss, batch_of(step))
        optimizer.step()
        tell(step, float(loss.detach()))
    if seen is not None:
        seen.close()


def killed(folder: Path, after: int, seconds: float) -> list[tuple[int, float]]:
    """What a training in a process of its own has told, killed so many seconds after it told of step `after`."""
    there, here = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
        child = os.fork()
    if not child:
        os.close(there)
        train(folder, lambda step, loss: os.write(here, ROW.pack(step, loss)))
        os._exit(0)
    os.close(here)
    told = b""
    try:
        while len(told) <= after * ROW.size and select.select([there], [], [], 30)[0]:
            if not (part := os.read(there, 4096)):
                break
            told += part
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    finally:
        os.waitpid(child, 0)
    while part := os.read(there, 4096):
        told += part
    os.close(there)
    return list(ROW.iter_unpack(told[: len(told) // ROW.size * ROW.size]))


def test_a_killed_training_loses_at_most_what_came_after_the_last_measurement(attack, tries, chance, tmp_path):
    losses: list[float] = []
    train(None, lambda _, loss: losses.append(loss))
    for number in tries(6, 200):
        draw: random.Random = chance(number)
        with attack.one(number):
            folder = tmp_path / str(number)
            told = killed(folder, draw.randrange(STEPS - 1), draw.random() * 0.02)
            assert [loss for _, loss in told] == losses[: len(told)], "the training has the bits of one without a watch"
            measured = [step for step, _ in told if (step + 1) % EVERY == 0]
            try:
                flight = read_flight(folder)
            except ResultError:
                assert not told
                continue
            assert not flight.damaged
            if measured:
                assert flight.record["loss"].values.tolist()[: measured[-1] + 1] == losses[: measured[-1] + 1]
                assert set(measured) <= set(flight.record["measurement"].values.tolist())
                assert flight.weights is not None


PROBES = {
    "relative_loss": lambda model, batch: ns.relative_loss(model, batch, step_sizes=[0.1]),
    "channel_moments": ns.channel_moments,
    "gradient_norms": ns.gradient_norms,
    "sharpness": lambda model, batch: ns.sharpness(model, batch, max_products=3),
}


def test_eight_threads_probe_models_of_their_own(attack, tries):
    for number in tries(3, 100):
        with attack.one(number):
            models = [network(8 * number + i) for i in range(8)]
            before = [[t.clone() for t in model.state_dict().values()] for model in models]
            alone = [PROBES[name](models[0], batch_of(0)) for name in PROBES]
            found: list[list[xr.Dataset]] = [[] for _ in models]
            torch.manual_seed(number)
            random_state = torch.get_rng_state()

            def probe(i: int, models=models, found=found) -> None:
                for name in PROBES:
                    found[i].append(PROBES[name](models[i], batch_of(0)))

            threads = [threading.Thread(target=probe, args=(i,)) for i in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert [len(each) for each in found] == [len(PROBES)] * 8
            assert torch.equal(torch.get_rng_state(), random_state)
            for model, tensors in zip(models, before, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), tensors, strict=True))
                assert all(not module._forward_hooks and module.training for module in model.modules())
            for ours, theirs in zip(found[0][:3], alone[:3], strict=True):  # sharpness draws from torch's own numbers
                xr.testing.assert_identical(ours, theirs)

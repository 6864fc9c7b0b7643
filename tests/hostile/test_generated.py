"""Generated models under every instrument, some of the calls interrupted by a signal: the model is as it was, and goes
on as one that was never probed."""

import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hostile_models import generated
from torch import nn
from zoo import everything

from benchmarks.calls import CALLS, PROBES, SEARCHES, SURGERY
from normscope.errors import NormscopeError
from normscope.model.loss import default_loss

pytestmark = pytest.mark.usefixtures("one_thread")

LONG_SHARE = 0.02
"""Of searches among the tries, since each takes a second or more."""


class Alarm(KeyboardInterrupt):
    """What the signal's handler raises."""


def ring(*_: object) -> None:
    raise Alarm


def said_in_one_line(call: Callable[[], Any]) -> str:
    try:
        call()
    except NormscopeError as error:
        assert "\n" not in str(error)
        assert "bug in normscope" not in str(error), error
        return str(error)
    return ""


def goes_on(model: nn.Module, batch: Any, loss_fn: Any = default_loss) -> list[Any]:
    """Two steps of training: the losses, and all bits after them."""
    torch.manual_seed(0)
    random.seed(0)
    found: list[Any] = []
    for _ in range(2):
        try:
            loss = loss_fn(model.train(), batch)
            loss.backward()
        except RuntimeError as error:  # frozen all over, say
            found.append(str(error))
            continue
        found.append(float(loss.detach()))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad.to_dense()
    return found + [t.detach().numpy().tobytes() for t in (*model.parameters(), *model.buffers())]


def cannot_be_trained(number: int) -> bool:
    """Whether torch itself refuses two steps of training of the model."""
    model, batch, given = generated(number)
    return any(isinstance(each, str) for each in goes_on(model, batch, **given))


def call_of(number: int) -> str:
    chance = random.Random(-1 - number)
    return chance.choice(list(SEARCHES if chance.random() < LONG_SHARE else {**PROBES, **SURGERY}))


@pytest.mark.filterwarnings("ignore")
def test_generated_models(attack, tries):
    for number in tries(250, 8000):
        name = call_of(number)
        with attack.one(f"{name} of model {number}"):
            model, batch, given = generated(number)
            before = everything(model)
            said = said_in_one_line(lambda name=name, m=model, b=batch, given=given: CALLS[name](m, b, **given))
            assert_same(everything(model), before)
            assert "RuntimeError" not in said or cannot_be_trained(number), said
            if number % 4 == 0:
                again, _, _ = generated(number)
                assert goes_on(model, batch, **given) == goes_on(again, batch, **given)


# Python drops what a handler raises in the middle of a collection of garbage, and says so.
@pytest.mark.filterwarnings("ignore")
def test_generated_models_and_signals(attack, tries):
    took: dict[str, float] = defaultdict(lambda: 0.05)
    old = signal.signal(signal.SIGALRM, ring)
    try:
        for number in tries(60, 2000):
            name = call_of(number)
            with attack.one(f"{name} of model {number}"):
                model, batch, given = generated(number)
                before, latest = everything(model), took[name]
                while latest > 1e-4:
                    begun = time.perf_counter()
                    if was_interrupted(random.Random(number).uniform(1e-5, latest), CALLS[name], model, batch, given):
                        break
                    latest = min(latest, time.perf_counter() - begun) / 2
                    assert_same(everything(model), before)
                took[name] = max(latest, time.perf_counter() - begun)
                assert_same(everything(model), before)
                assert signal.getsignal(signal.SIGALRM) is ring
                if number % 4 == 0:
                    assert goes_on(model, batch, **given) == goes_on(generated(number)[0], batch, **given)
    finally:
        signal.signal(signal.SIGALRM, old)


def was_interrupted(seconds: float, call: Callable[..., Any], model: nn.Module, batch: Any, given: Any) -> bool:
    """Whether the signal came before the call was over."""
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            said_in_one_line(lambda: call(model, batch, **given))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except Alarm:
        return True
    return False


def assert_same(after: dict[str, object], before: dict[str, object]) -> None:
    changed = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
    assert not changed, f"changed: {', '.join(changed)}"


def test_the_generated_models_compute_and_change_themselves():
    changed = 0
    for number in range(60):
        model, batch, given = generated(number)
        before = everything(model)
        loss = given.get("loss_fn", default_loss)(model, batch)
        assert loss.shape == ()
        changed += everything(model) != before
    assert changed > 20

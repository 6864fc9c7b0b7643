"""Calls that cannot be right: every instrument says in one line what is wrong, or gives its answer; the model is as it
was, and so is torch."""

import itertools
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
import torch.nn.functional as F
import xarray as xr
from torch import Tensor, nn

import normscope as ns
from benchmarks.calls import CALLS, PROBES
from normscope.errors import NormscopeError

pytestmark = pytest.mark.usefixtures("one_thread")


def net() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(6, 16, generator=generator), torch.arange(6) % 3


class Odd(nn.Module):
    """A net that does something before it computes."""

    def __init__(self, act: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.inner, self.act = net(), act

    def forward(self, x: Tensor) -> Any:
        found = self.act(self)
        return self.inner(x) if found is None else found


class Abort(BaseException):
    """Of somebody's own."""


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class RaisingProperty(nn.Sequential):
    @property
    def device(self) -> Any:
        raise RuntimeError("no device")

    @property
    def channel_dim(self) -> Any:
        raise RuntimeError("no channels")


class RaisingGetattr(nn.Sequential):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("0", "1", "2", "3", "4"):
            return super().__getattr__(name)
        raise RuntimeError(f"no {name}")


class RaisingParameters(nn.Sequential):
    def parameters(self, recurse: bool = True) -> Any:
        raise RuntimeError("no parameters")


def exits(code: Any) -> Callable[[Any], Any]:
    return lambda *_: sys.exit(code)


def raises(error: BaseException) -> Callable[[Any], Any]:
    def act(*_: Any) -> Any:
        raise error

    return act


def forever(module: nn.Module) -> Any:
    return forever(module)


def wrapping(module: nn.Module) -> nn.Sequential:
    return nn.Sequential(net()[:-1], module)


def torchscript(module: nn.Module) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(module)


MODELS: dict[str, Callable[[], Any]] = {
    "TorchScript": lambda: torchscript(net()),
    "TorchScript inside": lambda: wrapping(torchscript(nn.Linear(8, 3))),
    "on meta": lambda: net().to("meta"),
    "in part on meta": lambda: wrapping(nn.Linear(8, 3, device="meta")),
    "None": lambda: None,
    "text": lambda: "resnet18",
    "class": lambda: nn.Linear,
    "weights": lambda: net().state_dict(),
    "tensor": lambda: torch.zeros(3),
    "no parameters": lambda: nn.Flatten(),
    "frozen": lambda: net().requires_grad_(False),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(3)),
    "double": lambda: net().double(),
    "half": lambda: net().half(),
    "complex": lambda: nn.Sequential(nn.Linear(16, 3, dtype=torch.complex64)),
    "property": lambda: RaisingProperty(*net()),
    "getattr": lambda: RaisingGetattr(*net()),
    "parameters()": lambda: RaisingParameters(*net()),
    "exit 0": lambda: Odd(exits(0)),
    "exit text": lambda: Odd(exits("gone")),
    "exit None": lambda: Odd(exits(None)),
    "BaseException": lambda: Odd(raises(Abort("enough"))),
    "StopIteration": lambda: Odd(raises(StopIteration())),
    "AssertionError": lambda: Odd(raises(AssertionError())),
    "an error without text": lambda: Odd(raises(Unreadable())),
    "many lines": lambda: Odd(raises(ValueError("a\nb\n" * 500))),
    "recursion": lambda: Odd(forever),
    "gives a list": lambda: Odd(lambda _: []),
    "gives text": lambda: Odd(lambda _: "logits"),
    "gives a number": lambda: Odd(lambda _: 1.0),
    "gives a constant": lambda: Odd(lambda _: torch.zeros(6, 3)),
    "gives NaN": lambda: Odd(lambda m: next(m.parameters()).sum() * torch.full((6, 3), math.nan)),
    "gives no gradient": lambda: Odd(lambda m: m.inner(torch.zeros(6, 16)).detach()),
    "gives integers": lambda: Odd(lambda _: torch.zeros(6, 3, dtype=torch.long)),
    "gives complex": lambda: Odd(lambda m: m.inner(torch.zeros(6, 16)) * 1j),
    "gives sparse": lambda: Odd(lambda m: m.inner(torch.zeros(6, 16)).to_sparse()),
    "turns gradients off": lambda: Odd(lambda _: torch.set_grad_enabled(False) and None),
    "drops a layer": lambda: Odd(lambda m: m.inner.__delitem__(0)),
}

BATCHES: dict[str, Callable[[], Any]] = {
    "sparse inputs": lambda: (batch()[0].to_sparse(), batch()[1]),
    "inputs on meta": lambda: (batch()[0].to("meta"), batch()[1]),
    "labels on meta": lambda: (batch()[0], batch()[1].to("meta")),
    "inputs that require gradients": lambda: (batch()[0].requires_grad_(), batch()[1]),
    "inputs with a history": lambda: (batch()[0].requires_grad_() * 2, batch()[1]),
    "complex inputs": lambda: (batch()[0] + 1j, batch()[1]),
    "double inputs": lambda: (batch()[0].double(), batch()[1]),
    "integer inputs": lambda: (batch()[0].long(), batch()[1]),
    "NaN": lambda: (batch()[0] * math.nan, batch()[1]),
    "inf": lambda: (batch()[0] * math.inf, batch()[1]),
    "a wrong shape": lambda: (batch()[0][:, :5], batch()[1]),
    "a wrong number of labels": lambda: (batch()[0], batch()[1][:4]),
    "labels out of range": lambda: (batch()[0], batch()[1] + 2**40),
    "negative labels": lambda: (batch()[0], batch()[1] - 3),
    "labels that are floats": lambda: (batch()[0], batch()[1].double()),
    "labels that are complex": lambda: (batch()[0], batch()[1] * 1j),
    "boolean labels": lambda: (batch()[0], batch()[1].bool()),
    "scalar labels": lambda: (batch()[0], torch.tensor(1)),
    "sparse labels": lambda: (batch()[0], batch()[1].to_sparse()),
    "no labels": lambda: batch()[0],
    "one example": lambda: (batch()[0][:1], batch()[1][:1]),
    "no example": lambda: (batch()[0][:0], batch()[1][:0]),
    "three parts": lambda: (*batch(), batch()[1]),
    "arrays": lambda: tuple(part.numpy() for part in batch()),
    "None": lambda: None,
    "text": lambda: "batch",
    "a number": lambda: 3,
    "empty": lambda: (),
    "a mapping without labels": lambda: {"input": batch()[0]},
    "a mapping of nothing": lambda: {},
    "a mapping of numbers": lambda: {1: batch()[0], 2: batch()[1]},
    "a generator": lambda: (part for part in batch()),
    "a model": net,
    "deep": lambda: _deep(10_000),
    "expanded": lambda: (torch.ones(1, 1).expand(6, 16), batch()[1]),
    "of inference mode": lambda: _of_inference_mode(),
    "quantized": lambda: (torch.quantize_per_tensor(batch()[0], 0.1, 0, torch.qint8), batch()[1]),
}

LOSSES: dict[str, Any] = {
    "exits": exits(0),
    "raises": raises(Abort()),
    "gives text": lambda model, batch: "loss",
    "gives None": lambda model, batch: None,
    "gives many": lambda model, batch: model(batch[0]),
    "gives a number": lambda model, batch: 1.0,
    "gives complex": lambda model, batch: model(batch[0]).sum() * 1j,
    "gives NaN": lambda model, batch: model(batch[0]).sum() * math.nan,
    "is detached": lambda model, batch: model(batch[0]).sum().detach(),
    "takes nothing": lambda: None,
    "is text": "mse",
    "is a module": nn.CrossEntropyLoss(),
    "steps": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]).backward(),
    "gives integers": lambda model, batch: torch.tensor(3),
}


def _deep(depth: int) -> Any:
    inner: Any = batch()
    for _ in range(depth):
        inner = [inner]
    return inner


def _of_inference_mode() -> Any:
    with torch.inference_mode():
        return tuple(part.clone() for part in batch())


def said_in_one_line(call: Callable[[], Any]) -> str | None:
    """What a call says; None where it gives an answer."""
    try:
        call()
    except NormscopeError as error:
        assert "\n" not in str(error)
        assert 10 < len(str(error)) < 700
        assert "bug in normscope" not in str(error)
        return str(error)
    return None


def bits(model: nn.Module) -> list[Any]:
    """What has to stay: every tensor's bits, modes and hooks, and torch's own state."""
    tensors = [t for module in model.modules() for t in (*module._parameters.values(), *module._buffers.values())]
    modules = [
        (type(m), m.training, list(m._modules), len(m._forward_hooks), len(m._forward_pre_hooks))
        for m in model.modules()
    ]
    values = [None if t is None else (t.requires_grad, t.grad, t.detach().numpy().tobytes()) for t in tensors]
    return [values, modules, torch.get_rng_state().tolist(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_models_that_cannot_be(attack, name):
    for model in MODELS:
        with attack.one(f"{name} of a model: {model}"):
            given = MODELS[model]()
            seen = model not in ("drops a layer", "turns gradients off") and type(given) in (nn.Sequential, Odd)
            seen = seen and "meta" not in model and "Script" not in model and model != "lazy"
            before = bits(given) if seen else None
            said = said_in_one_line(lambda given=given: CALLS[name](given, batch()))
            if model in ("exit 0", "exit text", "exit None", "BaseException") and name not in (
                "with_init",
                "with_norm",
            ):
                assert said
                assert "test_calls.py:" in said
            assert torch.is_grad_enabled()
            if seen:
                assert bits(given) == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CALLS)
def test_batches_that_cannot_be(attack, name):
    for kind in BATCHES:
        with attack.one(f"{name} of a batch: {kind}"):
            model = net()
            before = bits(model)
            said_in_one_line(lambda model=model, kind=kind: CALLS[name](model, BATCHES[kind]()))
            assert bits(model) == before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CALLS if not name.startswith(("with_", "input_jacobian"))])
def test_losses_that_cannot_be(attack, name):
    for kind in LOSSES:
        with attack.one(f"{name} of a loss: {kind}"):
            model = net()
            before = bits(model)
            said = said_in_one_line(lambda model=model, kind=kind: CALLS[name](model, batch(), loss_fn=LOSSES[kind]))
            assert bits(model) == before
            if kind in ("exits", "raises"):
                assert said
                assert "test_calls.py:" in said


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_off_are_turned_on(attack, context):
    for name, call in CALLS.items():
        with attack.one(name):
            expected = call(net(), batch())
            model, given = net(), batch()
            with context():
                found = call(model, given)
                assert not torch.is_grad_enabled()
            if name in PROBES:
                xr.testing.assert_identical(found, expected)


def test_no_numbers_by_default(attack):
    for name, call in CALLS.items():
        with attack.one(name):
            model, given = net(), batch()
            torch.set_default_device("meta")
            try:
                said = said_in_one_line(lambda call=call, model=model, given=given: call(model, given))
            finally:
                torch.set_default_device(None)
            assert said
            assert "default device is meta" in said


FIGURES = [name for name in dir(ns) if name.startswith("plot_")]


def test_figures_of_other_results(attack):
    plt.close("all")  # what other tests have drawn in this process
    datasets = {name: call(net(), batch()) for name, call in PROBES.items()}
    datasets |= {"None": None, "text": "x", "nothing": xr.Dataset(), "numbers": xr.Dataset({"a": ("x", [1, 2])})}
    for figure, name in itertools.product(FIGURES, datasets):
        if figure != f"plot_{name}":
            with attack.one(f"{figure} of {name}"):
                said = said_in_one_line(lambda figure=figure, name=name: getattr(ns, figure)(datasets[name]))
                assert not (said and plt.get_fignums()), "an empty figure is left behind"
            plt.close("all")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: ns.check(net(), [batch()], steps="10"), "steps is '10': give a whole number"),
        (lambda: ns.check(net(), [batch()], seeds=[0, 1]), "seeds is [0, 1]: give a whole number"),
        (lambda: ns.check(net(), [batch()], lr="0.1"), "lr is '0.1': give a number"),
        (lambda: ns.sharpness(net(), batch(), max_products=2.0), "max_products is 2.0: give a whole number"),
        (lambda: ns.check(net(), nn.CrossEntropyLoss()), "batches is a CrossEntropyLoss: give a list of batches"),
        (lambda: ns.check(net(), [batch()], loss_fn=nn.CrossEntropyLoss()), "loss_fn takes the model and the batch"),
        (lambda: ns.relative_loss(net(), batch(), loss_fn=F.cross_entropy), "cross_entropy outputs and targets"),
    ],
)
def test_arguments_of_another_kind(call, said):
    with pytest.raises(NormscopeError) as caught:
        call()
    assert said in str(caught.value)


def test_a_quantized_model_has_no_gradients():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
    with pytest.raises(NormscopeError, match="module '1' is quantized, and has no gradients"):
        ns.gradient_noise(model, batch(), partitions=2)


def test_a_compiled_model_is_measured_as_it_was_written():
    plain = ns.gradient_norms(net(), batch())
    compiled: Any = torch.compile(net(), backend="eager")
    compiled(batch()[0])
    found = ns.gradient_norms(compiled, batch())
    assert found["weight_gradient_norm"].values.tolist() == plain["weight_gradient_norm"].values.tolist()


def test_lists_of_targets_are_taken_apart_with_the_batch():
    x, y = batch()
    targets = [{"label": label} for label in y]

    def loss_fn(model, batch):
        return F.cross_entropy(model(batch[0]), torch.stack([target["label"] for target in batch[1]]))

    found = ns.gradient_noise(net(), (x, targets), partitions=2, loss_fn=loss_fn)
    expected = ns.gradient_noise(net(), (x, y), partitions=2)
    assert float(found["gradient_squared_norm"].sum()) == pytest.approx(float(expected["gradient_squared_norm"].sum()))

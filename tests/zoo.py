"""A small zoo of models that every probe is tested on, and what "leaves no trace" means, bit for bit.

    from zoo import ZOO, by_name, disturb, in_float64, no_trace

    @pytest.mark.parametrize("entry", ZOO, ids=str)
    def test_equals_its_twin(entry):
        model, batch = entry.build(0), entry.batch(0)
        dataset = probe(model, batch, loss_fn=entry.loss_fn)
        twin = naive_probe(in_float64(model), in_float64(batch), entry.loss_fn)

    @pytest.mark.parametrize("entry", ZOO, ids=str)
    def test_leaves_no_trace(entry):
        model, batch = disturb(entry.build(0)), entry.batch(0)
        with no_trace(model, batch):
            probe(model, batch, loss_fn=entry.loss_fn)

Models come in training mode, on the CPU, under 1,000 parameters each, and are the same bits for the same
seed. A test that holds for some only picks by the flags, `[entry for entry in ZOO if not entry.couples]`,
or by name, `by_name("shared")`. The entry "bf16" computes in bfloat16: compare it with a float64 twin at a
tolerance of 1e-2 or so. The entry "dropout" draws random numbers: seed torch before the probe and before its
twin.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXAMPLES = 6
CLASSES = 4


@dataclass(frozen=True)
class Entry:
    """One model with a batch that it takes."""

    name: str
    make: Callable[[], nn.Module]
    draw: Callable[[], Any]
    loss_fn: Callable[[nn.Module, Any], Tensor] | None = None
    couples: bool = False
    """Whether an example's loss depends on the others in the batch (batch norm in training mode)."""
    random: bool = False
    """Whether the loss draws random numbers (dropout)."""
    dtype: torch.dtype = torch.float32

    def build(self, seed: int = 0) -> nn.Module:
        """A fresh model in training mode; leaves torch's random state as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make().to(self.dtype).train()

    def batch(self, seed: int = 0) -> Any:
        """A fresh batch of `EXAMPLES` examples; leaves torch's random state as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 + seed)
            return _map(self.draw(), lambda t: t.to(self.dtype) if t.is_floating_point() else t)

    def __str__(self) -> str:
        return self.name


class FunctionalReLU(nn.Module):
    """Activations that are no modules, one of them in place, pooling, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.relu_(self.conv2(x) + x)
        return self.fc(F.max_pool2d(x, 2).mean((2, 3)))


class Shared(nn.Module):
    """One module called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(7, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(x)))))


class LanguageModel(nn.Module):
    """Embedding whose weight is tied to the output's: logits (batch, tokens, words)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.hidden = nn.Linear(8, 8)
        self.output = nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(torch.tanh(self.hidden(self.embedding(tokens))))


class Attention(nn.Module):
    """Layer norm and multi-head attention on (batch, tokens, features); logits from the mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.feed_forward = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 12), nn.GELU(), nn.Linear(12, 8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        x = x + self.attention(y, y, y)[0]
        return self.head((x + self.feed_forward(x)).mean(1))


class SeveralInputs(nn.Module):
    """Keyword inputs, one of them optional, and an output with `.loss`, as the transformers library does."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.image, self.head = nn.Embedding(9, 5), nn.Linear(6, 5), nn.Linear(5, CLASSES)

    def forward(self, *, input_ids: Tensor, pixels: Tensor, labels: Tensor | None = None) -> SimpleNamespace:
        logits = self.head(torch.tanh(self.words(input_ids).mean(1) + self.image(pixels)))
        return SimpleNamespace(logits=logits, loss=None if labels is None else F.cross_entropy(logits, labels))


class Recurrent(nn.Module):
    """A GRU over (batch, steps, features); its output is a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(5, 6, batch_first=True), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 10), nn.ReLU(), nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, CLASSES))


def _cnn_inplace() -> nn.Module:
    body = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(6, 5, 3), nn.ReLU(inplace=True)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, CLASSES))


def _grouped() -> nn.Module:
    body = [
        nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=8),
    ]
    return nn.Sequential(*body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))


def _frozen() -> nn.Module:
    model = _mlp()
    model[0].requires_grad_(False)
    return model


def _batch_norm() -> nn.Module:
    body = [
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 3, bias=False),
    ]
    return nn.Sequential(
        *body, nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)
    )


def _layer_norm() -> nn.Module:
    body = [nn.Linear(7, 10), nn.LayerNorm(10), nn.ReLU(), nn.Linear(10, 8), nn.LayerNorm(8), nn.ReLU()]
    return nn.Sequential(*body, nn.Linear(8, CLASSES))


def _dropout() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, CLASSES))


def _labels(*shape: int, classes: int = CLASSES) -> Tensor:
    return torch.randint(classes, shape or (EXAMPLES,))


def _features(*shape: int) -> Callable[[], Any]:
    return lambda: (torch.randn(EXAMPLES, *shape), _labels())


def _tokens() -> Any:
    return torch.randint(11, (EXAMPLES, 5)), _labels(EXAMPLES, 5, classes=11)


def _several() -> Any:
    return {
        "input_ids": torch.randint(9, (EXAMPLES, 3)),
        "pixels": torch.randn(EXAMPLES, 6),
        "labels": _labels(),
    }


def squared_error(model: nn.Module, batch: Any) -> Tensor:
    """A loss_fn for regression: mean over examples and outputs."""
    inputs, targets = batch
    return F.mse_loss(model(inputs), targets)


ZOO = [
    Entry("mlp", _mlp, _features(7)),
    Entry("cnn_inplace", _cnn_inplace, _features(3, 8, 8)),
    Entry("functional_relu", FunctionalReLU, _features(3, 8, 8)),
    Entry("grouped_dilated", _grouped, _features(4, 9, 9)),
    Entry("shared", Shared, _features(7)),
    Entry("frozen", _frozen, _features(7)),
    Entry("batch_norm", _batch_norm, _features(3, 8, 8), couples=True),
    Entry("layer_norm", _layer_norm, _features(7)),
    Entry("attention", Attention, _features(5, 8)),
    Entry("several_inputs", SeveralInputs, _several),
    Entry("embedding_tied", LanguageModel, _tokens),
    Entry("bf16", _mlp, _features(7), dtype=torch.bfloat16),
    Entry("dropout", _dropout, _features(7), random=True),
    Entry("recurrent", Recurrent, _features(4, 5)),
    Entry("regression", _mlp, lambda: (torch.randn(EXAMPLES, 7), torch.randn(EXAMPLES, CLASSES)), squared_error),
]


def by_name(name: str) -> Entry:
    """The entry called `name`."""
    return next(entry for entry in ZOO if entry.name == name)


def in_float64(thing: Any) -> Any:
    """A deep copy of a model, or of a batch, with every floating-point tensor in float64: for naive twins."""
    if isinstance(thing, nn.Module):
        return copy.deepcopy(thing).double()
    return _map(thing, lambda t: t.double() if t.is_floating_point() else t.clone())


def scaled(batch: Any, factor: float) -> Any:
    """The batch with every floating-point tensor multiplied: 1e25 is far above what float32 can square."""
    return _map(batch, lambda t: t * factor if t.is_floating_point() else t)


def disturb(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in a state as unlike a fresh one as users bring.

    Some gradients are filled and some not, some modules are in evaluation mode, and it has a hook of its own.
    What it computes in training mode is unchanged.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if torch.rand((), generator=generator) < 0.5:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    for module in model.modules():
        module.training = bool(torch.rand((), generator=generator) < 0.5)
    model.register_forward_hook(_silent_hook)
    return model


def _silent_hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
    return None


def fingerprint(model: nn.Module, batch: Any = None) -> dict[str, object]:
    """All that a probe may not change, bit for bit.

    Parameters and buffers (which object, bits, strides, gradient, requires_grad), modes, hooks and
    attributes' names of every module, the batch, torch's random state on the CPU.
    """
    found: dict[str, object] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        found[f"{path}: mode"] = (module.training, module._is_full_backward_hook)
        found[f"{path}: attributes"] = tuple(vars(module))
        for kind, value in vars(module).items():
            if kind.endswith("_hooks") or "_hooks_" in kind:
                found[f"{path}: {kind}"] = tuple(value.items()) if isinstance(value, Mapping) else value
        for kind in ("_parameters", "_buffers"):
            for name, tensor in getattr(module, kind).items():
                found[f"{path}.{name}"] = _tensor(tensor)
                if tensor is not None:
                    grad = tensor.grad if tensor.is_leaf else None
                    found[f"{path}.{name}: grad"] = (id(grad), _tensor(grad))
                    found[f"{path}.{name}: requires_grad"] = (tensor.requires_grad, tensor.grad_fn)
    parts: list[Tensor] = []
    _map(batch, lambda t: parts.append(t) or t)
    found.update({f"batch[{i}]": _tensor(part) for i, part in enumerate(parts)})
    found["random state"] = _bits(torch.random.get_rng_state())
    found["grad mode"] = torch.is_grad_enabled()
    return found


def everything(model: nn.Module, batch: Any = None) -> dict[str, object]:
    """The fingerprint, which objects all attributes are, where parameters lie, and how many hooks tensors have."""
    found = fingerprint(model, batch)
    for path, module in model.named_modules():
        found[f"{path}: objects"] = (type(module), {name: id(value) for name, value in vars(module).items()})
        found |= {f"{path}.{name}: memory": p.data_ptr() for name, p in module._parameters.items() if p is not None}
        hooks: list[Any] = [
            (p._backward_hooks, p._post_accumulate_grad_hooks) for p in module.parameters(recurse=False)
        ]
        found[f"{path}: hooks of tensors"] = [tuple(len(each or ()) for each in pair) for pair in hooks]
    return found


@contextmanager
def no_trace(model: nn.Module, batch: Any = None) -> Iterator[None]:
    """Assert that the body leaves model, batch and random state as they were, or name what changed."""
    before = fingerprint(model, batch)
    yield
    after = fingerprint(model, batch)
    changed = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
    assert not changed, f"changed: {', '.join(sorted(changed))}"


def _tensor(tensor: Tensor | None) -> object:
    if tensor is None:
        return None
    return id(tensor), tensor.dtype, tuple(tensor.shape), tensor.stride(), str(tensor.device), _bits(tensor)


def _bits(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _map(thing: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same nest of tuples, lists and mappings with every tensor changed."""
    if isinstance(thing, Tensor):
        return change(thing)
    if isinstance(thing, Mapping):
        return {key: _map(value, change) for key, value in thing.items()}
    if isinstance(thing, tuple | list):
        return type(thing)(_map(value, change) for value in thing)
    return thing

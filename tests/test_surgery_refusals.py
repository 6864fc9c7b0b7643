"""What with_norm and with_init refuse, each in one line that says why."""

import copy
import re
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import normscope as ns
from normscope.errors import InvalidBatch, InvalidConfig, InvalidModel
from normscope.surgery.places import existing_norms


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def cnn() -> nn.Sequential:
    body = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def refusal(error: type[Exception], change, *arguments, **named) -> str:
    with pytest.raises(error) as caught:
        change(*arguments, **named)
    message = str(caught.value)
    assert "\n" not in message and message
    return message


def compiled() -> nn.Module:
    return torch.compile(mlp(), backend="eager")  # type: ignore[return-value]


def compiled_in_place() -> nn.Module:
    model = mlp()
    model[0].compile(backend="eager")
    return model


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it, people still bring it
        return torch.jit.trace(mlp(), torch.zeros(2, 4))


def fused() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.fuse_modules(cnn().eval(), [["0", "1", "2"]])


def fused_for_training() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.fuse_modules_qat(cnn().train(), [["0", "1"]])


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(mlp(), {nn.Linear})


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.LazyLinear(5), nn.Linear(5, 3))


class NotCopyable(nn.Sequential):
    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle\n'_thread.lock' object")


WHOLE = {
    "compiled": (compiled, "the model is compiled"),
    "compiled in place": (compiled_in_place, "module '0' is compiled"),
    "scripted": (scripted, "TorchScript"),
    "data parallel": (lambda: nn.DataParallel(mlp()), "wrapped in DataParallel: change the model inside"),
    "fused": (fused, r"\(ConvBnReLU2d|ConvReLU2d\) is fused"),
    "fused for training": (fused_for_training, r"\(ConvBn2d\) is fused"),
    "quantized": (quantized, "is quantized"),
    "lazy": (lazy, "has no shape yet: call the model once"),
    "not copyable": (lambda: NotCopyable(*mlp()), "NotCopyable cannot be copied: cannot pickle '_thread.lock' object"),
    "a function": (lambda: torch.relu, "takes an nn.Module: give what the function builds"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_models_that_cannot_be_changed(name: str) -> None:
    make, reason = WHOLE[name]
    model = make()
    for change in (lambda: ns.with_norm(model, "batch"), lambda: ns.with_init(model, "default", seed=0)):
        message = refusal(InvalidModel, change)
        assert re.search(reason, message), message


def tied() -> nn.Module:
    model = mlp()
    model.copy_of_two = nn.Linear(6, 5)
    model.copy_of_two.weight = model[2].weight
    model.last = nn.Linear(5, 3)
    return model


class Folded(nn.Conv2d):
    """A convolution with a norm and an activation of its own, as detection libraries have it."""

    def __init__(self) -> None:
        super().__init__(3, 4, 3)
        self.norm, self.activation = nn.BatchNorm2d(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(super().forward(x)))


class NormAfterAct(nn.BatchNorm2d):
    """A norm with an activation inside, in front of it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.act(x))


def integer_weight() -> nn.Module:
    model = mlp()
    model[2].weight = nn.Parameter(torch.ones(5, 6, dtype=torch.int8), requires_grad=False)
    return model


def subclassed_weight() -> nn.Module:
    class Packed(nn.Parameter):
        pass

    model = mlp()
    model[2].weight = Packed(model[2].weight.detach())
    return model


def taken_name() -> nn.Module:
    model = mlp()
    model[2].output_norm = "mine"
    return model


LAYERS = {
    "tied": (tied, "layer '2' is tied to 'copy_of_two', .* untie them first"),
    "several modules": (lambda: nn.Sequential(Folded(), nn.Linear(4, 3)), "'0' is fused: it holds norm, activation"),
    "norm with activation": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), NormAfterAct(4), nn.Linear(4, 3)), "holds act"),
    "integers": (integer_weight, "layer '2' has a weight of type Parameter, torch.int8"),
    "subclass": (subclassed_weight, "layer '2' has a weight of type Packed"),
    "name taken": (taken_name, "already has an attribute called output_norm"),
    "shared under two names": (
        lambda: (lambda one: nn.Sequential(one, nn.ReLU(), one, nn.Linear(4, 3)))(nn.Linear(4, 4)),
        "'0' is also '2': .* give a batch",
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_cannot_be_changed(name: str) -> None:
    make, reason = LAYERS[name]
    model = make()
    message = refusal(InvalidModel, ns.with_norm, model, "batch", "everywhere")
    assert re.search(reason, message), message


def test_a_shared_module_takes_norms_without_statistics_and_one_called_once_takes_all() -> None:
    layer = nn.Linear(4, 4)
    twice, x = nn.Sequential(layer, nn.ReLU(), layer, nn.Linear(4, 3)), torch.randn(5, 4)
    assert "is called 2 times: one batch norm" in refusal(InvalidModel, ns.with_norm, twice, "batch", batch=x)
    assert ns.with_norm(twice, "layer", batch=x)(x).isfinite().all()

    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
            self.parts = nn.ModuleList([self.first])

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    assert list(existing_norms(ns.with_norm(Alias(), "batch", batch=x))) == [
        "first.output_norm",
        "parts.0.output_norm",
    ]


def test_a_tied_output_layer_is_no_obstacle() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.hidden, self.output = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9)
            self.output.weight = self.words.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.output(self.hidden(self.words(tokens)))

    for where in ("everywhere", "final"):
        changed = ns.with_norm(Language(), "layer", where)
        assert changed.output.weight is changed.words.weight
        assert changed(torch.tensor([[1, 2]])).shape == (1, 2, 9)


def test_places_that_are_not_there() -> None:
    model = cnn()
    message = refusal(InvalidConfig, ns.with_norm, model, "batch", "layer9.*")
    assert message == (
        "no layer or norm matches 'layer9.*'; this model has 0, 3, 8, ... (3 in all): see `normscope layers MODEL`"
    )
    assert "matches '2', of type ReLU" in refusal(InvalidConfig, ns.with_norm, model, "batch", "2")
    assert "layer '8' is the output layer" in refusal(InvalidConfig, ns.with_norm, model, "batch", "8")
    assert "layer '8' is the output layer" in refusal(InvalidConfig, ns.with_norm, model, "batch", "[8]")
    assert "did you mean 'batch'" in refusal(InvalidConfig, ns.with_norm, model, "bach")
    assert "no norm at '0' to take out" in refusal(InvalidConfig, ns.with_norm, model, "none", "0")
    assert "names no place" in refusal(InvalidConfig, ns.with_norm, model, "batch", [])
    assert "no norms to swap" in refusal(InvalidConfig, ns.with_norm, mlp(), "batch", "swap")
    only = refusal(InvalidModel, ns.with_norm, nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "batch")
    assert only == ("this model has no layer but the output layer '1': there is nothing to put a norm behind")
    assert "nothing to put a norm behind" in refusal(InvalidModel, ns.with_norm, nn.ReLU(), "batch")
    assert "and it has none" in refusal(InvalidModel, ns.with_norm, nn.ReLU(), "batch", "final")
    recurrent = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4))
    assert "last layer '1' is GRU" in refusal(InvalidModel, ns.with_norm, recurrent, "batch", "final")


def test_fused_attention() -> None:
    class QKV(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.project = nn.Linear(4, 12), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            return self.project(F.scaled_dot_product_attention(q, k, v))

    model = nn.Sequential(QKV(), nn.TransformerEncoderLayer(4, 2, 8), nn.Linear(4, 3))
    for kind in ("layer", "batch"):
        assert "several maps fused in one" in refusal(InvalidConfig, ns.with_norm, model, kind, "0.qkv")
    out_proj = refusal(InvalidConfig, ns.with_norm, model, "layer", "1.self_attn.out_proj")
    assert "is part of a fused attention" in out_proj
    normed = existing_norms(ns.with_norm(model, "layer", "everywhere"))
    assert list(normed) == [f"{path}.output_norm" for path in ("0.project", "1.linear1", "1.linear2")]


class PastAnyCall(nn.Module):
    """Uses a layer's weight without calling the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.used, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.linear(self.first(x), self.used.weight))


def test_layers_that_are_never_called() -> None:
    model, x = PastAnyCall(), torch.randn(6, 4)
    assert list(existing_norms(ns.with_norm(model, "batch", batch=x))) == ["first.output_norm"]
    message = refusal(InvalidConfig, ns.with_norm, model, "batch", "used", batch=x)
    assert message == "layer 'used' is never called on this batch"
    model.spare = nn.BatchNorm1d(5)  # a norm that waits for another mode is swapped with the others
    assert isinstance(ns.with_norm(model, "layer", "swap", batch=x).spare, nn.GroupNorm)


def test_single_values() -> None:
    narrow = nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 3))
    for kind in ("group", "layer", "rms"):
        message = refusal(InvalidConfig, ns.with_norm, narrow, kind)
        assert message.startswith("at '0': ") and "single value" in message
    assert isinstance(ns.with_norm(narrow, "tanh"), nn.Sequential)
    # squeeze and excite: behind the pool there is one position
    one_position = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1))
    message = refusal(InvalidConfig, ns.with_norm, one_position, "instance", batch=torch.randn(2, 3, 5, 5))
    assert message == (
        "at '1': norm 'instance' would average over a single value of shape (2, 4, 1, 1): choose 'batch' or 'tanh'"
    )
    # what counts in front of a convolution is its input: the first has positions, the second has one
    to_one_position = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 10, 3))
    assert ns.with_norm(to_one_position, "instance", "final", batch=torch.randn(2, 3, 5, 5))
    message = refusal(InvalidModel, ns.with_norm, one_position, "instance", "final", batch=torch.randn(2, 3, 5, 5))
    assert "with 'instance' the model does not take its batch any more" in message and "more than 1 spatial" in message
    message = refusal(InvalidConfig, ns.with_norm, mlp(), "instance", batch=torch.randn(5, 4))
    assert "averages over positions, and features have none" in message


def test_batches_that_the_model_does_not_take() -> None:
    assert "does not take this batch" in refusal(InvalidBatch, ns.with_norm, mlp(), "batch", batch=torch.randn(5, 9))
    message = refusal(InvalidModel, ns.with_norm, mlp(), "batch", batch=torch.randn(1, 4))
    assert "with 'batch' the model does not take its batch any more: a batch of one example" in message


class ReadsItsNorm(nn.Module):
    """Reads the eps of its norm, or calls what it keeps in a plain list."""

    def __init__(self, *, in_list: bool) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(4), nn.Linear(4, 3)
        self.kept = [self.norm] if in_list else None

    def forward(self, x: Tensor) -> Tensor:
        norm = self.kept[0] if self.kept else self.norm
        return self.last(norm(x) * (norm.eps + 1))


def test_models_that_a_swap_would_break() -> None:
    x = torch.randn(6, 4)
    message = refusal(InvalidModel, ns.with_norm, ReadsItsNorm(in_list=False), "none", batch=x)
    assert "with 'none' the model does not take its batch any more" in message and "'eps'" in message
    message = refusal(InvalidModel, ns.with_norm, ReadsItsNorm(in_list=True), "layer", batch=x)
    assert message == "the norm put in as 'norm' is never called: the model reads weights there past any call"


def test_a_refusal_leaves_the_model_as_it_was() -> None:
    model = tied()
    before = copy.deepcopy(model.state_dict())
    refusal(InvalidModel, ns.with_norm, model, "batch")
    assert not existing_norms(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())

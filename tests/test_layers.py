"""Which calls are watched, how they are named, where their channels are, and their place on the main path."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from zoo import ZOO, by_name, no_trace

from normscope.errors import InvalidModel
from normscope.model.layers import channel_dim, depths, owns_weight, record_calls, watched_modules
from normscope.model.loss import default_loss
from normscope.model.output import first_tensor
from normscope.nets import build_net

WATCHED = {
    "mlp": "0 2 4",
    "cnn_inplace": "0 2 6",
    "functional_relu": "conv1 conv2 fc",
    "grouped_dilated": "0 2 6",
    "shared": "first twice twice#2 last",
    "frozen": "0 2 4",
    "batch_norm": "0 3 8",
    "layer_norm": "0 3 6",
    "attention": "attention feed_forward.1 feed_forward.3 head",
    "several_inputs": "words image head",
    "embedding_tied": "embedding hidden output",
    "bf16": "0 2 4",
    "dropout": "0 3",
    "recurrent": "gru head",
    "regression": "0 2 4",
}


def called(model, run, layers=None):
    """Names and outputs of the watched calls, in order."""
    seen = []
    with record_calls(model, lambda call: seen.append((call.name, call.module, call.output)), layers):
        run(model)
    return seen


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_every_call_of_a_module_with_a_weight_in_execution_order(entry):
    batch = entry.batch(0)
    seen = called(entry.build(0), lambda model: (entry.loss_fn or default_loss)(model, batch))
    assert [name for name, _, _ in seen] == WATCHED[entry.name].split()


class Backwards(nn.Module):
    """Registers its layers in another order than it calls them, calls one three times and one never."""

    def __init__(self):
        super().__init__()
        self.last, self.first, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        for _ in range(3):
            x = self.first(x)
        return self.last(x)


class WithPositions(nn.Module):
    """Owns a table of positions, as vision transformers do, around layers of its own."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(1, 5, 4))
        self.inner, self.head = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 1)), nn.Linear(4, 3)

    def forward(self, x):
        x = self.inner[0](x + self.positions)
        return self.head(self.inner[1](x, x, x)[0].mean(1))


def test_a_call_that_contains_layers_is_none_unless_it_is_named():
    run = lambda model: model(torch.ones(2, 5, 4))  # noqa: E731
    assert [name for name, _, _ in called(WithPositions(), run)] == ["inner.0", "inner.1", "head"]
    assert [name for name, _, _ in called(WithPositions(), run, ["", "head"])] == ["head", ""]


def test_names_follow_execution_and_count_calls():
    seen = called(Backwards(), lambda model: model(torch.ones(2, 4)))
    assert [name for name, _, _ in seen] == ["first", "first#2", "first#3", "last"]


def test_calls_are_counted_anew_every_time():
    model = Backwards()
    for _ in range(2):
        assert called(model, lambda model: model(torch.ones(2, 4)))[0][0] == "first"


def test_a_module_at_two_paths_has_the_first():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": shared})
    seen = called(model, lambda model: model["b"](model["a"](torch.ones(2, 3))))
    assert [name for name, _, _ in seen] == ["a", "a#2"]


def test_a_bare_layer_is_its_own_model():
    assert [name for name, _, _ in called(nn.Linear(3, 2), lambda model: model(torch.ones(1, 3)))] == [""]


def test_hooks_are_gone_afterwards_even_when_the_model_fails():
    model = by_name("mlp").build(0)
    with no_trace(model), pytest.raises(RuntimeError):
        called(model, lambda model: model(torch.ones(2, 3)))


def test_outputs_are_seen_before_they_change_in_place():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=True))
    lowest = []
    with record_calls(model, lambda call: lowest.append(float(call.output.detach().min()))):
        model(torch.randn(50, 3))
    assert lowest[0] < 0


def test_tuples_and_mappings_are_seen_by_their_first_tensor():
    one, two = torch.ones(1), torch.ones(2)
    assert first_tensor((None, [one], two)) is one
    assert first_tensor({"a": "text", "b": two}) is two
    assert first_tensor(SimpleNamespace(loss=one)) is None


def test_numbers_and_integers_are_passed_over():
    model = nn.ModuleList([nn.CrossEntropyLoss(), nn.Flatten(0)])
    run = lambda model: (model[0](torch.ones(2, 3), torch.tensor([0, 1])), model[1](torch.tensor([[1, 2]])))  # noqa: E731
    assert called(model, run, "*") == []


def test_patterns_choose_among_all_modules():
    model = build_net("resnet8", norm="batch")
    assert list(watched_modules(model, "layer?.0.norm2")) == [f"layer{i}.0.norm2" for i in (1, 2, 3)]
    assert list(watched_modules(model, ["fc", "conv1"])) == ["conv1", "fc"]


@pytest.mark.parametrize("layers", ["layer9.*", ["conv1", "layer9.*"]])
def test_a_pattern_without_a_match_shows_what_there_is(layers):
    with pytest.raises(InvalidModel) as caught:
        watched_modules(build_net("resnet8"), layers)
    assert str(caught.value) == (
        "no layer matches 'layer9.*'; this model has conv1, layer1.0.conv1, layer1.0.conv2, ... (10 in all): "
        "see `normscope layers MODEL`"
    )


def test_a_model_without_weights_has_no_layers():
    with pytest.raises(InvalidModel, match="Sequential has no layer with a weight of two dimensions"):
        watched_modules(nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()))


class OwnWeight(nn.Module):
    """A layer that somebody wrote themselves."""

    def __init__(self, *shape):
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(shape))


@pytest.mark.parametrize(
    ("module", "shape", "expected"),
    [
        (nn.Linear(3, 4), (8, 4), 1),
        (nn.Linear(3, 4), (8, 5, 4), 2),
        (nn.Linear(3, 4), (8, 5, 6, 4), 3),
        (nn.Embedding(3, 4), (8, 5, 4), 2),
        (nn.Conv1d(3, 4, 1), (8, 4, 9), 1),
        (nn.Conv1d(3, 4, 1), (4, 9), 0),
        (nn.Conv2d(3, 4, 1), (8, 4, 9, 9), 1),
        (nn.Conv2d(3, 4, 1), (4, 9, 9), 0),
        (nn.Conv3d(3, 4, 1), (8, 4, 9, 9, 9), 1),
        (nn.ConvTranspose2d(3, 4, 1), (8, 4, 9, 9), 1),
        (nn.BatchNorm2d(4), (8, 4, 9, 9), 1),
        (nn.GroupNorm(2, 4), (8, 4, 9), 1),
        (nn.LayerNorm(4), (8, 5, 4), 2),
        (nn.LayerNorm((4, 9, 9)), (8, 4, 9, 9), 1),
        (nn.LayerNorm((5, 4)), (8, 5, 4), 2),
        (nn.MultiheadAttention(4, 1), (8, 5, 4), 2),
        (nn.GRU(3, 4), (8, 5, 4), 2),
        (nn.ReLU(), (8, 4), 1),
        (nn.ReLU(), (8, 5, 4), 2),
        (nn.ReLU(), (8, 4, 9, 9), 1),
        (OwnWeight(4, 3), (8, 5, 4), 2),
        (OwnWeight(4, 3, 3, 3), (8, 4, 9, 9), 1),
        (OwnWeight(1, 5, 4), (8, 5, 4), 2),  # a table of positions, not a kernel
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_where_the_channels_are(module, shape, expected):
    assert channel_dim(module, torch.zeros(shape)) == expected


def test_a_module_may_say_where_its_channels_are():
    module = OwnWeight(4, 3)
    module.channel_dim = -2
    assert channel_dim(module, torch.zeros(8, 4, 5)) == 1


def test_what_owns_a_weight():
    assert owns_weight(nn.Linear(2, 2)) and owns_weight(OwnWeight(2, 2))
    assert not owns_weight(nn.BatchNorm1d(3)) and not owns_weight(nn.Sequential(nn.Linear(2, 2)))


def test_parametrized_weights_are_their_layers_own():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), nn.Linear(2, 2))
    seen = called(model, lambda model: model(torch.ones(4, 3)))
    assert [name for name, _, _ in seen] == ["0", "1"]


def test_depth_counts_the_main_path_only():
    names = ["conv1", "layer1.0.conv1", "layer1.0.downsample.0", "skip", "twice", "twice#2", "skipped"]
    assert [d if d == d else None for d in depths(names)] == [1, 2, None, None, 3, 4, 5]


@pytest.mark.parametrize("shortcut", ["projection", "pad"])
def test_a_resnet_of_depth_n_ends_at_depth_n(shortcut):
    model = build_net("resnet14", shortcut=shortcut)
    seen = called(model, lambda model: model(torch.zeros(2, 3, 8, 8)))
    places = [place for place in depths([name for name, _, _ in seen]) if not math.isnan(place)]
    assert places == list(range(1, 15))


def test_what_a_call_was_given_and_gave_is_there_and_can_be_replaced():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x, *, scale):
            return self.fc(x) * scale

    seen = []

    def double(call):
        seen.append(call)
        return 2 * call.result

    model, x = Twice(), torch.ones(2, 3)
    plain = model(x, scale=3.0)
    with record_calls(model, double, before=lambda inputs: (inputs[0] + 1,)):
        changed = model(x, scale=3.0)
    assert torch.equal(seen[0].inputs[0], x + 1) and seen[0].output is seen[0].result
    assert torch.equal(changed, 6 * model.fc(x + 1))
    assert torch.equal(model(x, scale=3.0), plain)


def test_modules_that_were_found_before_are_watched_by_their_paths():
    model = by_name("mlp").build(0)
    seen = called(model, lambda model: model(torch.ones(2, 7)), {"here": model[0]})
    assert [(name, module) for name, module, _ in seen] == [("here", model[0])]

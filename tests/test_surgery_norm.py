"""with_norm: equal to networks written with the norm, names and bits kept, the model itself untouched."""

import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.utils.hooks import RemovableHandle
from zoo import ZOO, by_name, disturb, no_trace

import normscope as ns
from normscope.errors import InvalidConfig
from normscope.model.layers import record_calls
from normscope.model.loss import default_loss
from normscope.model.state import untouched
from normscope.nets import build_net
from normscope.nets.names import NORMS
from normscope.surgery.channel_norms import ChannelBatchNorm, ChannelInstanceNorm
from normscope.surgery.places import existing_norms

KINDS = tuple(kind for kind in NORMS if kind != "none")
SIZE = 8


def net(name: str, norm: str) -> nn.Module:
    return build_net(name, norm=norm, image_size=SIZE, width=8, seed=0)


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def labelled_images() -> tuple[Tensor, Tensor]:
    return images(), torch.tensor([0, 1, 2, 3])


def same_function(one: nn.Module, other: nn.Module) -> bool:
    """The same bits: outputs in training mode, then in evaluation mode with the statistics that this left."""
    outputs = []
    for training in (True, False):
        outputs.append([model.train(training)(images()) for model in (one, other)])
    return all(torch.equal(left, right) for left, right in outputs)


@pytest.mark.parametrize("name", ["resnet8", "plain8"])
@pytest.mark.parametrize("kind", KINDS)
def test_everywhere_equals_a_network_written_with_the_norm(name: str, kind: str) -> None:
    # with zero biases in front of the norms, as build_net has them, so that no bit differs
    assert same_function(ns.with_norm(net(name, "none"), kind), net(name, kind))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "instance"])
def test_everywhere_in_an_mlp(kind: str) -> None:
    changed = ns.with_norm(net("mlp3", "none"), kind, batch=labelled_images())
    assert same_function(changed, net("mlp3", kind))
    # without a batch, layers might see tokens: the same equation in other operations, so a few ulp of numbers near 1
    unseen, written = ns.with_norm(net("mlp3", "none"), kind), net("mlp3", kind)
    torch.testing.assert_close(unseen(images()), written(images()), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet8", "plain8", "mlp3"])
def test_final_equals_a_network_written_with_it(name: str) -> None:
    for norm in ("none", "batch"):  # the norms that were there go
        model = ns.with_norm(net(name, norm), "batch", "final")
        assert same_function(model, net(name, "final"))
        assert list(existing_norms(model)) == ["fc.input_norm"]


@pytest.mark.parametrize("name", ["resnet8", "plain8", "mlp3"])
@pytest.mark.parametrize("kind", KINDS)
def test_none_takes_the_norms_out(name: str, kind: str) -> None:
    if (name, kind) != ("mlp3", "instance"):
        bare = ns.with_norm(net(name, kind), "none")
        assert not existing_norms(bare)
        assert same_function(bare, net(name, "none"))


@pytest.mark.parametrize("before", KINDS)
@pytest.mark.parametrize("after", KINDS)
def test_swap_equals_a_network_written_with_the_other(before: str, after: str) -> None:
    for batch in (None, labelled_images()):
        swapped = ns.with_norm(net("resnet8", before), after, batch=batch)
        assert same_function(swapped, net("resnet8", after))
        assert list(existing_norms(swapped)) == list(existing_norms(net("resnet8", before)))


@pytest.mark.parametrize("kind", KINDS)
def test_putting_in_and_taking_out_is_undone(kind: str) -> None:
    model = net("resnet8", "none")
    for where in ("everywhere", "final", "layer1.*"):
        if (kind, where) != ("instance", "final"):
            back = ns.with_norm(ns.with_norm(model, kind, where), "none")
            assert {k: v.tolist() for k, v in back.state_dict().items()} == {
                k: v.tolist() for k, v in model.state_dict().items()
            }
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in back.modules())
            assert [type(m) for m in back.modules()] == [type(m) for m in model.modules()]


@pytest.mark.parametrize("entry", ZOO, ids=str)
@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("where", [None, "everywhere", "final"])
def test_zoo(entry, kind: str, where: str | None) -> None:
    """Any model: the original without a trace, its weights' names and bits in the copy, which learns."""
    model, batch = disturb(entry.build()), entry.batch()
    with no_trace(model, batch):
        try:
            changed = ns.with_norm(model, kind, where, batch=batch, loss_fn=entry.loss_fn)
        except ns.NormscopeError as error:
            assert "\n" not in str(error)
            assert refused(entry.name, kind, where), error
            return
    assert not refused(entry.name, kind, where)
    norms = tuple(f"{path}." for path in existing_norms(model))
    kept = {k: v for k, v in model.state_dict().items() if not k.startswith(norms)}
    assert all(torch.equal(value, changed.state_dict()[name]) for name, value in kept.items())
    loss = (entry.loss_fn or default_loss)(changed.train(), batch)
    loss.backward()
    assert torch.isfinite(loss)
    fresh = [p for path, norm in existing_norms(changed).items() for p in norm.parameters()]
    assert all(p.grad is not None and p.dtype == entry.dtype for p in fresh)
    assert bool(fresh) == (kind != "none")


def refused(name: str, kind: str, where: str | None) -> bool:
    """What the zoo holds that has no answer."""
    if kind == "none":
        return False
    if where == "final":  # pooled features have no positions to average over; the language model's tokens do
        return kind == "instance" and name != "embedding_tied"
    if name == "shared" and kind == "batch":  # one module, two calls
        return True
    has_positions = ("cnn_inplace", "functional_relu", "grouped_dilated", "batch_norm", "attention", "embedding_tied")
    has_positions += ("recurrent",)
    return kind == "instance" and name not in has_positions


def test_names_of_weights_and_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    keys = list(model.state_dict())
    assert [k for k in ns.with_norm(model, "layer").state_dict() if k not in keys] == [
        "0.output_norm.weight",
        "0.output_norm.bias",
    ]
    assert [k for k in ns.with_norm(model, "layer", "final").state_dict() if k not in keys] == [
        "3.input_norm.weight",
        "3.input_norm.bias",
    ]
    assert all(k in ns.with_norm(model, "batch").state_dict() for k in keys)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 8, 3), (2, 3, 5)),
        (nn.Conv2d(3, 8, 3), (2, 3, 5, 5)),
        (nn.Conv3d(3, 8, 3), (2, 3, 5, 5, 5)),
        (nn.ConvTranspose1d(3, 8, 3), (2, 3, 5)),
        (nn.ConvTranspose2d(3, 8, 3), (2, 3, 5, 5)),
        (nn.ConvTranspose3d(3, 8, 3), (2, 3, 5, 5, 5)),
        (nn.Linear(3, 8), (2, 5, 3)),
    ],
)
def test_channels_are_normalized_along_the_right_dim(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = ns.with_norm(nn.Sequential(layer, nn.Linear(8, 2)), "batch", "0")
    output = model[0](torch.randn(*shape, generator=torch.Generator().manual_seed(1)) * 9 + 5)
    rows = output.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1).double()
    assert rows.shape[0] == 8
    # float32, and eps = 1e-5 against variances above 1
    torch.testing.assert_close(rows.mean(1), torch.zeros(8).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(rows.var(1, correction=0), torch.ones(8).double(), rtol=0, atol=1e-3)


def test_a_norm_comes_with_device_dtype_and_mode() -> None:
    model = net("resnet8", "none").to(torch.float64)
    model.layer1.eval()
    changed = ns.with_norm(model, "batch")
    for path, norm in existing_norms(changed).items():
        assert norm.training == (not path.startswith("layer1.")), path
        assert norm.weight.dtype == norm.running_mean.dtype == torch.float64
        assert norm.num_batches_tracked.dtype == torch.int64
    on_meta = ns.with_norm(net("resnet8", "none").to("meta"), "group")
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}


def test_swapped_norms_are_fresh_and_nothing_is_drawn() -> None:
    model = net("resnet8", "batch")
    with torch.no_grad():
        model.norm1.weight.fill_(3.0)
    model(images())
    state = torch.get_rng_state()
    swapped = ns.with_norm(model, "batch", batch=labelled_images())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(swapped.norm1.weight, torch.ones(8))
    assert not swapped.norm1.running_mean.any() and swapped.norm1.num_batches_tracked == 0
    assert model.norm1.running_mean.any()


def test_a_layer_without_bias_gets_none_when_its_norm_goes() -> None:
    assert ns.with_norm(net("resnet8", "batch"), "none").conv1.bias is None
    assert ns.with_norm(net("resnet8", "none"), "batch").conv1.bias is not None


def test_patterns() -> None:
    bare, normed = net("resnet8", "none"), net("resnet8", "batch")
    assert list(existing_norms(ns.with_norm(bare, "batch", "conv1"))) == ["conv1.output_norm"]
    behind = existing_norms(ns.with_norm(bare, "batch", "layer1.*"))
    assert list(behind) == ["layer1.0.conv1.output_norm", "layer1.0.conv2.output_norm"]
    # two patterns that overlap, the output layer among what a wildcard matches
    both = existing_norms(ns.with_norm(bare, "batch", ["layer1.*", "*"]))
    assert len(both) == len(existing_norms(normed)) and not any(path.startswith("fc") for path in both)
    # one that matches norms swaps these, and leaves the convolutions between them alone
    swapped = existing_norms(ns.with_norm(normed, "group", "layer1.*"))
    assert swapped.keys() == existing_norms(normed).keys()
    assert {path for path, norm in swapped.items() if isinstance(norm, nn.GroupNorm)} == {
        "layer1.0.norm1",
        "layer1.0.norm2",
    }
    two = existing_norms(ns.with_norm(normed, "group", ["norm1", "layer1.*"]))
    assert sum(isinstance(norm, nn.GroupNorm) for norm in two.values()) == 3
    # one that matches only the layer adds a norm, or changes the one that was added
    added = ns.with_norm(normed, "group", "conv1")
    assert isinstance(added.norm1, nn.BatchNorm2d) and isinstance(added.conv1.output_norm, nn.GroupNorm)
    assert isinstance(ns.with_norm(added, "batch", "conv1").conv1.output_norm, nn.BatchNorm2d)
    assert list(existing_norms(ns.with_norm(added, "none", "conv1"))) == list(existing_norms(normed))
    assert "norm1" not in existing_norms(ns.with_norm(normed, "none", "norm1"))


class HeadFirst(nn.Module):
    """Registers its output layer first, and the layers in the opposite order of their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body, self.stem = nn.Linear(6, 3), nn.Linear(5, 6), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(torch.tanh(self.stem(x)))))


def test_the_output_layer_is_the_last_registered_or_with_a_batch_the_last_called() -> None:
    model, x = HeadFirst(), torch.randn(7, 4)
    assert list(existing_norms(ns.with_norm(model, "batch"))) == ["head.output_norm", "body.output_norm"]
    called = ns.with_norm(model, "batch", batch=x)
    assert list(existing_norms(called)) == ["body.output_norm", "stem.output_norm"]
    assert list(existing_norms(ns.with_norm(model, "batch", "final", batch=(x, None)))) == ["head.input_norm"]


def test_a_parameter_of_two_dims_does_not_make_the_root_a_layer() -> None:
    class WithToken(HeadFirst):
        def __init__(self) -> None:
            super().__init__()
            self.class_token = nn.Parameter(torch.zeros(1, 4))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + self.class_token)

    changed = ns.with_norm(WithToken(), "batch", "final", batch=torch.randn(7, 4))
    assert list(existing_norms(changed)) == ["head.input_norm"]


def test_what_is_watched_is_the_layers_own_output() -> None:
    """As in a network written with norms: moments are taken in front of the norm (figure 5)."""
    changed, written = ns.with_norm(net("resnet8", "none"), "batch"), net("resnet8", "batch")
    seen: list[list[tuple[str, Tensor]]] = [[], []]
    for model, into in zip((changed, written), seen, strict=True):
        with record_calls(model, lambda call, into=into: into.append((call.name, call.output.clone()))):
            model(images())
    assert [name for name, _ in seen[0]] == [name for name, _ in seen[1]]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*seen, strict=True))
    moments = [ns.channel_moments(model, labelled_images()) for model in (changed, written)]
    assert moments[0].equals(moments[1])


def test_untouched_restores_the_norms_hooks() -> None:
    changed = ns.with_norm(net("resnet8", "none"), "batch")
    with no_trace(changed), untouched(changed):
        for module in changed.modules():
            module._forward_hooks.clear()
        changed(images())
    assert same_function(changed, net("resnet8", "batch"))


def test_copied_and_pickled_with_the_layer() -> None:
    for where in ("everywhere", "final"):
        changed = ns.with_norm(net("resnet8", "none"), "batch", where)
        copied = copy.deepcopy(changed)
        with torch.no_grad():
            for norm in existing_norms(copied).values():
                norm.weight.mul_(2)
        assert not same_function(copied, changed)  # the copy calls its own norms
        assert same_function(pickle.loads(pickle.dumps(changed)), changed)
        loaded = ns.with_norm(build_net("resnet8", width=8, seed=3), "batch", where)
        buffer = io.BytesIO()
        torch.save(changed.state_dict(), buffer)
        buffer.seek(0)
        loaded.load_state_dict(torch.load(buffer, weights_only=True))
        assert same_function(loaded, changed)


def test_a_hook_registered_after_unpickling_does_not_take_the_norms_place(monkeypatch) -> None:
    stored = pickle.dumps(ns.with_norm(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), "batch"))
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in a fresh process
    loaded = pickle.loads(stored)
    for _ in range(RemovableHandle.next_id + 3):
        loaded[0].register_forward_hook(lambda *_: None)
    norm_calls = []
    loaded[0].output_norm.register_forward_hook(lambda *_: norm_calls.append(1))
    loaded(torch.randn(5, 3))
    assert norm_calls == [1]


def test_an_output_layer_called_by_keyword() -> None:
    class ByKeyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=x)

    model, x = ByKeyword(), torch.randn(6, 4)
    changed = ns.with_norm(model, "batch", "final")
    assert torch.equal(changed(x), model(F.batch_norm(x, None, None, training=True)))


class Attention(nn.Module):
    """torch's transformer layers, as a classifier of sequences."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, dropout=0.0)
        self.embed, self.body, self.head = nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 4)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        return self.head(self.body(self.embed(x), src_key_padding_mask=padding).mean(1))


@pytest.mark.parametrize("kind", ["none", "batch", "rms", "tanh"])
def test_a_fused_transformer_layer_uses_the_new_norms_in_evaluation_too(kind: str) -> None:
    """Torch's fused path would compute layer norms, or fail where there are none."""
    model = Attention().eval()
    x, padding = torch.randn(5, 6, 3), torch.arange(6).expand(5, 6) >= 5
    changed = ns.with_norm(model, kind)
    called = []
    for norm in existing_norms(changed).values():
        norm.register_forward_hook(lambda *_: called.append(1))
    with torch.no_grad():
        fused = changed(x), changed(x, padding)
    assert len(called) == 2 * len(existing_norms(changed))
    plain = changed(x), changed(x, padding)  # with gradients nothing is fused
    for without, within in zip(plain, fused, strict=True):
        # attention itself still is in one of them: a few ulp of numbers near 1
        torch.testing.assert_close(without.detach(), within, rtol=0, atol=1e-5)


def test_attention_keeps_its_fused_maps() -> None:
    changed = ns.with_norm(Attention(), "layer", "everywhere")
    own = ["embed", "body.layers.0.linear1", "body.layers.0.linear2"]
    own += ["body.layers.1.linear1", "body.layers.1.linear2"]
    assert list(existing_norms(changed)) == [f"{path}.output_norm" for path in own]


@pytest.mark.parametrize("kind", ["batch", "instance"])
@pytest.mark.parametrize("shape", [(4, 6, 5), (4, 6, 5, 5), (4, 6, 3, 3, 3)])
def test_norms_that_take_any_number_of_positions(kind: str, shape: tuple[int, ...]) -> None:
    """A GroupNorm does not say how many there are."""
    x = torch.randn(*shape)
    changed = ns.with_norm(nn.Sequential(nn.GroupNorm(2, 6)), kind)
    assert isinstance(changed[0], ChannelBatchNorm if kind == "batch" else ChannelInstanceNorm)
    families = {
        "batch": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
        "instance": (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
    }
    known = families[kind][len(shape) - 3](6)
    assert torch.equal(changed(x), known(x))
    known_by_batch = ns.with_norm(nn.Sequential(nn.GroupNorm(2, 6)), kind, batch=x)
    assert type(known_by_batch[0]) is type(known)


def test_layer_norm_over_images_and_one_that_permutes() -> None:
    class LayerNorm2d(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    x = torch.randn(4, 6, 5, 5)
    over_all = ns.with_norm(nn.Sequential(nn.LayerNorm((6, 5, 5))), "batch")
    assert torch.equal(over_all(x), nn.BatchNorm2d(6)(x))
    permuting = ns.with_norm(nn.Sequential(LayerNorm2d(6)), "batch", batch=x)
    assert torch.equal(permuting(x), nn.BatchNorm2d(6)(x))
    with pytest.raises(ns.NormscopeError, match="does not say which dimension holds its channels; give a batch"):
        ns.with_norm(nn.Sequential(LayerNorm2d(6)), "batch")


def test_norms_of_somebodys_own_are_known_by_name_and_vectors() -> None:
    class LlamaRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    model, x = nn.Sequential(LlamaRMSNorm(), nn.Linear(6, 2)), torch.randn(3, 5, 6)
    assert torch.equal(ns.with_norm(model, "none")(x), model[1](x))
    assert torch.equal(ns.with_norm(model, "layer", batch=x)(x), model[1](F.layer_norm(x, (6,))))


class BatchNormAct(nn.BatchNorm2d):
    """As timm has it: a norm that drops and activates as well."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Dropout(0.5), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


@pytest.mark.parametrize("batch", [None, torch.randn(4, 3, 6, 6)])
def test_what_a_norm_does_besides_stays_behind_the_new_one(batch: Tensor | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct(4), nn.Flatten(), nn.Linear(64, 2)).eval()
    x = torch.randn(4, 3, 6, 6)
    group, none = ns.with_norm(model, "group", batch=batch), ns.with_norm(model, "none", batch=batch)
    assert list(existing_norms(group)) == ["1.norm"]
    assert torch.equal(group[1](model[0](x)), F.silu(nn.GroupNorm(1, 4)(model[0](x))))
    assert torch.equal(none[1](model[0](x)), F.silu(model[0](x)))
    assert torch.equal(ns.with_norm(group, "batch", batch=batch).eval()(x), model(x)), "there and back"
    assert list(existing_norms(ns.with_norm(model, "batch", "everywhere"))) == ["0.output_norm"]


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "compute",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    ],
)
def test_a_norm_behind_a_layer_whose_weight_is_computed(compute) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).train()
    compute(model[0])
    x = torch.randn(5, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for batch in (None, x):
        changed = ns.with_norm(model, "batch", "everywhere", batch=batch)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        expected = copy.deepcopy(changed)
        expected[0]._forward_hooks.clear()
        torch.testing.assert_close(changed[0](x), nn.BatchNorm1d(6)(expected[0](x)))
        changed(x).sum().backward()
        assert changed[2].weight.grad is not None


@pytest.mark.parametrize("family", [nn.LSTM, nn.GRU, nn.RNN])
@pytest.mark.parametrize("two_ways", [False, True])
def test_a_norm_behind_a_recurrent_net(family: type[nn.RNNBase], two_ways: bool) -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = family(3, 4, batch_first=True, bidirectional=two_ways)
            self.head = nn.Linear(8 if two_ways else 4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if not packed:
                return self.head(self.body(x)[0][:, -1])
            sequence = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 4, 4]), batch_first=True)
            return self.head(nn.utils.rnn.pad_packed_sequence(self.body(sequence)[0], batch_first=True)[0][:, 0])

    packed, x, model = False, torch.randn(3, 5, 3), Reads()
    changed = ns.with_norm(model, "layer", "everywhere", batch=x)
    assert list(existing_norms(changed)) == ["body.output_norm"]
    out, state = changed.body(x)
    plain, plain_state = model.body(x)
    assert torch.equal(out, F.layer_norm(plain, plain.shape[-1:]))
    torch.testing.assert_close(state, plain_state, rtol=0, atol=0)
    packed = True
    assert changed(x).isfinite().all()


class GraphConv(nn.Module):
    """As packages for graphs have it: a linear map of its own, then a sum over neighbors."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return edges @ (x @ self.weight)


def test_a_norm_behind_graph_convolutions() -> None:
    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2 = GraphConv(3, 5), GraphConv(5, 2)

        def forward(self, batch) -> Tensor:
            return self.conv2(self.conv1(*batch).relu(), batch[1])

    def loss_fn(model: nn.Module, batch) -> Tensor:
        return model(batch).square().mean()

    model, batch = Graph(), (torch.randn(6, 3), (torch.rand(6, 6) > 0.5).float())
    with pytest.raises(ns.NormscopeError, match=r"'conv1' \(GraphConv\) does not say .*; give a batch"):
        ns.with_norm(model, "batch")
    changed = ns.with_norm(model, "batch", batch=batch, loss_fn=loss_fn)
    assert list(existing_norms(changed)) == ["conv1.output_norm"]
    assert torch.equal(changed.conv1(*batch), nn.BatchNorm1d(5)(model.conv1(*batch)))


def test_a_norm_registered_twice_changes_in_both_places() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    model.alias = nn.Module()
    model.alias.norm = model[1]
    model.forward = lambda x: nn.Sequential.forward(model[:4], x)
    changed = ns.with_norm(model, "group")
    assert changed[1] is changed.alias.norm and isinstance(changed[1], nn.GroupNorm)


def test_the_root_may_be_a_norm() -> None:
    assert isinstance(ns.with_norm(nn.BatchNorm2d(4), "group"), nn.GroupNorm)
    assert isinstance(ns.with_norm(nn.BatchNorm2d(4), "none"), nn.Identity)


def test_group_counts_divide() -> None:
    model = nn.Sequential(nn.Conv2d(3, 7, 3), nn.Conv2d(7, 48, 3), nn.Conv2d(48, 2, 1))
    norms = list(existing_norms(ns.with_norm(model, "group")).values())
    assert [(n.num_groups, n.num_channels) for n in norms] == [(1, 7), (12, 48)]


def test_none_where_there_is_nothing_to_take_out() -> None:
    model = by_name("mlp").build()
    assert list(ns.with_norm(model, "none").state_dict()) == list(model.state_dict())
    with pytest.raises(InvalidConfig, match="no norms to swap"):
        ns.with_norm(model, "batch", "swap")


class MyRMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt() * self.weight


def test_a_norm_that_takes_channels_last_only_is_known_among_as_many_tokens():
    model = nn.Sequential(nn.Linear(4, 8), MyRMSNorm(8), nn.Flatten(), nn.Linear(64, 3))
    changed = ns.with_norm(model, "batch", batch=(torch.randn(5, 8, 4), torch.arange(5) % 3))
    x = torch.randn(5, 8, 8)
    expected = F.batch_norm(x.flatten(0, 1), None, None, training=True).reshape(x.shape)
    torch.testing.assert_close(changed[1](x), expected)

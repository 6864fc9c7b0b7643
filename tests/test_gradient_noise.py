"""Gradient noise: exact per example against a naive float64 twin, against enumeration, and in known cases."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, by_name, in_float64, scaled, squared_error

import normscope as ns
from normscope.errors import InvalidBatch, InvalidConfig, InvalidModel
from normscope.model.batch import take
from normscope.model.loss import default_loss
from normscope.model.state import untouched
from normscope.nets.names import NORMS
from normscope.nets.norms import make_norm
from normscope.per_example import per_example

DECOUPLED = [entry for entry in ZOO if not entry.couples and not entry.random]


def gradients(model, batches, loss_fn=None):
    """(batches, parameters' entries) in the model's precision, each by a plain backward pass on its own."""
    net = copy.deepcopy(model).train()
    rows = []
    for batch in batches:
        net.zero_grad()
        (loss_fn or default_loss)(net, batch).backward()
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters() if p.requires_grad]
        rows.append(torch.cat([part.flatten() for part in parts]).double().numpy())
    return np.stack(rows)


def single_gradients(model, batch, loss_fn=None):
    size = next(len(part) for part in (batch.values() if isinstance(batch, dict) else batch))
    return gradients(in_float64(model), [take(in_float64(batch), [i]) for i in range(size)], loss_fn)


def images(size=3, *, examples=8, channels=3, classes=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(examples, channels, size, size, generator=generator)
    return x, torch.randint(classes, (examples,), generator=generator)


@pytest.mark.parametrize("entry", DECOUPLED, ids=str)
def test_equals_its_twin(entry):
    model, batch = entry.build(0), entry.batch(0)
    dataset = ns.gradient_noise(model, batch, loss_fn=entry.loss_fn, batch_size=2)
    rows = single_gradients(model, batch, entry.loss_fn)
    n, rtol = len(rows), 5e-2 if entry.dtype == torch.bfloat16 else 1e-5  # eight bits; float32 through a few layers
    mean = rows.mean(0)
    variance = ((rows - mean) ** 2).sum() / (n - 1)
    np.testing.assert_allclose(dataset["squared_norm"], (rows**2).sum(1), rtol=rtol)
    np.testing.assert_allclose(dataset["noise_per_example"], variance, rtol=rtol)
    np.testing.assert_allclose(dataset["batch_variance"], variance / 2, rtol=rtol)
    np.testing.assert_allclose(dataset["gradient_squared_norm"], (mean**2).sum(), rtol=rtol)
    assert dataset["decouples"] and not dataset["is_random"] and dataset["batch_bias"] == 0
    assert dataset["decoupling_error"] < (0.05 if entry.dtype == torch.bfloat16 else 1e-5)
    for name, whole in (("noise_per_example", variance), ("gradient_squared_norm", (mean**2).sum())):
        np.testing.assert_allclose(dataset[f"layer_{name}"].sum(), whole, rtol=rtol)
    assert dataset.attrs["in_one_pass"] == ("false" if entry.name == "recurrent" else "true")


def test_the_layers_are_the_modules_that_own_parameters():
    model = by_name("frozen").build(0)
    dataset = ns.gradient_noise(model, by_name("frozen").batch(0))
    assert dataset["layer"].values.tolist() == ["2", "4"] and dataset["depth"].values.tolist() == [1, 2]
    dataset = ns.gradient_noise(by_name("layer_norm").build(0), by_name("layer_norm").batch(0))
    np.testing.assert_array_equal(dataset["depth"], [1, np.nan, 2, np.nan, 3])
    model, batch = by_name("mlp").build(0), by_name("mlp").batch(0)
    dataset = ns.gradient_noise(model, batch)
    model[0].requires_grad_(False)
    without = ns.gradient_noise(model, batch)  # a layer's share does not depend on what else is measured
    np.testing.assert_allclose(dataset["layer_noise_per_example"][1:], without["layer_noise_per_example"], rtol=1e-6)


def enumerated(model, batch, size, *, replace, loss_fn=None):
    """Gradients in float64 of all mini-batches of this size, each computed on its own."""
    examples = range(len(batch[1]))
    draws = itertools.product(examples, repeat=size) if replace else itertools.combinations(examples, size)
    model, batch = in_float64(model), in_float64(batch)
    return gradients(model, [take(batch, list(draw)) for draw in draws], loss_fn)


def test_c_is_what_enumeration_gives():
    """All mini-batches of 3 out of 6, with replacement and without: the theorem's three formulas."""
    model, batch = by_name("cnn_inplace").build(0), by_name("cnn_inplace").batch(0)
    unbiased = float(ns.gradient_noise(model, batch)["noise_per_example"])
    n, of_population = 6, unbiased * 5 / 6
    with_replacement = enumerated(model, batch, 3, replace=True).var(0).sum()
    without = enumerated(model, batch, 3, replace=False).var(0).sum()
    assert with_replacement == pytest.approx(of_population / 3, rel=1e-5)
    assert without == pytest.approx(of_population / 3 * (n - 3) / (n - 1), rel=1e-5)
    assert without == pytest.approx(unbiased / 3 * (1 - 3 / n), rel=1e-5)


def test_the_estimate_from_a_sample_is_unbiased():
    """Over all samples of 3 out of 6, the estimate averages to that of the six; the biased one does not."""
    model, batch = by_name("mlp").build(0), by_name("mlp").batch(0)
    whole = float(ns.gradient_noise(model, batch)["noise_per_example"])
    samples = [list(sample) for sample in itertools.combinations(range(6), 3)]
    estimates = [float(ns.gradient_noise(model, take(batch, sample))["noise_per_example"]) for sample in samples]
    assert np.mean(estimates) == pytest.approx(whole, rel=1e-5)
    assert np.mean(estimates) * 2 / 3 < 0.7 * whole


def test_batch_norm_has_no_c_but_the_variance_and_bias_of_its_mini_batches():
    entry = by_name("batch_norm")
    model, batch = entry.build(0).double(), in_float64(entry.batch(0))
    dataset = ns.gradient_noise(model, batch, batch_size=2, partitions=120)
    assert not dataset["decouples"] and dataset["decoupling_error"] > 0.1
    assert np.isnan(dataset["noise_per_example"]) and np.isnan(dataset["squared_norm"]).all()
    pairs = list(itertools.combinations(range(6), 2))
    rows = gradients(model, [take(batch, list(pair)) for pair in pairs])
    disjoint = [
        ((rows[i] - rows[j]) ** 2).sum() / 2
        for (i, a), (j, b) in itertools.combinations(enumerate(pairs), 2)
        if not set(a) & set(b)
    ]
    whole = gradients(model, [batch])[0]
    # 120 draws of the 15 partitions there are: a statistical error of a few per cent.
    assert dataset["batch_variance"] == pytest.approx(np.mean(disjoint), rel=0.1)
    assert dataset["batch_bias"] == pytest.approx(((rows.mean(0) - whole) ** 2).sum(), rel=0.2)
    assert dataset["gradient_squared_norm"] == pytest.approx((whole**2).sum(), rel=1e-9)
    assert dataset["layer_batch_variance"].sum() == pytest.approx(float(dataset["batch_variance"]))


def test_batch_norm_with_running_statistics_decouples():
    entry = by_name("batch_norm")
    model, batch = entry.build(0), entry.batch(0)
    dataset = ns.gradient_noise(model, batch, training=False)
    assert dataset["decouples"] and dataset.attrs["in_one_pass"] == "true"
    rows = single_gradients(nn.Sequential(Evaluated(model)), batch)
    np.testing.assert_allclose(dataset["squared_norm"], (rows**2).sum(1), rtol=1e-5)


class Evaluated(nn.Module):
    """A model that stays in evaluation mode."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)

    def train(self, mode=True):
        return super().train(False)


def test_a_variance_without_noise_is_zero_and_partitions_agree_with_c():
    """For a loss that decouples, taking batches apart must give C/|B|: the unbiased estimator on itself."""
    from normscope.probes.gradient_noise import mini_batch_noise

    model, batch = by_name("mlp").build(0).double(), in_float64(by_name("mlp").batch(0))
    c = float(ns.gradient_noise(model, batch)["noise_per_example"])
    with untouched(model) as start:
        measured = mini_batch_noise(model, batch, None, start=start, batch_size=2, partitions=120, seed=0)
    assert float(measured.variance.sum()) == pytest.approx(c / 2, rel=0.1)  # 120 draws of 15 partitions
    assert abs(float(measured.squared_bias.sum())) < 1e-12
    same = (batch[0][:1].expand(6, -1), batch[1][:1].expand(6))
    assert abs(float(ns.gradient_noise(model, same)["noise_per_example"])) < 1e-12


def test_a_sum_over_examples_is_recognized():
    entry = by_name("mlp")
    model, batch = entry.build(0), entry.batch(0)

    def summed(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    dataset, mean = ns.gradient_noise(model, batch, loss_fn=summed), ns.gradient_noise(model, batch)
    assert dataset.attrs["reduction"] == "sum" and mean.attrs["reduction"] == "mean"
    for name in ("noise_per_example", "squared_norm", "gradient_squared_norm", "noise_scale"):
        np.testing.assert_allclose(dataset[name], mean[name], rtol=1e-5)


def test_a_mean_over_words_of_unequal_sentences_does_not_decouple():
    """Cross-entropy that ignores labels weighs each example by its words: the mean of single gradients is another."""
    entry = by_name("embedding_tied")
    model, (tokens, labels) = entry.build(0), entry.batch(0)
    labels = labels.clone()
    labels[4, 1:] = -100
    assert not ns.gradient_noise(model, (tokens, labels), batch_size=2)["decouples"]
    labels[:, 1:] = -100
    assert ns.gradient_noise(model, (tokens, labels), batch_size=2)["decouples"]


def test_coupling_that_no_module_says_is_found():
    """Centring over the batch, by hand: everything that parameters take part in is heard, and the numbers object."""

    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(7, 8), nn.Linear(8, 4)

        def forward(self, x):
            x = self.first(x)
            return self.last(torch.tanh(x - x.mean(0)))

    dataset = ns.gradient_noise(Centred(), by_name("mlp").batch(0), batch_size=2)
    assert not dataset["decouples"] and np.isfinite(dataset["batch_variance"])


def test_dropout_is_marked_and_its_masks_are_frozen():
    entry = by_name("dropout")
    model, batch = entry.build(0), entry.batch(0)
    dataset = ns.gradient_noise(model, batch, seed=3)
    assert dataset["is_random"] and dataset["decouples"]
    assert dataset.identical(ns.gradient_noise(model, batch, seed=3))
    assert dataset["noise_per_example"] != ns.gradient_noise(model, batch, seed=4)["noise_per_example"]
    parameters = list(model.parameters())
    torch.manual_seed(3)
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    twin = [
        sum(float(g.square().sum()) for g in torch.autograd.grad(loss, parameters, retain_graph=True))
        for loss in losses
    ]
    np.testing.assert_allclose(dataset["squared_norm"], twin, rtol=1e-5)  # the same masks, float32


def norm_model(kind):
    channels_first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), make_norm(kind, 8), nn.ReLU(inplace=True))
    return nn.Sequential(*channels_first, nn.Flatten(), nn.Linear(72, 4))


def token_model(kind):
    return nn.Sequential(nn.Linear(3, 8), make_norm(kind, 8, channel_dim=-1), nn.Flatten(), nn.Linear(72, 4))


@pytest.mark.parametrize("kind", [kind for kind in NORMS if kind != "batch"])
@pytest.mark.parametrize("make", [norm_model, token_model])
def test_every_norm_but_batch_norm_is_heard_in_one_pass(kind, make):
    torch.manual_seed(0)
    model, (x, labels) = make(kind), images()
    batch = (x if make is norm_model else x.flatten(2).transpose(1, 2), labels)
    dataset = ns.gradient_noise(model, batch)
    rows = single_gradients(model, batch)
    assert dataset["decouples"] and dataset.attrs["in_one_pass"] == "true"
    np.testing.assert_allclose(dataset["squared_norm"], (rows**2).sum(1), rtol=1e-5)


CONVOLUTIONS = {
    "1d": (nn.Conv1d(3, 4, 3, padding=1, stride=2), (3, 9)),
    "strided, padded unevenly, dilated": (
        nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
        (3, 7, 6),
    ),
    "pointwise, strided": (nn.Conv2d(3, 4, 1, stride=2, bias=False), (3, 6, 6)),
    "circular": (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 5, 5)),
    "same": (nn.Conv2d(3, 4, 3, padding="same"), (3, 5, 5)),
    "same, even kernel": (nn.Conv2d(3, 4, 2, padding="same"), (3, 5, 5)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (4, 5, 5)),
    "depthwise, strided": (nn.Conv2d(4, 4, 3, groups=4, stride=2), (4, 7, 7)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), (3, 4, 4)),
    "transposed, grouped": (nn.ConvTranspose2d(4, 4, 3, groups=2), (4, 4, 4)),
    "3d": (nn.Conv3d(2, 3, (2, 3, 1), padding=(1, 0, 0), stride=(1, 2, 1)), (2, 4, 5, 3)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("channels_last", [False, True])
def test_convolutions_of_all_kinds(name, channels_last):
    layer, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    x = torch.randn(5, *shape)
    model = nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.Linear(layer(x)[0].numel(), 4))
    if channels_last and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    batch = (x, torch.tensor([0, 1, 2, 3, 0]))
    dataset = ns.gradient_noise(model, batch)
    rows = single_gradients(model, batch)
    np.testing.assert_allclose(dataset["squared_norm"], (rows**2).sum(1), rtol=1e-5)
    np.testing.assert_allclose(dataset["gradient_squared_norm"], (rows.mean(0) ** 2).sum(), rtol=1e-5)
    assert dataset.attrs["in_one_pass"] == ("false" if name == "same, even kernel" else "true")


class Vision(nn.Module):
    """A small vision transformer: class token, table of positions, attention with time in front, patches flattened."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, stride=2)
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 10, 8))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        x = self.encoder(x.transpose(0, 1))
        return self.head(self.scale * x[0])


class Reshaped(nn.Module):
    """One kernel for several crops of each image, crops first or images first; and twice, on two sizes."""

    def __init__(self, crops_first):
        super().__init__()
        self.crops_first = crops_first
        self.conv, self.fc = nn.Conv2d(3, 4, 2), nn.Linear(4, 4)

    def forward(self, x):
        crops = torch.stack([x[..., :4, :4], x[..., 2:, 2:], x[..., 1:5, 1:5]], 0 if self.crops_first else 1)
        y = self.conv(crops.flatten(0, 1)).tanh().mean((2, 3))
        y = y.unflatten(0, crops.shape[:2]).mean(0 if self.crops_first else 1)
        return self.fc(y + self.conv(x).tanh().mean((2, 3)))


class Widened(nn.Module):
    """A wide layer on few positions, for which Gram matrices are cheaper; one weight in two places."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.head = nn.Linear(6, 64, bias=False), nn.Linear(64, 64), nn.Linear(64, 4)

    def forward(self, x):
        return self.head(self.down(torch.tanh(self.up(x))).mean(1))


class Frame(nn.Module):
    """Parameters in operations that nothing listens to."""

    def __init__(self):
        super().__init__()
        self.fc = nn.utils.parametrizations.weight_norm(nn.Linear(7, 4))
        self.exponent = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.fc(x.abs() ** self.exponent)


@pytest.mark.parametrize(
    ("model", "shape", "in_one_pass"),
    [
        (Vision(), (3, 6, 6), True),
        (Reshaped(True), (3, 6, 6), True),
        (Reshaped(False), (3, 6, 6), True),
        (Widened(), (2, 6), True),
        (Frame(), (7,), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_models_as_people_build_them(model, shape, in_one_pass):
    torch.manual_seed(0)
    batch = (torch.randn(6, *shape), torch.tensor([0, 1, 2, 3, 0, 1]))
    dataset = ns.gradient_noise(model, batch)
    rows = single_gradients(model, batch)
    np.testing.assert_allclose(dataset["squared_norm"], (rows**2).sum(1), rtol=2e-5)
    np.testing.assert_allclose(dataset["gradient_squared_norm"], (rows.mean(0) ** 2).sum(), rtol=2e-5)
    assert dataset["decouples"] and dataset.attrs["in_one_pass"] == ("true" if in_one_pass else "false")


def test_a_penalty_on_the_weights_belongs_to_every_example():
    entry = by_name("mlp")
    model, batch = entry.build(0), entry.batch(0)

    def penalized(model, batch):
        return default_loss(model, batch) + 0.1 * sum(p.square().sum() for p in model.parameters())

    dataset = ns.gradient_noise(model, batch, loss_fn=penalized)
    rows = single_gradients(model, batch, penalized)
    assert dataset["decouples"] and dataset.attrs["in_one_pass"] == "false"
    np.testing.assert_allclose(dataset["squared_norm"], (rows**2).sum(1), rtol=1e-5)
    plain = ns.gradient_noise(model, batch)  # what is the same in every gradient is no noise
    np.testing.assert_allclose(dataset["noise_per_example"], plain["noise_per_example"], rtol=1e-4)


def test_a_model_that_takes_another_way_with_more_examples_is_still_exact():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 4)

        def forward(self, x):
            order = (self.first, self.second) if len(x) < 3 else (self.second, self.first)
            for layer in order:
                x = layer(x)
            return self.head(x)

    batch = by_name("mlp").batch(0)
    dataset = ns.gradient_noise(Fickle(), batch, batch_size=2)
    assert not dataset["decouples"]  # the gradient of six is not the mean of the single ones


def test_activations_far_above_what_float32_can_square():
    """Squares of 1e25 overflow float32 and the gradient itself does not."""
    model = nn.Linear(7, 4)
    batch = (torch.randn(6, 7, generator=torch.Generator().manual_seed(0)) * 1e25, torch.randn(6, 4) * 0.1)

    def tilt(model, batch):
        return (model(batch[0]) * batch[1]).sum(1).mean()

    dataset = ns.gradient_noise(model, batch, loss_fn=tilt)
    rows = single_gradients(model, batch, tilt)
    np.testing.assert_allclose(dataset["squared_norm"], (rows**2).sum(1), rtol=1e-5)
    kernels = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten())
    batch = (images(5)[0] * 1e25, torch.randn(8, 18, generator=torch.Generator().manual_seed(1)))
    dataset = ns.gradient_noise(kernels, batch, loss_fn=tilt)
    rows = single_gradients(kernels, batch, tilt)
    np.testing.assert_allclose(dataset["squared_norm"], (rows**2).sum(1), rtol=1e-5)


def test_nan_and_inf_are_the_networks_own():
    entry = by_name("cnn_inplace")
    model, (x, labels) = entry.build(0), entry.batch(0)
    x = x.clone()
    x[3] = torch.nan
    squares = ns.gradient_noise(model, (x, labels))["squared_norm"].values
    assert np.isnan(squares[3]) and np.isfinite(np.delete(squares, 3)).all()
    dataset = ns.gradient_noise(model, scaled((x, labels), 1e38))
    assert np.isnan(dataset["noise_per_example"]) and dataset["decouples"]


def test_the_noise_scale_is_infinite_where_the_gradient_is_not_told_from_zero():
    model = nn.Linear(3, 1, bias=False)
    x = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    dataset = ns.gradient_noise(model, (x, torch.zeros(2)), loss_fn=lambda model, batch: model(batch[0]).mean())
    assert dataset["noise_scale"] == np.inf and dataset["gradient_squared_norm"] == 0
    assert dataset["noise_per_example"] == 2
    aligned = (torch.tensor([[1.0, 0, 0], [3.0, 0, 0]]), torch.zeros(2))
    dataset = ns.gradient_noise(model, aligned, loss_fn=lambda model, batch: model(batch[0]).mean())
    assert dataset["noise_scale"] == pytest.approx(2 / (4 - 2 / 2))


def test_mistakes_are_said_in_one_line():
    model, batch = by_name("mlp").build(0), by_name("mlp").batch(0)
    with pytest.raises(InvalidBatch, match="holds 1 examples: give 2 or more"):
        ns.gradient_noise(model, take(batch, [0]))
    with pytest.raises(InvalidBatch, match="how many examples"):
        ns.gradient_noise(model, SimpleNamespace(x=batch), loss_fn=lambda model, batch: default_loss(model, batch.x))
    with pytest.raises(InvalidConfig, match="batch_size=0"):
        ns.gradient_noise(model, batch, batch_size=0)
    with pytest.raises(InvalidConfig, match="partitions=1"):
        ns.gradient_noise(model, batch, partitions=1)
    coupled = by_name("batch_norm")
    with pytest.raises(InvalidBatch, match="fewer than two mini-batches of 4"):
        ns.gradient_noise(coupled.build(0), coupled.batch(0), batch_size=4)
    with pytest.raises(InvalidBatch, match="labels go from"):
        ns.gradient_noise(model, (batch[0], batch[1] + 4))
    with pytest.raises(InvalidModel, match="no trainable parameter"):
        ns.gradient_noise(by_name("mlp").build(0).requires_grad_(False), batch)
    with pytest.raises(InvalidBatch, match="does not take this batch"):
        ns.gradient_noise(model, (batch[0][:, :3], batch[1]))


def test_a_batch_norm_that_cannot_take_one_example_couples():
    model = nn.Sequential(nn.Linear(7, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    dataset = ns.gradient_noise(model, by_name("mlp").batch(0), batch_size=3)
    assert not dataset["decouples"] and dataset["decoupling_error"] == np.inf
    assert np.isfinite(dataset["batch_variance"])


def test_what_is_found_is_the_mean_gradient_too():
    for name in ("shared", "attention", "regression"):
        entry = by_name(name)
        model, batch = entry.build(0), entry.batch(0)
        loss_fn = squared_error if name == "regression" else None
        with untouched(model) as start:
            found = per_example(model, batch, loss_fn, start=start)
        assert found.mean is not None
        twin = gradients(in_float64(model), [in_float64(batch)], loss_fn)[0]
        flat = torch.cat([part.flatten() for part in found.mean]).numpy()
        np.testing.assert_allclose(flat, twin, atol=1e-6 * np.abs(twin).max())


def test_the_picture_shows_noise_and_signal_against_depth():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    dataset = ns.gradient_noise(by_name("layer_norm").build(0), by_name("layer_norm").batch(0), batch_size=2)
    assert ns.plot_gradient_noise(dataset, ax=ax) is ax
    noise, signal = ax.lines[:2]
    np.testing.assert_allclose(noise.get_ydata(), dataset["layer_batch_variance"][[0, 2, 4]])
    np.testing.assert_allclose(signal.get_ydata(), dataset["layer_gradient_squared_norm"][[0, 2, 4]])
    assert noise.get_xdata().tolist() == [1, 2, 3] and ax.get_yscale() == "log"
    assert "|B| = 2" in ax.get_ylabel() and ax.get_xlabel() == "layer on the main path"

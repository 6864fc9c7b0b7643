"""diagnose: what a loss is the sum of, examples that are mixed, targets that a loss does not take."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import no_trace

import normscope as ns
from normscope.descent.optimizers import optimizer_factory
from normscope.descent.recipe import Recipe, scheduled_rates
from normscope.diagnosis.facts import Facts
from normscope.diagnosis.faults import schedule
from normscope.diagnosis.finding import Finding, as_findings
from normscope.diagnosis.loss_terms import Split, loss_terms
from normscope.diagnosis.mixing import mixing
from normscope.model.best_constant import best_constant_loss

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

Pair = tuple[Tensor, Tensor]


def blobs(rows: int = 512) -> Pair:
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(4, (rows,), generator=generator)
    return torch.randn(rows, 8, generator=generator) + 1.5 * F.one_hot(y, 8), y


def cut(x: Tensor, y: Tensor, size: int = 32) -> list[Pair]:
    return list(zip(x.split(size), y.split(size), strict=True))


def mlp(outputs: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, outputs))


def found_in(model: Any, batches: Any, optimizer: str = "adam", **options: Any) -> list[Finding]:
    tree = ns.diagnose(model, batches, optimizer=optimizer, **{"lr": 3e-3, "steps": 100, "seconds": 2.0, **options})
    return [finding for finding in as_findings(tree["findings"].to_dataset()) if finding.fault]


def penalized(weight: float) -> Any:
    def loss_fn(model: nn.Module, batch: Pair) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1]) + weight * sum(p.abs().sum() for p in model.parameters())

    return loss_fn


def test_a_penalty_that_outweighs_the_data_is_told_from_a_light_one() -> None:
    batches = cut(*blobs())
    first = found_in(mlp(), batches, loss_fn=penalized(0.2), lr=0.01, steps=150)[0]
    assert (first.name, first.category) == ("penalty", "regularization")
    assert first.numbers["score"] < 0.4 and first.numbers["penalty_share"] > 0.5
    assert found_in(mlp(), batches, loss_fn=penalized(1e-4), lr=0.01, steps=150) == []


def test_a_loss_is_taken_apart_through_its_factors() -> None:
    def loss_fn(model: nn.Module, batch: Pair) -> Tensor:
        logits = model(batch[0])
        parts = F.cross_entropy(logits, batch[1]) + 0.5 * (logits.square().mean() + 3 * logits.abs().mean())
        return (parts + 0.1 * model[0].weight.square().sum()) / 2

    model, (batch, *others) = mlp(), cut(*blobs())
    terms = loss_terms(model, [batch, *others], loss_fn)
    logits, weight = model(batch[0]).detach(), model[0].weight.detach()
    expected = [
        F.cross_entropy(logits, batch[1]) / 2,
        logits.square().mean() / 4,
        0.75 * logits.abs().mean(),
        0.05 * weight.square().sum(),
    ]
    total = float(sum(expected))
    assert [term.share for term in terms] == pytest.approx([float(e) / total for e in expected], rel=1e-5)
    assert [term.name for term in terms] == ["nll_loss", "mean", "mean", "sum"]
    assert [term.penalty for term in terms] == [False, False, False, True] and all(term.weighted for term in terms)
    split = Split(loss_fn, lambda _name, place: place == 1, lambda _name, place: float(place == 2))
    assert float(split(model, batch).detach()) == pytest.approx(float(expected[2])) and split.judged == pytest.approx(
        float(expected[1])
    )


def test_a_condition_at_a_fixed_place_is_no_penalty() -> None:
    def loss_fn(model: nn.Module, batch: Pair) -> Tensor:
        return model(batch[0]).square().mean() + (model(torch.zeros(1, 8)) - 1).square().mean()

    assert [term.penalty for term in loss_terms(mlp(), cut(*blobs()), loss_fn)] == [False, False]


class Detector(nn.Module):
    """Gives its losses in training mode, the boxes in pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.label, self.box = nn.Sequential(nn.Linear(8, 32), nn.ReLU()), nn.Linear(32, 4), nn.Linear(32, 2)

    def forward(self, x: Tensor, y: Tensor, box: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {"loss_label": F.cross_entropy(self.label(h), y), "loss_box": F.l1_loss(self.box(h), box)}


def total(model: nn.Module, batch: Any) -> Tensor:
    return sum(model(*batch).values(), torch.zeros(()))


@pytest.mark.parametrize(("size", "told"), [(1e4, True), (1.0, False)])
def test_the_term_that_drowns_the_others_is_named_with_its_share(size: float, told: bool) -> None:
    x, y = blobs()
    box = size * torch.rand(512, 2, generator=torch.Generator().manual_seed(2))
    batches = list(zip(x.split(32), y.split(32), box.split(32), strict=True))
    found = [
        f for f in found_in(Detector(), batches, "momentum", loss_fn=total, lr=0.03) if f.name == "dominating_term"
    ]
    assert bool(found) is told
    if found:
        assert found[0].place == "loss_box" and found[0].numbers["share"] > 0.99
        assert found[0].numbers["alone"] < 0.5 * found[0].numbers["others"]


class Coder(nn.Module):
    """A variational autoencoder; gives the reconstruction, and the codes' mean and log-variance."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.mean, self.log_variance = nn.Linear(8, 16), nn.Linear(16, 2), nn.Linear(16, 2)
        self.decoder = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.body(x).relu()
        mean, log_variance = self.mean(h), self.log_variance(h)
        return self.decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean)), mean, log_variance


@pytest.mark.parametrize(("of_batch", "told"), [(torch.sum, True), (torch.mean, False)])
def test_a_divergence_summed_over_the_batch_drowns_a_reconstruction(of_batch: Any, told: bool) -> None:
    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        output, mean, log_variance = model(x)
        divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(1)
        return F.mse_loss(output, x) + (1 if told else 0.01) * of_batch(divergence)

    found = found_in(Coder(), list((2 * blobs()[0]).split(32)), loss_fn=loss_fn, lr=0.01, steps=200, seconds=4.0)
    assert [f.place for f in found if f.name == "dominating_term"] == (["sum"] if told else [])


def test_a_square_sum_beyond_float16_is_named_though_the_loss_is_finite() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp()

        def forward(self, x: Tensor) -> Tensor:
            h = (200 * x).half()
            return self.body((h / h.square().sum(1, keepdim=True).sqrt()).float())

    first = found_in(Scaled(), cut(*blobs()))[0]
    assert (first.name, first.category, first.place) == ("number_range", "numerics", "the model itself")


def test_a_loop_that_starts_anew_is_told_from_batches() -> None:
    batches = cut(*blobs())
    first = found_in(mlp(), [batches[0]] * 6, steps=40)[0]
    assert (first.name, first.numbers["batches"]) == ("same_batch", 6)
    assert found_in(mlp(), batches, steps=100) == []


def test_a_function_that_gives_all_data_as_one_batch_does_not_start_anew() -> None:
    whole = blobs()
    tree = ns.diagnose(mlp(), lambda _seed: [whole], optimizer="adam", lr=0.01, steps=40, seconds=2.0)
    assert not [f for f in as_findings(tree["findings"].to_dataset()) if f.fault]
    assert tree["batches"].sizes["batch"] == 1


class Flow(nn.Module):
    """Affine coupling layers: the spread of what they give shrinks as the likelihood rises."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 2)) for _ in range(6))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        volume = torch.zeros(len(x))
        for net in self.nets:
            kept, moved = x.split(1, 1)
            scale, shift = net(kept).chunk(2, 1)
            scale = 1.5 * scale.tanh()
            volume = volume + scale[:, 0]
            x = torch.cat([moved * scale.exp() + shift, kept], 1)
        return x, volume


def test_a_flow_that_learns_is_not_called_collapsed() -> None:
    def loss_fn(model: nn.Module, x: Tensor) -> Tensor:
        z, volume = model(x)
        return (0.5 * z.square().sum(1) - volume).mean()

    generator = torch.Generator().manual_seed(0)
    u, noise = torch.randn(2, 1000, generator=generator)
    data = torch.stack([3 * u, 0.7 * u**2 - 0.7 + 0.2 * noise], 1)
    tree = ns.diagnose(Flow(), list(data.split(100)), optimizer="adam", loss_fn=loss_fn, lr=5e-3, steps=200)
    assert "collapse" not in tree["findings"]["finding"]


@pytest.mark.parametrize(("weight", "told"), [(1e-4, True), (0.5, False)])
def test_a_class_that_hardly_counts_is_named(weight: float, told: bool) -> None:
    def loss_fn(model: nn.Module, batch: Pair) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], weight=torch.tensor([1.0, weight, 1.0, 1.0]))

    found = [f for f in found_in(mlp(), cut(*blobs()), loss_fn=loss_fn) if f.name == "class_weights"]
    assert bool(found) is told
    assert not found or (found[0].title.startswith("class 1 ") and found[0].numbers["weight"] < 1e-3)


def test_a_rare_class_of_a_weight_of_its_own_is_no_fault() -> None:
    x, y = blobs(2048)
    rare = (y > 0) | (torch.arange(len(y)) % 20 == 0)
    batches, counts = cut(x[rare], y[rare]), torch.bincount(y[rare])

    def loss_fn(model: nn.Module, batch: Pair) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1], weight=len(y) / counts)

    assert found_in(mlp(), batches, loss_fn=loss_fn) == []


@pytest.mark.parametrize(("units", "told"), [(1, True), (4, False)])
def test_one_unit_that_everything_goes_through_is_told_from_a_gate(units: int, told: bool) -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, units), nn.ReLU(), nn.Linear(units, 4))
    found = [f.place for f in found_in(narrow, cut(*blobs()), lr=0.01) if f.name == "bottleneck"]
    assert found == (["2"] if told else [])
    assert not [f for f in found_in(Gated(), cut(*blobs()), steps=4) if f.name == "bottleneck"]


def test_an_image_of_one_channel_is_no_bottleneck() -> None:
    x = torch.randn(128, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1))
    found = found_in(model, cut(x, x.roll(1, 2)), loss_fn=lambda m, b: F.mse_loss(m(b[0]), b[1]), steps=4)
    assert not [f for f in found if f.name == "bottleneck"]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.gate, self.head = nn.Linear(8, 32), nn.Linear(32, 1), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x).relu()
        return self.head(h * self.gate(h).sigmoid())


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm, self.head = nn.LSTM(4, 24, batch_first=batch_first), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def series() -> list[Pair]:
    x = torch.randn(512, 6, 4, generator=torch.Generator().manual_seed(3))
    return cut(x, (x[:, :2, 0].sum(1) > 0).long())


def test_a_recurrence_over_the_batch_is_told_from_one_over_the_sequence() -> None:
    first = found_in(Recurrent(False), series(), lr=0.02, steps=120)[0]
    assert (first.category, first.place, first.code) == ("architecture", "lstm", "nn.LSTM(..., batch_first=True)")
    assert found_in(Recurrent(True), series(), lr=0.02, steps=120) == []


class Averaging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inward, self.head, self.dim = nn.Linear(4, 24), nn.Linear(24, 2), dim

    def forward(self, x: Tensor) -> Tensor:
        h = self.inward(x).relu()
        pooled = h.mean(1) if self.dim == 1 else h.mean(0, keepdim=True).expand_as(h)[:, -1]
        return self.head(pooled)


def test_examples_that_are_mixed_are_named() -> None:
    assert mixing(Averaging(1), series())[0] == 0
    change, where = mixing(Averaging(0), series())
    assert change > 0.1 and where == ""
    first = found_in(Averaging(0), series())[0]
    assert first.name == "mixed_examples" and "dim 0" in first.advice
    normed = nn.Sequential(nn.Flatten(), nn.Linear(24, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    assert mixing(normed, series())[0] == 0, "batch norm does so in training mode alone"
    assert mixing(Recurrent(False), series())[1] == "lstm"
    model, batches = Recurrent(False), series()
    with no_trace(model, batches):
        mixing(model, batches)
        loss_terms(model, batches)


def with_logits(model: nn.Module, batch: Pair) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


def test_masks_of_255_in_a_binary_cross_entropy() -> None:
    x, _ = blobs()
    masks = 255.0 * (x[:, :3] > 0.5)
    first = found_in(mlp(3), cut(x, masks), loss_fn=with_logits, lr=0.01)[0]
    assert first.title == "the targets are not between 0 and 1" and first.code == "targets = (targets - 0) / 255"
    assert 0.6 < first.numbers["score_mended"] <= 1
    assert found_in(mlp(3), cut(x, masks / 255), loss_fn=with_logits, lr=0.01) == []


def test_cross_entropy_over_one_unit() -> None:
    x, y = blobs()
    first = found_in(mlp(1), cut(x, (y == 0).long()), loss_fn=lambda m, b: F.cross_entropy(m(b[0]), 0 * b[1]), lr=0.01)[
        0
    ]
    assert (first.name, first.category) == ("one_class", "loss")
    assert "binary_cross_entropy_with_logits" in first.code


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        (lambda o: torch.optim.lr_scheduler.StepLR(o, 2, 0.1), True),
        (lambda o: torch.optim.lr_scheduler.StepLR(o, 20, 0.1), False),
        (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 40), False),
        (lambda o: torch.optim.lr_scheduler.LinearLR(o, 1e-4, total_iters=10), False),
    ],
)
def test_a_schedule_that_ends_the_training_is_told_by_its_rates(scheduler: Any, told: bool) -> None:
    model = mlp()
    recipe = Recipe(optimizer_factory("sgd"), 40, scheduler=scheduler)
    with no_trace(model, []):
        rates = scheduled_rates(recipe, model)
    assert len(rates) == 40 and rates[0] == 1
    suspicion = schedule.FAULT.suspected(Facts(None, schedule=rates))  # type: ignore[misc, arg-type]
    assert (suspicion is not None) is told
    if suspicion is not None:
        assert suspicion.numbers["moving_steps"] == 8 and "From step 8 of 40 on" in suspicion.sentence
    assert schedule.FAULT.suspected(Facts(None)) is None  # type: ignore[misc, arg-type]


class Graph:
    """A batch of somebody's own class, which says nothing of examples or labels."""

    def __init__(self) -> None:
        (self.x, self.y), self.next = blobs(12), torch.arange(12).roll(1)


def test_a_batch_of_its_own_class_leaves_no_trace() -> None:
    """Its loss is fitted by a constant, and the model runs for that."""
    model, graph = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)), Graph()

    def loss_fn(model: nn.Module, batch: Graph) -> Tensor:
        return F.cross_entropy(model(batch.x + batch.x[batch.next]), batch.y)

    with no_trace(model):
        ns.diagnose(model, [graph, graph], loss_fn=loss_fn, optimizer="sgd", seconds=2.0)
    with no_trace(model):
        assert best_constant_loss(model, [graph], loss_fn) < 1.39

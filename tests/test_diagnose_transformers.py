"""diagnose: attention, masks, the order of a sequence; the two modes, parameters of one's own."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import disturb, no_trace

import normscope as ns
from normscope.diagnosis.attention import logits_scaled, measured, transformer
from normscope.diagnosis.finding import Finding, as_findings
from normscope.diagnosis.positions import blind_to_order
from normscope.diagnosis.sequences import order_of
from normscope.model.state import untouched

pytestmark = pytest.mark.usefixtures("one_thread_throughout")

TOKENS, LENGTH, WIDTH, HEADS = 11, 12, 32, 4


class Attention(nn.Module):
    """Causal attention; `how` spoils it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.qkv, self.out, self.how = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), how
        self.mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) if "mha" in how else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        if self.mha is not None:
            return self.mha(x, x, x, need_weights="weights" in self.how, attn_mask=hidden)[0]
        q, k, v = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        if self.how == "fused":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = q @ k.transpose(-2, -1)
            scores = scores * 30 if self.how == "unscaled" else scores / math.sqrt(q.shape[-1])
            if self.how == "hides all":
                scores = scores.masked_fill(hidden | True, -1e9)
            elif self.how == "sees itself":
                scores = scores.masked_fill(~torch.eye(x.shape[1], dtype=torch.bool), -1e9)
            elif self.how == "upside down":
                scores = scores.masked_fill(~hidden, -1e9)
            elif self.how == "turned":
                scores = scores.masked_fill(~hidden, -math.inf)
            elif self.how != "leaks":
                scores = scores.masked_fill(hidden, -math.inf)
            y = scores.softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, how: str, post: bool) -> None:
        super().__init__()
        self.first, self.second, self.post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH), post
        self.attention = Attention(how)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.first(x + self.attention(x))
            return self.second(x + self.mlp(x))
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Model(nn.Module):
    def __init__(self, how: str, post: bool = False, layers: int = 2) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(TOKENS, WIDTH), nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(*[Block(how, post) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, TOKENS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.position))).flatten(0, 1)


def gpt(how: str = "", **options: Any) -> Model:
    torch.manual_seed(0)
    return Model(how, **options)


def sentences(shift: int = 1, batches: int = 12) -> list[tuple[Tensor, Tensor]]:
    """Each token follows from the two before it."""
    generator, made = torch.Generator().manual_seed(0), []
    for _ in range(batches):
        x = torch.randint(TOKENS, (16, LENGTH + 2), generator=generator)
        for t in range(2, LENGTH + 2):
            x[:, t] = (3 * x[:, t - 1] + x[:, t - 2] + 1) % TOKENS
        made.append((x[:, :LENGTH], x[:, shift : LENGTH + shift].flatten()))
    return made


def found_in(model: Any, batches: Any, **options: Any) -> list[Finding]:
    tree = ns.diagnose(model, batches, optimizer="adam", **{"lr": 3e-3, "steps": 100, "seconds": 4.0, **options})
    return [finding for finding in as_findings(tree["findings"].to_dataset()) if finding.fault]


@pytest.mark.parametrize(
    ("how", "name", "title", "place"),
    [
        ("leaks", "mask", "outputs see what they are to foretell", "blocks.0.attention"),
        ("upside down", "mask", "a mask is upside down", "blocks.0.attention"),
        ("hides all", "mask", "a mask hides every key", "blocks.0.attention"),
        ("sees itself", "mask", "positions do not see each other", "blocks.0.attention"),
        ("unscaled", "attention", "attention is saturated from the start", "blocks.0.attention"),
    ],
)
def test_a_fault_of_attention_is_named_first_with_its_place(how: str, name: str, title: str, place: str) -> None:
    first = found_in(gpt(how), sentences())[0]
    assert (first.name, first.title) == (name, title) and first.place.rstrip("01") == place.rstrip("01")
    assert first.category == "architecture" and "scores" in first.code


@pytest.mark.parametrize("how", ["", "fused", "mha", "mha weights"])
def test_sound_attention_is_left_alone_however_it_is_written(how: str) -> None:
    model = gpt(how)
    assert found_in(model, sentences()) == []
    seen, order = transformer(model, sentences()[0]), order_of(model, sentences())
    assert seen is not None and len(seen.attentions) == 2 and seen.post_norms == 0
    assert all(one.module.startswith("blocks.") and one.keys == LENGTH for one in seen.attentions)
    assert order is not None and order.ahead == 1 and order.leak == 0 and order.context > 0.01


def test_targets_that_are_not_shifted_are_told_from_those_of_the_next_position() -> None:
    first = found_in(gpt(), sentences(shift=0))[0]
    assert (first.name, first.title, first.category) == ("shifted_targets", "the targets are not shifted", "labels")


class Shifting(nn.Module):
    """Moves the labels itself, as language models of a mapping do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = gpt()

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.body(input_ids).unflatten(0, input_ids.shape)
        return {"loss": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), "logits": logits}


def test_labels_that_are_shifted_twice() -> None:
    given = {shift: [{"input_ids": x, "labels": y.view(x.shape)} for x, y in sentences(shift)] for shift in (0, 1)}
    assert found_in(Shifting(), given[0]) == []
    first = found_in(Shifting(), given[1])[0]
    assert first.title == "the targets are shifted twice" and first.numbers["ahead"] == 2


def test_sequences_whose_targets_are_others_are_not_judged() -> None:
    flipped = [(x, x.flip(1).flatten()) for x, _ in sentences()]
    assert order_of(gpt("leaks"), flipped) is None
    assert order_of(gpt("leaks"), [(x, y.view(x.shape)[:, 0]) for x, y in sentences()]) is None


def test_a_causal_mask_that_is_turned_round_is_told_from_a_row_without_keys() -> None:
    first = found_in(gpt("turned"), sentences(batches=2))[0]
    assert first.name == "not_finite" and "the mask is turned round" in first.sentence
    assert first.advice.startswith("Turn the mask round") and "triu(1)" in first.code


def test_the_numbers_of_a_softmax_are_known() -> None:
    logits = torch.tensor([[0.0, 2.0, -math.inf], [5.0, -1e9, -1e9], [-1e9, -1e9, -1e9]])
    seen = measured(logits[None], "here")
    assert seen.spread == pytest.approx(1.0) and seen.hidden == pytest.approx(1 / 3)
    assert seen.ahead == pytest.approx(1 / 3)
    assert seen.largest == pytest.approx(1 / (1 + math.exp(-2)))


@pytest.mark.parametrize("how", ["unscaled", "fused", "mha"])
def test_scaled_logits_are_those_of_a_softmax_with_that_factor(how: str) -> None:
    model, (x, y) = gpt(how), sentences()[0]
    before = transformer(model, (x, y))
    paths = [one.module for one in before.attentions] if before else []
    with untouched(model):
        logits_scaled(dict.fromkeys(paths, 0.25))(model)
        changed = model.blocks[0].attention(torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        part = model.blocks[0].attention
        weight = part.mha.in_proj_weight if part.mha is not None else part.qkv.weight
        bias = part.mha.in_proj_bias if part.mha is not None else part.qkv.bias
        weight[:WIDTH] *= 0.25
        bias[:WIDTH] *= 1.0 if part.mha is not None else 0.25
        wanted = part(torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(changed, wanted, atol=1e-6)


def test_norms_behind_branches_are_counted() -> None:
    for how in ("", "mha"):
        post, pre = (transformer(gpt(how, post=post, layers=4), sentences()[0]) for post in (True, False))
        assert post is not None and pre is not None
        assert (post.post_norms, pre.post_norms) == (7, 0), "the first sums the embedding, which no norm gives"


def test_they_leave_no_trace() -> None:
    for how in ("", "mha", "fused"):
        model, batches = disturb(gpt(how)), sentences()
        with no_trace(model, batches):
            transformer(model, batches[0])
            order_of(model, batches)


# --- The two modes, parameters of one's own ---


def blobs(rows: int = 512) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(rows) % 4
    return torch.randn(rows, 8, generator=generator) + 1.5 * F.one_hot(y, 8), y


def cut(x: Tensor, y: Tensor, size: int = 32) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def normed(momentum: float | None = 0.1) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, 4))


@pytest.mark.parametrize(("momentum", "name"), [(1e-4, "eval_mode"), (0.1, ""), (None, "")])
def test_running_statistics_that_lag_behind(momentum: float | None, name: str) -> None:
    x, y = blobs()
    found = found_in(normed(momentum), cut(20 + 5 * x, y), steps=120)
    assert [finding.name for finding in found] == ([name] if name else [])
    if found:
        assert found[0].place == "1" and found[0].numbers["kept"] == pytest.approx(0.9999**120)
        assert found[0].numbers["recalibrated_loss"] < 0.5 * found[0].numbers["eval_loss"]


class WithTable(nn.Module):
    def __init__(self, size: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Parameter(size * torch.randn(1, 32))
        self.inward, self.outward = nn.Linear(8, 32), nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.outward(self.inward(x) + self.table)


def test_a_parameter_of_a_modules_own_that_starts_too_large_is_named() -> None:
    batches = cut(*blobs())
    first = found_in(WithTable(3000.0), batches)[0]
    assert (first.name, first.place) == ("bare_parameters", "table")
    assert first.code == "nn.init.normal_(model.get_parameter('table'), std=0.02)"
    assert found_in(WithTable(0.02), batches) == []


class Encoder(nn.Module):
    """Classes of a sequence by attention, with a table of positions or without."""

    def __init__(self, positions: bool) -> None:
        super().__init__()
        self.embed, self.block = (
            nn.Embedding(TOKENS, WIDTH),
            nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True),
        )
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH)) if positions else None
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x if self.positions is None else x + self.positions[: x.shape[1]]
        return self.head(self.block(x).mean(1))


def encoder(positions: bool) -> Encoder:
    torch.manual_seed(0)
    return Encoder(positions)


def which_comes_first(how_many: int = 40) -> list[tuple[Tensor, Tensor]]:
    """Two marks in every sequence, and which of them comes first."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(how_many):
        x = torch.randint(2, TOKENS, (32, LENGTH), generator=generator)
        y = torch.randint(2, (32,), generator=generator)
        early = torch.randint(LENGTH // 2, (32,), generator=generator)
        rows = torch.arange(32)
        x[rows, early], x[rows, early + LENGTH // 2] = y, 1 - y
        batches.append((x, y))
    return batches


def test_attention_without_positions_is_told_by_another_order() -> None:
    batches = which_comes_first()
    assert blind_to_order(encoder(False), batches[0]) == "embed"
    assert blind_to_order(encoder(True), batches[0]) == ""
    tree = ns.diagnose(encoder(False), batches, optimizer="adam", lr=0.003, steps=200, seconds=30)
    first = as_findings(tree["findings"].to_dataset())[0]
    assert (first.name, first.category, first.place) == ("order_unseen", "architecture", "embed")


def test_of_a_set_no_order_is_asked() -> None:
    """What does not depend on the order is learned, and nobody is accused."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, TOKENS, (1280, LENGTH), generator=generator)
    batches = list(zip(x.split(32), (x == 5).any(1).long().split(32), strict=True))
    assert blind_to_order(encoder(False), batches[0]) == "embed"
    tree = ns.diagnose(encoder(False), batches, optimizer="adam", lr=0.003, steps=200, seconds=30)
    assert "order_unseen" not in [f.name for f in as_findings(tree["findings"].to_dataset())]

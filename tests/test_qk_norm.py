"""QK norm: the same attention but for the norms, put into what computes it, and refused where there is none."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import no_trace

from normscope.errors import InvalidConfig
from normscope.nets.qk_norm import QKNormAttention, put_norms
from normscope.surgery.residual import with_qk_norm

CAUSAL = nn.Transformer.generate_square_subsequent_mask(5)


class Attention(nn.Module):
    """As people write it, on torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, None, 0.0, True).transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention, self.head = attention, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(x)).mean(1)


BATCH = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3


@pytest.mark.parametrize("made", [{}, {"batch_first": True}, {"kdim": 6, "vdim": 4}, {"bias": False}])
@pytest.mark.parametrize(
    "called",
    [
        {},
        {"need_weights": False},
        {"average_attn_weights": False},
        {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
        {"attn_mask": CAUSAL.isinf().expand(4, 5, 5)},
        {"key_padding_mask": torch.tensor([[False] * 4 + [True], [False] * 5]), "attn_mask": CAUSAL.isinf()},
    ],
)
def test_without_its_norms_it_is_torchs_attention(made: dict[str, Any], called: dict[str, Any]) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, **made)
    shapes = [
        (2, 5, n) if made.get("batch_first") else (5, 2, n) for n in (8, made.get("kdim", 8), made.get("vdim", 8))
    ]
    q, k, v = (torch.randn(shape) for shape in shapes)
    changed: Any = copy.deepcopy(plain)
    put_norms(changed, 4)
    assert isinstance(changed, QKNormAttention)
    different = changed(q, k, v, **called)[0]
    changed.q_norm = changed.k_norm = nn.Identity()
    for ours, theirs in zip(changed(q, k, v, **called), plain(q, k, v, **called), strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(different, plain(q, k, v, **called)[0])


def test_alone_without_a_batch() -> None:
    torch.manual_seed(0)
    plain, x = nn.MultiheadAttention(8, 2), torch.randn(5, 8)
    changed: Any = copy.deepcopy(plain)
    put_norms(changed, 4)
    changed.q_norm = changed.k_norm = nn.Identity()
    for ours, theirs in zip(changed(x, x, x), plain(x, x, x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_queries_and_keys_of_somebodys_own_attention_are_normed() -> None:
    torch.manual_seed(0)
    model = Net(Attention())
    with no_trace(model, BATCH):
        changed: Any = with_qk_norm(model, batch=BATCH)
    attention = changed.attention
    q, k, v = attention.qkv(BATCH[0]).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    q, k = (x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() for x in (q, k))
    logits = (q @ k.transpose(-2, -1) / 2).masked_fill(torch.ones(5, 5).tril() == 0, -math.inf)
    expected = attention.out((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(BATCH[0]), expected)
    before = copy.deepcopy(changed)(BATCH[0])
    with torch.no_grad():
        changed.attention.qkv.weight[:16] *= 1e4  # eps is far below the size of queries and keys then
        changed.attention.qkv.bias[:16] *= 1e4
    torch.testing.assert_close(changed(BATCH[0]), before, rtol=1e-3, atol=1e-4)
    changed(BATCH[0]).sum().backward()
    assert attention.q_norm.weight.grad is not None
    with pytest.raises(RuntimeError):
        changed(torch.ones(2, 3))
    torch.testing.assert_close(F.scaled_dot_product_attention(q, k, v), (q @ k.transpose(-2, -1) / 2).softmax(-1) @ v)


def test_torchs_transformer_layers_keep_their_norms_in_evaluation() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    model = Net(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    changed = with_qk_norm(model, batch=BATCH)
    trained = changed.train()(BATCH[0])
    with torch.no_grad():
        torch.testing.assert_close(changed.eval()(BATCH[0]), trained)
        assert not torch.allclose(model.eval()(BATCH[0]), trained)


def test_what_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="no attention is torch's own"):
        with_qk_norm(Net(nn.Linear(8, 8)), batch=BATCH)
    once = with_qk_norm(Net(Attention()), batch=BATCH)
    with pytest.raises(InvalidConfig, match="has a q_norm or k_norm already"):
        with_qk_norm(once, batch=BATCH)

"""
A character GPT: the rate of AdamW
==================================

Any ``nn.Module`` and any loss: a small transformer that predicts the next character of Python's own source. A batch is
a mapping here, and the model returns its loss, as those of Hugging Face do.
"""

import inspect
from types import SimpleNamespace

import torch
from torch import nn

import normscope as ns

text = torch.tensor([min(ord(c), 127) for c in inspect.getsource(inspect)])
context = 32


class CharGPT(nn.Module):
    def __init__(self, width=48, layers=2):
        super().__init__()
        self.embedding, self.position = nn.Embedding(128, width), nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 128)

    def forward(self, ids, labels):
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        hidden = self.blocks(self.embedding(ids) + self.position.weight, mask=mask, is_causal=True)
        logits = self.head(hidden)
        return SimpleNamespace(logits=logits, loss=nn.functional.cross_entropy(logits.mT, labels))


def build(seed):
    torch.manual_seed(seed)
    return CharGPT()


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - context - 1, (16,), generator=generator)
        windows = torch.stack([text[s : s + context + 1] for s in starts])
        yield {"ids": windows[:, :-1], "labels": windows[:, 1:]}


dataset = ns.stable_lr(build, batches, optimizer="adamw", steps=40, seeds=1)
print(f"stable up to {float(dataset['lr_stable']):.2g}, learns up to {float(dataset['lr_usable']):.2g}")
ns.plot_stable_lr(dataset)

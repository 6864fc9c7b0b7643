"""
Check: what stops a network, and which repair helps
===================================================

An MLP of nine layers with torch's own small weights hardly learns in thirty steps. ``check`` says what limits it, and
measures what larger weights or norms would buy; ``normscope check file.py:name`` does the same and writes a page.
"""

import torch
from torch import nn

import normscope as ns

data = ns.load_data("digits")


def build(seed):
    torch.manual_seed(seed)
    hidden = [layer for _ in range(8) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


tree = ns.check(
    build,
    lambda seed: ns.batches(data, 32, seed=seed),
    repair=["kaiming_normal", "batch"],
    steps=30,
    seeds=2,
    workers=1,
)
print(ns.answer(tree))

"""
A Hugging Face model, with and without its norms
================================================

A mapping batch with labels is all that a model of transformers needs: ``model(**batch).loss`` is the loss. Here BERT's
classifier, twelve layers, fresh: as it is, and in a copy without its norms. How far can AdamW's first step go? Needs
transformers; nothing is downloaded.
"""

import torch
import xarray as xr
from transformers import BertConfig, BertForSequenceClassification

import normscope as ns

config = BertConfig(
    vocab_size=128,
    hidden_size=48,
    num_hidden_layers=12,
    num_attention_heads=4,
    intermediate_size=96,
    num_labels=4,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
torch.manual_seed(0)
model = BertForSequenceClassification(config)
generator = torch.Generator().manual_seed(0)
ids = torch.randint(128, (32, 16), generator=generator)
batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 4}

without = ns.with_norm(model, "none", batch=batch)
steps = [ns.relative_loss(each, batch, optimizer="adamw") for each in (model, without)]
both = xr.concat(steps, xr.Variable("norm", ["layer", "none"]))
for one in steps:
    best, ratio = float(one["lowest_step_size"]), float(one["relative_loss"].min())
    print(f"the best first step is {best:.1g}: it leaves {ratio:.2f} of the loss")
ns.plot_relative_loss(both)

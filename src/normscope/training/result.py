"""What a run says of itself when it is over: a labelled Dataset over its epochs."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from normscope.descent.outcome import outcome
from normscope.model.loss import output_spread
from normscope.results import Variable, labelled, provenance
from normscope.training.config import PROTOCOL, key
from normscope.training.epochs import Descent
from normscope.training.evaluation import EVALUATION_BATCH

LABELS: dict[str, tuple[str, str]] = {
    "train_loss": ("training loss", "nat"),
    "train_accuracy": ("training accuracy", "1"),
    "held_out_loss": ("held-out loss", "nat"),
    "held_out_accuracy": ("held-out accuracy", "1"),
    "test_loss": ("test loss", "nat"),
    "test_accuracy": ("test accuracy", "1"),
    "clean_train_loss": ("loss of the training images in evaluation mode", "nat"),
    "clean_train_accuracy": ("accuracy on the training images in evaluation mode", "1"),
    "sharpness": ("largest eigenvalue of the Hessian over training images", "1"),
    "weight_norm": ("norm of all parameters", "1"),
    "gradient_norm": ("gradient norm, mean over steps", "1"),
    "seconds": ("duration of the epoch", "s"),
}
"""Long name and units of what is NaN in epochs that were not trained."""


def result_of(run: Descent) -> xr.Dataset:
    """The Dataset that `train` describes."""
    config, rows = run.config, run.progress.epochs
    missing = config.epochs - len(rows)
    variables: dict[str, Variable] = {
        name: ("epoch", [row[name] for row in rows] + [np.nan] * missing, long_name, units)
        for name, (long_name, units) in LABELS.items()
        if name in rows[0]
    }
    schedule = [config.lr_of(epoch) for epoch in range(config.epochs)]
    steps = np.array([row["steps"] for row in rows] + [0] * missing, dtype=np.int64)
    evaluated = np.array([row["evaluated"] for row in rows] + [False] * missing, dtype=np.int64)
    variables["evaluated"] = ("epoch", evaluated, "whether the network was evaluated (1) or not (0)", "1")
    variables["lr"] = ("epoch", schedule, "learning rate", "1")
    variables["steps"] = ("epoch", steps, "mini-batches trained on", "1")
    ended = outcome(
        run.progress.steps["loss"],
        constant_loss=run.constant_loss,
        output_spread=lambda: output_spread(run.net, run.data.test_images[:EVALUATION_BATCH]),
    )
    return labelled(
        variables,
        {"epoch": (np.arange(1, config.epochs + 1), "epoch", "1")},
        **provenance(device=run.data.device, dtype=torch.float32),
        config=config.to_mapping(),
        key=key(config),
        protocol=PROTOCOL,
        seed=config.seed,
        precision=run.precision,
        data=run.data.describe(),
        parameters=sum(p.numel() for p in run.net.parameters()),
        constant_loss=run.constant_loss,
        outcome=str(ended),
        ended_early=run.progress.ended_early,
    )

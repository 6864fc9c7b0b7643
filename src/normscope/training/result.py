"""What a run says of itself when it is over: a labelled Dataset over its epochs."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr

from normscope.descent.outcome import outcome
from normscope.model.loss import output_spread
from normscope.results.schema import coord, measured, variable
from normscope.training.config import PROTOCOL, key
from normscope.training.epochs import Descent
from normscope.training.evaluation import EVALUATION_BATCH

VARIABLES = (
    coord("epoch", "epoch"),
    variable("train_loss", "epoch", "training loss", "mean over mini-batches as they were met", units="nat"),
    variable("train_accuracy", "epoch", "training accuracy", "mean over mini-batches as they were met"),
    variable("held_out_loss", "epoch", "held-out loss", "in evaluation mode", units="nat", optional=True),
    variable("held_out_accuracy", "epoch", "held-out accuracy", "in evaluation mode", optional=True),
    variable("test_loss", "epoch", "test loss", "in evaluation mode", units="nat"),
    variable("test_accuracy", "epoch", "test accuracy", "in evaluation mode"),
    variable("clean_train_loss", "epoch", "loss of the training images in evaluation mode", units="nat", optional=True),
    variable("clean_train_accuracy", "epoch", "accuracy on the training images in evaluation mode", optional=True),
    variable("sharpness", "epoch", "largest eigenvalue of the Hessian over training images", optional=True),
    variable("weight_norm", "epoch", "norm of all parameters", optional=True),
    variable("gradient_norm", "epoch", "gradient norm, mean over steps", "mean over steps, without weight decay"),
    variable("seconds", "epoch", "duration of the epoch", "wall-clock time, evaluation included", units="s"),
    variable(
        "evaluated", "epoch", "whether the network was evaluated (1) or not (0)", "1 where it was evaluated, else 0"
    ),
    variable("lr", "epoch", "learning rate", "the schedule"),
    variable("steps", "epoch", "mini-batches trained on", "fewer where the loss diverged, 0 after that"),
)
"""Floats are NaN in epochs that were not trained, and those of an evaluation where there was none."""


def result_of(run: Descent) -> xr.Dataset:
    """The Dataset that `train` describes."""
    config, rows = run.config, run.progress.epochs
    missing = config.epochs - len(rows)
    values = {
        one.name: [row[one.name] for row in rows] + [np.nan] * missing for one in VARIABLES if one.name in rows[0]
    }
    values |= {
        "epoch": np.arange(1, config.epochs + 1),
        "evaluated": np.array([row["evaluated"] for row in rows] + [False] * missing, dtype=np.int64),
        "lr": [config.lr_of(epoch) for epoch in range(config.epochs)],
        "steps": np.array([row["steps"] for row in rows] + [0] * missing, dtype=np.int64),
    }
    ended = outcome(
        run.progress.steps["loss"],
        constant_loss=run.constant_loss,
        output_spread=lambda: output_spread(run.net, run.data.test_images[:EVALUATION_BATCH]),
    )
    return measured(
        VARIABLES,
        values,
        device=run.data.device,
        dtype=torch.float32,
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

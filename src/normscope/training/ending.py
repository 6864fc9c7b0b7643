"""What is seen of a run on its training images themselves: when it may end, and how sharp the loss is on its way down.

A run *is trained* once the loss of its training images (not augmented, in evaluation mode) is below 0.002 at two
evaluations after the last drop of the rate. It *is dead* once ten epochs or more are over, that loss is within 2 % of
the best constant output's, and the outputs do not depend on the input. Either way nothing more can come of it.

The sharpness is the largest eigenvalue of the Hessian of the loss over the first 512 training images, in evaluation
mode and float32: of the network that is evaluated, whose batch norm has constant statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from normscope.data import ImageData
from normscope.descent.outcome import DEAD_MARGIN, DEAD_SPREAD
from normscope.model.loss import cross_entropy, output_spread
from normscope.model.vector_norm import norm_of_all
from normscope.probes.sharpness import sharpness
from normscope.training.config import RunConfig

TRAINED_LOSS = 0.002
"""In nats: below it no gradient worth speaking of is left."""

TRAINED_EVALUATIONS = 2

DEAD_EPOCHS = 10

SHARPNESS_IMAGES = 512

SHARPNESS_TOLERANCE, SHARPNESS_PRODUCTS = 0.02, 40
"""The eigenvalue to 2 %: it is compared between runs that differ by factors."""


def ended_early(config: RunConfig, epochs: Sequence[Mapping[str, float]], constant_loss: float, spread: float) -> str:
    """Why a run may end: "trained", "dead", or empty where it goes on.

    Args:
        epochs: the rows of all epochs that are over; NaN where the training images were not evaluated.
        constant_loss: the loss of the best constant output, in nats.
        spread: how much the outputs depend on the input, as `loss.output_spread` says.
    """
    last_drop = max((share * config.epochs for share in config.milestones), default=0.0)
    after = [row["clean_train_loss"] for epoch, row in enumerate(epochs) if epoch >= last_drop]
    if sum(loss < TRAINED_LOSS for loss in after) >= TRAINED_EVALUATIONS:
        return "trained"
    loss = epochs[-1]["clean_train_loss"]
    near_constant = abs(loss - constant_loss) <= DEAD_MARGIN * constant_loss
    return "dead" if len(epochs) >= DEAD_EPOCHS and near_constant and spread < DEAD_SPREAD else ""


def spread_on_training_images(net: nn.Module, data: ImageData) -> float:
    """`loss.output_spread` over the first training images, in evaluation mode; leaves the mode as it was."""
    training = net.training
    net.eval()
    spread = output_spread(net, data.train_images[:SHARPNESS_IMAGES].contiguous(memory_format=torch.channels_last))
    net.train(training)
    return spread


def sharpness_row(config: RunConfig, epochs: Sequence[Mapping[str, float]], net: nn.Module, data: ImageData) -> dict:
    """`sharpness` and `weight_norm` (of all parameters, Euclidean) where the last evaluation is the first at or below
    one of `config.sharpness_at`; else both NaN.

    Args:
        epochs: as for `ended_early`, the epoch in question last.
    """
    before = min((row["clean_train_loss"] for row in epochs[:-1] if row["clean_train_loss"] >= 0), default=math.inf)
    loss = epochs[-1]["clean_train_loss"]
    if not any(loss <= level < before for level in config.sharpness_at):
        return {"sharpness": math.nan, "weight_norm": math.nan}
    batch = data.train_images[:SHARPNESS_IMAGES], data.train_labels[:SHARPNESS_IMAGES]
    found = sharpness(
        net,
        batch,
        loss_fn=_evaluation_loss,
        tolerance=SHARPNESS_TOLERANCE,
        max_products=SHARPNESS_PRODUCTS,
        seed=config.seed,
    )
    return {"sharpness": float(found["eigenvalue"][0]), "weight_norm": float(norm_of_all(list(net.parameters())))}


def _evaluation_loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    net.eval()
    images, labels = batch
    return cross_entropy(net(images.contiguous(memory_format=torch.channels_last)), labels)

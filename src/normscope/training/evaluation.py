"""Loss and accuracy of a network on a split: evaluation mode, BN with its running statistics."""

import torch
from torch import Tensor, nn

from normscope.data import ImageData, evaluation_batches
from normscope.descent.precision import Autocast
from normscope.model.loss import cross_entropy

EVALUATION_BATCH = 500
"""Images at once: a number of its own, so that results do not depend on the training's batch size."""


@torch.no_grad()
def evaluate(net: nn.Module, data: ImageData, split: str, autocast: Autocast) -> tuple[float, float]:
    """Mean cross-entropy over the images (nats) and the share of them classified right; leaves the mode as it was.

    The loss is summed in float64; NaN and inf are the network's own.
    """
    training = net.training
    net.eval()
    loss, correct, number = torch.zeros((), dtype=torch.float64, device=data.device), 0, 0
    for some, their in evaluation_batches(data, EVALUATION_BATCH, split=split):
        with autocast():
            logits = net(some.contiguous(memory_format=torch.channels_last))
        loss += cross_entropy(logits, their).double() * len(some)
        correct += num_correct(logits, their)
        number += len(some)
    net.train(training)
    return float(loss) / number, int(correct) / number


def num_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of the largest logits are the label's, on the device; an example with a NaN among them has none."""
    return ((logits.argmax(1) == labels) & ~logits.isnan().any(1)).sum()

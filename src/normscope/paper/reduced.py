"""Figure 1 at a reduced size, trained to the end: which networks, how long, and what is claimed before any is seen.

CIFAR-10 averaged to 16 x 16, 4,000 images to train on, 2,000 held out, all 10,000 test images, no augmentation. All
networks of a seed share images, order and held-out set. Rates, gate and thresholds below were chosen on seeds from 100
on, which are not counted: ResNet-20 at 2,500 images ended at 44.6 (BN at 0.1), 41.9 (BN at 0.01) and 41.6 % (without at
0.01) of the test images, dead without at 0.1; ResNet-56 was at 47.5 % (BN at 0.1, epoch 60) and 40.3 % (without at
0.003, epoch 80); all that lived had 100 % of the training images.

What it claims, each over the seeds of its arms, paired:

(a) at the same small rate, |none - BN| is at most `SAME` points, by two one-sided tests at 5 % (90 % interval); and,
    one-sided, BN is not better by `SAME`;
(b) BN at the large rate ends at least `LARGE_GAINS` points above BN at the small rate;
(c) BN at its best rate ends above none at its best;
(d) ResNet-56: of BN at the large rate less none at the small one, at most `SHARE_AT_SMALL` is there at the same small
    rate (Fieller's interval);
(e) ResNet-56: in more than half of the networks BN learns at 0.1 and none does not at 0.03 (exact interval);
(f) ResNet-56: batch norm before the last layer alone, at 0.03, recovers at least `SHARE_OF_FINAL` of it (Fieller).

An arm passes the gate if at least `GATE_SHARE` of its seeds have `GATE` per cent of the training images right, not
augmented and in evaluation mode. Then all its seeds are judged, those that fail it included and shown; an arm that does
not pass is not compared at all. A rate's best is chosen on held-out images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normscope.training.config import RunConfig

LARGE = 0.1

SMALL = {"resnet20": 0.01, "resnet56": 0.003, "resnet110": 0.003}

GATE, GATE_SHARE = 98.0, 0.8

SAME = 3.0
"""Points of test accuracy within which two networks count as the same."""

LARGE_GAINS = {"resnet20": 1.0, "resnet56": 2.0}

SHARE_AT_SMALL, SHARE_OF_FINAL = 1 / 3, 1 / 3

LEARNS_AT, DIES_AT = 0.1, 0.03

PROTOCOL: dict[str, Any] = {
    "data": "cifar10",
    "image_size": 16,
    "train_size": 4_000,
    "held_out": 2_000,
    "augment": False,
    "batch_size": 32,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "epochs": 100,
    "milestones": (0.5, 0.75),
    "gamma": 0.1,
    "evaluate_every": 10,
    "evaluate_train": 5,
    "end_early": True,
    "sharpness_at": (0.05, 0.01),
    "precision": "bf16",
    "device": "cpu",
}
"""What all runs share."""


@dataclass(frozen=True)
class Arm:
    """One network at one rate, trained from seeds 0, 1, ..."""

    net: str
    norm: str
    lr: float
    seeds: int
    counted: bool = True
    """Whether a claim is judged on it; else it is only described."""
    init: str = "xavier_uniform"

    @property
    def name(self) -> str:
        """As in "resnet20 batch@0.1"; an initialization that stands for a norm is named in its place."""
        rung = self.norm if self.init == "xavier_uniform" else self.init
        return f"{self.net} {rung}@{self.lr:g}"


ARMS: tuple[Arm, ...] = (
    Arm("resnet20", "batch", 0.1, 10),
    Arm("resnet20", "batch", 0.01, 10),
    Arm("resnet20", "none", 0.01, 10),
    Arm("resnet20", "none", 0.1, 3, counted=False),
    Arm("resnet20", "batch", 0.003, 3, counted=False),
    Arm("resnet56", "batch", 0.1, 8),
    Arm("resnet56", "batch", 0.003, 8),
    Arm("resnet56", "none", 0.003, 8),
    Arm("resnet56", "none", 0.03, 8),
    Arm("resnet56", "final", 0.03, 8),
    Arm("resnet56", "none", 0.01, 3, counted=False),
    Arm("resnet56", "none", 0.1, 3, counted=False),
    Arm("resnet56", "final", 0.1, 3, counted=False),
    Arm("resnet56", "final", 0.01, 3, counted=False),
    Arm("resnet110", "batch", 0.1, 3),
    Arm("resnet110", "batch", 0.003, 3),
    Arm("resnet110", "none", 0.003, 3),
)


def configs(arms: Sequence[Arm] = ARMS) -> Iterator[RunConfig]:
    """The runs of these arms, network by network as they are listed, and seed by seed within one, so that whatever is
    there when it is looked at is paired."""
    from normscope.training.config import RunConfig

    for net in dict.fromkeys(arm.net for arm in arms):
        of_net = [arm for arm in arms if arm.net == net]
        for seed in range(max(arm.seeds for arm in of_net)):
            for arm in of_net:
                if seed < arm.seeds:
                    yield RunConfig(**PROTOCOL, net=net, norm=arm.norm, init=arm.init, lr=arm.lr, seed=seed)

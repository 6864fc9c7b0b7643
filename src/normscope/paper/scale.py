"""How large the trained exhibits are: minutes on the digits, hours on CIFAR-10, or the paper's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, Any

from normscope.errors import unknown
from normscope.paper.reduced import PROTOCOL, SMALL

if TYPE_CHECKING:
    from normscope.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Scale:
    """What is trained, and how long. Whatever the scale, rates are chosen on held-out training images."""

    net: str
    data: str
    train_size: int | None = None
    """Images to train on; None for all but the held-out ones."""
    held_out: int
    epochs: int
    batch_size: int
    evaluate_every: int
    """Epochs from one evaluation of the test and held-out images to the next; the last is always evaluated."""
    lrs: tuple[float, ...]
    """The rates tried with every norm, falling."""
    small: float
    """The rate at which networks with and without BN are compared: the largest that trains both."""
    noise_net: str = "resnet8"
    """The network that the noise of SGD is studied on, with batch norm."""
    noise_lrs: tuple[float, ...] = (0.2, 0.05, 0.0125)
    """Rates, a factor of 4 apart, that it is trained at with every size of mini-batch, ..."""
    noise_batch_sizes: tuple[int, ...] = (16, 64, 256)
    """... which are a factor of 4 apart as well."""
    depths: tuple[int, ...] = (8, 20, 56)
    """Layers of the unnormalized ResNets whose largest rate is searched, ..."""
    depth_steps: int
    """... in descents of this many mini-batches."""
    deeper_net: str | None = None
    """A deeper network, for a few runs beside those of `net`; None for none, ..."""
    deeper_lrs: Mapping[str, float] = field(default_factory=dict)
    """... and by norm the one rate that each is trained at."""
    reduced: str
    """What is smaller than in the paper, for the report; empty where nothing is."""
    image_size: int | None = None
    """Pixels a side that images are averaged to; None for those that are stored."""
    own_exhibit: bool = False
    """Whether its runs are those of a protocol of its own, which one exhibit alone is made of."""

    def configs(self, norms: Sequence[str], seeds: Sequence[int], device: str) -> "list[RunConfig]":
        """Every norm at every rate with every seed."""
        return self._configs(device, norm=norms, lr=self.lrs, seed=seeds)

    def noise_configs(self, seeds: Sequence[int], device: str) -> "list[RunConfig]":
        """The network with batch norm at every rate and size of mini-batch of the ladders, with every seed."""
        ladders = {"lr": self.noise_lrs, "batch_size": self.noise_batch_sizes}
        return self._configs(device, net=[self.noise_net], norm=["batch"], **ladders, seed=seeds)

    def deeper_configs(self, seeds: Sequence[int], device: str) -> "list[RunConfig]":
        """The deeper network with every norm at its rate, with every seed."""
        of_norms = [
            self._configs(device, net=[self.deeper_net], norm=[norm], lr=[lr], seed=seeds)
            for norm, lr in self.deeper_lrs.items()
        ]
        return [config for configs in of_norms for config in configs]

    def _configs(self, device: str, **axes: Sequence[Any]) -> "list[RunConfig]":
        """Every combination of the values, the last varying fastest."""
        from normscope.training.config import RunConfig

        fixed = {name: getattr(self, name) for name in SHARED}
        places = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
        return [RunConfig(**{**fixed, "device": device, **place}) for place in places]


SHARED = ("net", "data", "train_size", "held_out", "epochs", "batch_size", "evaluate_every")
"""What a scale fixes for all runs."""

SCALES = {
    "quick": Scale(
        net="resnet20",
        data="digits",
        held_out=287,
        epochs=15,
        batch_size=64,
        evaluate_every=3,
        lrs=(1.0, 0.3, 0.1, 0.03),
        small=0.03,
        depth_steps=40,
        reduced="ResNet-20 (noise: ResNet-8) on 1,150 images of digits for 15 epochs with mini-batches of 64, in "
        "place of ResNet-110 on 50,000 of CIFAR-10 for 165 with mini-batches of 128.",
    ),
    "short": Scale(
        net="resnet20",
        data="cifar10",
        train_size=5_000,
        held_out=2_000,
        epochs=12,
        batch_size=64,
        evaluate_every=3,
        lrs=(0.3, 0.1, 0.03, 0.01),
        small=0.01,
        depth_steps=60,
        reduced="ResNet-20 (noise: ResNet-8) on 5,000 images of CIFAR-10 for 12 epochs with mini-batches of 64, in "
        "place of ResNet-110 on 50,000 for 165 with mini-batches of 128.",
    ),
    "standard": Scale(
        net="resnet20",
        data="cifar10",
        train_size=10_000,
        held_out=5_000,
        epochs=30,
        batch_size=128,
        evaluate_every=5,
        lrs=(0.3, 0.1, 0.03, 0.01),
        small=0.01,
        noise_batch_sizes=(32, 128, 512),
        depth_steps=100,
        deeper_net="resnet56",
        deeper_lrs={"batch": 0.1, "final": 0.03, "none": 0.003},
        reduced="ResNet-20 (noise: ResNet-8) and, at one rate each, ResNet-56 on 10,000 images of CIFAR-10 for 30 "
        "epochs, in place of ResNet-110 on 50,000 for 165.",
    ),
    "reduced": Scale(
        net="resnet20",
        data=PROTOCOL["data"],
        train_size=PROTOCOL["train_size"],
        held_out=PROTOCOL["held_out"],
        epochs=PROTOCOL["epochs"],
        batch_size=PROTOCOL["batch_size"],
        evaluate_every=PROTOCOL["evaluate_every"],
        lrs=(),
        small=SMALL["resnet20"],
        noise_net="resnet20",
        noise_lrs=(),
        noise_batch_sizes=(),
        depths=(),
        depth_steps=0,
        reduced="ResNet-20, 56 and 110 on 4,000 images of CIFAR-10, averaged to 16 × 16 pixels, for 100 epochs with "
        "mini-batches of 32 and without augmentation, in place of ResNet-110 on 50,000 for 165.",
        image_size=PROTOCOL["image_size"],
        own_exhibit=True,
    ),
    "full": Scale(
        net="resnet110",
        data="cifar10",
        held_out=5_000,
        epochs=165,
        batch_size=128,
        evaluate_every=1,
        lrs=(0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
        small=0.0001,
        noise_net="resnet110",
        noise_batch_sizes=(32, 128, 512),
        depths=(20, 32, 44, 56, 110),
        depth_steps=200,
        reduced="45,000 images of CIFAR-10 to train on in place of 50,000: 5,000 are held out to choose rates.",
    ),
}
"""By name; the first is the default."""


def scale_of(name: str) -> Scale:
    """The scale of this name; InvalidConfig for an unknown one."""
    if name not in SCALES:
        raise unknown("scale", name, SCALES)
    return SCALES[name]

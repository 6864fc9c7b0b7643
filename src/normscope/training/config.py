"""What fixes a run: `RunConfig`, and the key that names the run in a store."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from normscope.data.names import DATA, check_image_size
from normscope.errors import InvalidConfig, unknown
from normscope.nets.names import BRANCH_INITS, INITS, NET_NORMS, check_net_name

PROTOCOL = 2
"""Raised whenever the same config means other numbers: older results then no longer count as this run's."""

PRECISIONS: tuple[str, ...] = ("auto", "fp32", "bf16")

LARGEST_SEED = 2**63 - 1
"""That a result file can hold."""

DATA_SIZES: dict[str, int] = {"digits": 1437, "cifar10": 50_000}
"""Training images of each data set, so that an impossible size is refused before anything is loaded."""

LATER_FIELDS: tuple[str, ...] = ("image_size", "evaluate_train", "end_early", "sharpness_at")
"""Those that runs of this protocol were trained without at first."""

_CLASSES = 10  # in both data sets; each part of the training images needs one of each class


@dataclass(frozen=True)
class RunConfig:
    """One training run. By default the paper's own: ResNet-110 with BN on CIFAR-10 at a rate of 0.1, 165 epochs.

    Together with the number of threads it fixes every bit of the run on one machine. "The paper" below is Bjorck et
    al. 2018, Section 2 and Appendix.

    Raises:
        InvalidConfig: for a name that is not known, a value of the wrong type, or a number that cannot be.

    Example:
        >>> config = ns.RunConfig(net="resnet20", norm="none", lr=0.01)
        >>> config.epochs
        165
    """

    net: str = "resnet110"
    """Architecture and depth: resnetN or plainN with N = 6n + 2, mlpN. The paper's is resnet110."""
    norm: str = "batch"
    """Normalization by name, "final" for one batch norm before the last layer. The paper compares batch and none."""
    init: str = "xavier_uniform"
    """Initialization by name, "skipinit" and "fixup" included. The paper says Xavier; that it is the uniform one is
    inferred from its figure 5."""
    data: str = "cifar10"
    """Data set by name. The paper's is cifar10; digits are embedded, and quick."""
    train_size: int | None = None
    """Images to train on; None, the default, for all but the held-out ones, which without any is the paper's 50,000."""
    image_size: int | None = None
    """Pixels a side that images are averaged to; None, the default, for those that are stored. The paper's are 32."""
    held_out: int = 0
    """Training images set aside to choose learning rates on. The paper sets none aside, as far as it says."""
    lr: float = 0.1
    """Learning rate of the first epochs, per mean loss of a mini-batch. The paper's initial rate with BN."""
    momentum: float = 0.9
    """Of SGD, without dampening and not Nesterov's. The paper's."""
    weight_decay: float = 5e-4
    """Of all parameters, those of the norms included, per step and times lr. The paper's."""
    batch_size: int = 128
    """Images in a mini-batch; an epoch's last, smaller one is left out. The paper's."""
    epochs: int = 165
    """Passes over the training images. The paper's."""
    evaluate_every: int = 1
    """Epochs from one evaluation to the next; the last epoch, or the one that diverges, is always evaluated. Ours."""
    evaluate_train: int = 0
    """Epochs from one evaluation of the training images themselves to the next, not augmented and in evaluation mode; 0
    for never. Ours."""
    end_early: bool = False
    """Whether training ends where nothing more can come: see `training.ending`. It needs `evaluate_train`. Ours."""
    sharpness_at: tuple[float, ...] = ()
    """Losses of the training images themselves, falling; at the first evaluation at or below each, the sharpness is
    measured: see `training.ending`. It needs `evaluate_train`. Ours."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """When lr falls, as shares of all epochs. The paper's: at 50 % and 75 %."""
    gamma: float = 0.1
    """What lr is multiplied with at each milestone. The paper's."""
    augment: bool = True
    """Random crops and flips, as the data set has them (digits: crops by 1 pixel, no flips). The paper's."""
    seed: int = 0
    """Fixes initialization, order, crops and flips. Ours: runs of one seed share them, whatever else differs."""
    precision: str = "auto"
    """fp32, bf16 (autocast), or auto: bf16 where the processor is fast in it. Ours; the paper's is fp32."""
    device: str = "auto"
    """cpu, cuda, cuda:1, ...; auto is the GPU where there is one. Ours."""

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("lr", "momentum", "weight_decay", "gamma"):
            put(self, name, _number(name, getattr(self, name)))
        for name in ("held_out", "batch_size", "epochs", "evaluate_every", "evaluate_train", "seed"):
            put(self, name, _whole(name, getattr(self, name)))
        for name in ("train_size", "image_size"):
            if getattr(self, name) is not None:
                put(self, name, _whole(name, getattr(self, name)))
        for name in ("net", "norm", "init", "data", "precision", "device"):
            if not isinstance(getattr(self, name), str):
                raise InvalidConfig(f"{name} is {getattr(self, name)!r}: give a name in quotes")
        for name in ("augment", "end_early"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidConfig(f"{name} is {getattr(self, name)!r}: give true or false")
        put(self, "sharpness_at", _losses("sharpness_at", self.sharpness_at))
        put(self, "milestones", _milestones(self.milestones))
        self._check_names()
        self._check_numbers()

    def _check_names(self) -> None:
        check_net_name(self.net)
        for name, value, known in (
            ("norm", self.norm, NET_NORMS),
            ("init", self.init, (*INITS, *BRANCH_INITS)),
            ("data set", self.data, DATA),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in known:
                raise unknown(name, value, known)
        if self.init in ("zero_residual", *BRANCH_INITS) and not self.net.startswith("resnet"):
            raise InvalidConfig(f"init {self.init!r} is for resnets: {self.net} has no residual branches")
        if self.init == "fixup" and self.norm != "none":
            raise InvalidConfig(f"init 'fixup' is for networks without norms: norm is {self.norm!r}, choose 'none'")
        if self.norm == "instance" and self.net.startswith("mlp"):
            raise InvalidConfig(f"norm 'instance' averages over positions, and {self.net} has none: choose 'layer'")
        if self.device.partition(":")[0] not in ("auto", "cpu", "cuda"):
            raise unknown("device", self.device, ("auto", "cpu", "cuda", "cuda:1"))

    def _check_numbers(self) -> None:
        _within("lr", self.lr, above=0)
        _within("momentum", self.momentum, least=0, below=1)
        _within("weight_decay", self.weight_decay, least=0)
        _within("gamma", self.gamma, above=0)
        _within("epochs", self.epochs, least=1)
        _within("seed", self.seed, least=0, most=LARGEST_SEED)
        _within("evaluate_every", self.evaluate_every, least=1)
        _within("evaluate_train", self.evaluate_train, least=0)
        if not self.evaluate_train and (self.end_early or self.sharpness_at):
            name = "end_early" if self.end_early else "sharpness_at"
            raise InvalidConfig(f"evaluate_train is 0: {name} needs the training images evaluated; give 1 or more")
        check_image_size(self.data, self.image_size)
        images = DATA_SIZES[self.data]
        if self.held_out:
            _within("held_out", self.held_out, least=_CLASSES, most=images - _CLASSES, of=self.data)
        left = images - self.held_out
        if self.train_size is not None:
            _within("train_size", self.train_size, least=_CLASSES, most=left, of=self.data)
        _within("batch_size", self.batch_size, least=1, most=self.train_size or left, of=self.data)
        if self.batch_size == 1 and self.norm in ("batch", "final"):
            raise InvalidConfig("batch_size is 1: batch norm needs two or more images in a mini-batch")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> RunConfig:
        """A config from plain values, as TOML and JSON hold them; InvalidConfig for a key that is not a field."""
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise unknown("key", name, known)
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """The config in plain values, as JSON holds them: `from_mapping` gives it back."""
        return {**asdict(self), "milestones": list(self.milestones), "sharpness_at": list(self.sharpness_at)}

    def is_evaluated(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, is one after which the network is evaluated (if it has not diverged)."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch == self.epochs - 1

    def is_train_evaluated(self, epoch: int) -> bool:
        """The same for the training images themselves."""
        return bool(self.evaluate_train) and ((epoch + 1) % self.evaluate_train == 0 or epoch == self.epochs - 1)

    def lr_of(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * self.gamma ** sum(epoch >= share * self.epochs for share in self.milestones)


def key(config: RunConfig) -> str:
    """The run's name in a store: 16 hex digits, of all that changes its bits and of the protocol's version.

    "auto" counts as it stands, so that a key does not depend on the machine; what it meant is in the result. A field
    that came later counts where it says something, so that older runs keep their names.
    """
    values = config.to_mapping()
    for name in LATER_FIELDS:
        if not values[name]:
            del values[name]
    text = json.dumps({"protocol": PROTOCOL, **values}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise InvalidConfig(f"{name} is {value!r}: give a number")
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    except TypeError as error:  # an array of several
        raise InvalidConfig(f"{name} is {value!r}: give one number") from error
    if not math.isfinite(number):
        raise InvalidConfig(f"{name} is {number}: give a finite number")
    return number


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise InvalidConfig(f"{name} is {value!r}: give a whole number")
    try:
        return int(value)
    except TypeError as error:  # an array of several
        raise InvalidConfig(f"{name} is {value!r}: give one whole number") from error


def _milestones(values: Any) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidConfig(f"milestones is {values!r}: give a list of shares of the epochs, such as [0.5, 0.75]")
    shares = tuple(_number("milestones", value) for value in values)
    if any(not 0 < share < 1 for share in shares) or list(shares) != sorted(set(shares)):
        raise InvalidConfig(
            f"milestones are {list(shares)}: give shares of the epochs, between 0 and 1 and rising, such as [0.5, 0.75]"
        )
    return shares


def _losses(name: str, values: Any) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InvalidConfig(f"{name} is {values!r}: give a list of losses, such as [0.05, 0.01]")
    losses = tuple(_number(name, value) for value in values)
    if any(loss <= 0 for loss in losses) or list(losses) != sorted(set(losses), reverse=True):
        raise InvalidConfig(f"{name} are {list(losses)}: give positive losses, falling, such as [0.05, 0.01]")
    return losses


def _within(
    name: str,
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    of: str = "",
) -> None:
    wrong = (
        (least is not None and value < least)
        or (above is not None and value <= above)
        or (most is not None and value > most)
        or (below is not None and value >= below)
    )
    if wrong:
        start = f"above {above}" if above is not None else f"at least {least}"
        end = f" and at most {most}" if most is not None else f" and below {below}" if below is not None else ""
        where = f" ({of} has {DATA_SIZES[of]} training images)" if of else ""
        shown = f"{value:g}" if isinstance(value, float) else value
        raise InvalidConfig(f"{name} is {shown}: it must be {start}{end}{where}")

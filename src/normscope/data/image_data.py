"""A data set of labelled images: as stored, and as a network sees it (standardized, on the device)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from normscope.data.augmentation import Augmentation
from normscope.data.subsets import stratified_order
from normscope.errors import DataError, InvalidConfig, unknown

Split = Literal["train", "held_out", "test"]
_SUBSET_SEED = 2018


@dataclass(frozen=True, eq=False)
class RawImages:
    """Pixels as stored: images uint8 (N, C, H, W), labels uint8 (N,)."""

    name: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    num_classes: int
    augmentation: Augmentation

    def fingerprint(self) -> str:
        """sha256 over all pixels and labels in order: the same for every layout of the same data."""
        digest = hashlib.sha256()
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ImageData:
    """Images float32 (N, C, H, W), standardized, and labels int64 (N,), all on one device.

    `mean` and `std` are per channel, over all images and positions of the training split as used here (biased
    variance), in the units of the stored pixels: image = (pixel - mean) / std, in every split. `held_out_images` and
    `held_out_labels` are training images set aside for choosing learning rates; empty unless asked for. `fingerprint`
    is the sha256, in hex, over all pixels and labels, as stored or averaged, whatever part of them is used.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    held_out_images: Tensor
    held_out_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fingerprint: str
    augmentation: Augmentation

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.train_images.device

    def split(self, split: str) -> tuple[Tensor, Tensor]:
        """The images and labels of "train", "held_out" or "test"; InvalidConfig where there are none."""
        if split not in get_args(Split):
            raise unknown("split", split, get_args(Split))
        if split == "held_out" and len(self.held_out_images) == 0:
            raise InvalidConfig(f"{self.name} was loaded without held-out images: load it with held_out=N")
        return getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")

    def net_shape(self) -> dict[str, Any]:
        """What a network must know of the images and classes, by the names that `build_net` has for it."""
        channels, height = self.train_images.shape[1:3]
        return {"in_channels": channels, "num_classes": self.num_classes, "image_size": height}

    def black(self) -> Tensor:
        """The standardized value of the stored pixel 0, (C,), float32 on the device."""
        return _standardize(torch.zeros(len(self.mean), 1, 1), self.mean, self.std).flatten().to(self.device)

    def describe(self) -> dict[str, Any]:
        """What a result must say of its data, in plain values."""
        channels, height, width = self.train_images.shape[1:]
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "train_size": len(self.train_images),
            "held_out": len(self.held_out_images),
            "test_size": len(self.test_images),
            "num_classes": self.num_classes,
            "image_shape": [channels, height, width],
            "mean": list(self.mean),
            "std": list(self.std),
            "pad": self.augmentation.pad,
            "flip": self.augmentation.flip,
        }


def standardized(
    raw: RawImages, *, device: str | torch.device = "cpu", train_size: int | None = None, held_out: int = 0
) -> ImageData:
    """Choose the training images, move every split to the device and standardize it by their statistics."""
    train, aside = _choose(raw, train_size, held_out)
    train_images = raw.train_images if len(train) == len(raw.train_images) else raw.train_images[train]
    mean, std = _channel_statistics(train_images)
    if min(std) == 0:
        raise DataError(f"the training images of {raw.name} are all of one colour: replace the copy")

    def on_device(images: np.ndarray) -> Tensor:
        return _standardize(torch.from_numpy(np.ascontiguousarray(images)).to(device), mean, std)

    def labels(of: np.ndarray) -> Tensor:
        return torch.from_numpy(of.astype(np.int64)).to(device)

    return ImageData(
        name=raw.name,
        train_images=on_device(train_images),
        train_labels=labels(raw.train_labels[train]),
        held_out_images=on_device(raw.train_images[aside]),
        held_out_labels=labels(raw.train_labels[aside]),
        test_images=on_device(raw.test_images),
        test_labels=labels(raw.test_labels),
        num_classes=raw.num_classes,
        mean=mean,
        std=std,
        fingerprint=raw.fingerprint(),
        augmentation=raw.augmentation,
    )


def _choose(raw: RawImages, train_size: int | None, held_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices, in the stored order, of the images to train on and of those set aside."""
    available, least = len(raw.train_labels), raw.num_classes
    if held_out != 0 and not least <= held_out <= available - least:
        raise InvalidConfig(
            f"held_out is {held_out}: {raw.name} can set aside {least} (one image of each class) to"
            f" {available - least} of its {available} training images, or 0"
        )
    left = available - held_out
    if train_size is None:
        train_size = left
    if not least <= train_size <= left:
        aside = f" beside {held_out} held out" if held_out else ""
        raise InvalidConfig(
            f"train_size is {train_size}: {raw.name} has {least} (one image of each class) to {left} training"
            f" images{aside}"
        )
    order = stratified_order(raw.train_labels, _SUBSET_SEED)
    return np.sort(order[:train_size]), np.sort(order[left:])


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std (biased) of each channel, from integer sums, so exact and the same on every device."""
    channels = images.shape[1]
    count, total, squares = 0, torch.zeros(channels).double(), torch.zeros(channels).double()
    for part in torch.from_numpy(images).split(256):
        values = part.float()  # 256 squares of at most 255 stay below 2^24: float32 sums of them are exact
        total += values.sum(0).sum((1, 2), dtype=torch.float64)
        squares += values.square_().sum(0).sum((1, 2), dtype=torch.float64)
        count += values[:, 0].numel()
    mean = total / count
    variance = (squares * count - total.square()) / count**2
    return tuple(mean.tolist()), tuple(variance.sqrt().tolist())


def _standardize(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixel - mean) / std in float32, for (..., C, H, W)."""
    shape = (len(mean), 1, 1)
    centre = torch.tensor(mean, device=pixels.device, dtype=torch.float32).view(shape)
    scale = torch.tensor(std, device=pixels.device, dtype=torch.float32).view(shape)
    return pixels.to(torch.float32, copy=True).sub_(centre).div_(scale)

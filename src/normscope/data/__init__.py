"""Labelled images, whole on the device: the embedded digits and CIFAR-10, in seeded batches."""

from normscope.data.augmentation import Augmentation, Draws, augment, draw
from normscope.data.batches import Batch, batches, epoch, evaluation_batches
from normscope.data.image_data import ImageData, Split
from normscope.data.image_size import STORED_SIZES, check_image_size
from normscope.data.load import DATA, load_data

__all__ = [
    "DATA",
    "STORED_SIZES",
    "Augmentation",
    "Batch",
    "Draws",
    "ImageData",
    "Split",
    "augment",
    "batches",
    "check_image_size",
    "draw",
    "epoch",
    "evaluation_batches",
    "load_data",
]

"""The 1,797 handwritten digits that come with scikit-learn: real data, small, and always at hand."""

from __future__ import annotations

import numpy as np

from normscope.data.augmentation import Augmentation
from normscope.data.image_data import RawImages
from normscope.data.subsets import stratified_order

TEST_SIZE = 360
_SPLIT_SEED = 1806


def load_digits() -> RawImages:
    """8x8 grey images, pixels 0 to 16: 1,437 to train on and 360 to test on, always the same ones."""
    from sklearn.datasets import load_digits as sklearn_digits  # a second to import, so only where needed

    pixels, classes = sklearn_digits(return_X_y=True)
    images = np.asarray(pixels, np.uint8).reshape(-1, 1, 8, 8)
    labels = np.asarray(classes, np.uint8)
    order = stratified_order(labels, _SPLIT_SEED)
    train, test = np.sort(order[:-TEST_SIZE]), np.sort(order[-TEST_SIZE:])
    return RawImages(
        name="digits",
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        num_classes=10,
        augmentation=Augmentation(pad=1, flip=False),  # an eighth of the image; a mirrored 2 is no 2
    )

"""Data sets by name: splits, subsets, standardization, fingerprint."""

import json

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits as sklearn_digits

from normscope.data import DATA, Augmentation, load_data
from normscope.data.image_data import RawImages, standardized
from normscope.data.subsets import stratified_order
from normscope.errors import DataError, InvalidConfig


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


def test_the_digits_are_all_there_and_never_in_both_splits(digits):
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    pixels = torch.cat([digits.train_images, digits.test_images]).flatten(1) * digits.std[0] + digits.mean[0]
    stored = sklearn_digits().data
    # Standardized and back in float32: an error far below half a grey level, so rounding restores the pixel.
    assert sorted(pixels.round().int().tolist()) == sorted(stored.astype(int).tolist())


def test_the_digits_keep_their_labels(digits):
    stored, labels = sklearn_digits(return_X_y=True)
    label_of = {tuple(image): label for image, label in zip(stored.astype(int), labels, strict=True)}
    for split in ("train", "test"):
        images, ours = digits.split(split)
        pixels = (images.flatten(1) * digits.std[0] + digits.mean[0]).round().int().tolist()
        assert [label_of[tuple(image)] for image in pixels] == ours.tolist()


def test_the_split_is_stratified(digits):
    share = torch.bincount(digits.test_labels) / (
        torch.bincount(digits.train_labels) + torch.bincount(digits.test_labels)
    )
    # 360 of 1797 is 0.2003; one image of about 180 is 0.0056, and rounding moves a class by two at most.
    assert (share - 360 / 1797).abs().max() < 0.012


def test_the_split_never_changes(digits):
    """Results of different years compare only if these do not move."""
    assert digits.fingerprint == "cb197b5c06b3f4c270040596dc76a5b4996e781b9186d081bba15de30241d997"
    assert digits.test_labels[:12].tolist() == [1, 3, 1, 3, 7, 5, 1, 5, 1, 7, 0, 1]


def test_standardized_by_the_training_images_alone(digits):
    train = digits.train_images.double()
    # float32 images of order 1: their float64 moments are off by about 1e-8.
    assert abs(train.mean().item()) < 1e-6
    assert abs(train.std(correction=0).item() - 1) < 1e-6
    assert abs(digits.test_images.double().mean().item()) > 1e-4
    assert digits.train_images.dtype == torch.float32 and digits.train_labels.dtype == torch.int64


def synthetic(train: int = 600, test: int = 40, seed: int = 0) -> RawImages:
    random = np.random.default_rng(seed)
    scale = np.array([40, 150, 256]).reshape(3, 1, 1)  # channels of different mean and spread
    images = (random.random((train + test, 3, 5, 4)) * scale).astype(np.uint8)
    labels = random.integers(0, 10, train + test).astype(np.uint8)
    labels[:10] = range(10)
    return RawImages(
        "synthetic", images[:train], labels[:train], images[train:], labels[train:], 10, Augmentation(1, True)
    )


def test_statistics_equal_the_naive_twin():
    raw = synthetic()
    data = standardized(raw)
    for channel in range(3):
        values = raw.train_images[:, channel].astype(np.float64)
        # The sums are exact integers: only the last float64 operations differ.
        assert data.mean[channel] == pytest.approx(values.mean(), rel=1e-12)
        assert data.std[channel] == pytest.approx(values.std(), rel=1e-12)
    mean, std = (np.reshape(of, (3, 1, 1)) for of in (data.mean, data.std))
    # float32: two roundings of numbers up to 256 / 10.
    np.testing.assert_allclose(data.test_images, (raw.test_images - mean) / std, atol=1e-5)


def test_the_statistics_of_bright_images_are_exact():
    """All 255 but one: the sums of squares are as large as they get, the variance as small."""
    raw = synthetic(train=700)
    raw.train_images[:] = 255
    raw.train_images[0, :, 0, 0] = 254
    data = standardized(raw)
    count = 700 * 20
    share = 1 / count
    assert data.mean[0] == pytest.approx(255 - share, rel=1e-15)
    # Var = p (1 - p); n Σx² is about 1e13, below 2^53, so nothing is lost before the root.
    assert data.std[0] == pytest.approx((share * (1 - share)) ** 0.5, rel=1e-12)


def test_black_is_the_pixel_zero():
    raw = synthetic()
    raw.train_images[3, :, 2, 1] = 0
    data = standardized(raw)
    assert torch.equal(data.black(), data.train_images[3, :, 2, 1])


def test_images_of_one_colour_are_refused():
    raw = synthetic()
    raw.train_images[:, 1] = 77
    with pytest.raises(DataError) as caught:
        standardized(raw)
    assert str(caught.value) == "the training images of synthetic are all of one colour: replace the copy"


def test_a_pixel_or_a_label_changes_the_fingerprint():
    prints = {synthetic().fingerprint(), synthetic().fingerprint()}
    assert len(prints) == 1
    for array in ("train_images", "train_labels", "test_images", "test_labels"):
        raw = synthetic()
        getattr(raw, array).reshape(-1)[-1] ^= 1
        prints.add(raw.fingerprint())
    assert len(prints) == 5


def test_a_subset_keeps_the_shares_and_lies_within_a_larger_one():
    whole = load_data("digits")
    small, large = load_data("digits", train_size=100), load_data("digits", train_size=500)
    for data, size in ((small, 100), (large, 500)):
        expected = torch.bincount(whole.train_labels) * size / 1437
        assert (torch.bincount(data.train_labels) - expected).abs().max() < 2
        assert len(data.train_images) == size
        assert data.fingerprint == whole.fingerprint
    pixels = [
        {tuple(row) for row in (d.train_images.flatten(1) * d.std[0] + d.mean[0]).round().int().tolist()}
        for d in (small, large)
    ]
    assert pixels[0] < pixels[1]
    assert torch.equal(small.test_labels, whole.test_labels)


def test_ten_images_are_one_of_each_class():
    assert sorted(load_data("digits", train_size=10).train_labels.tolist()) == list(range(10))


def test_all_images_are_all_images(digits):
    assert torch.equal(load_data("digits", train_size=1437).train_images, digits.train_images)


def test_held_out_images_are_taken_from_training_whatever_is_left_of_it():
    raw = synthetic()
    data, small = (standardized(raw, held_out=100, train_size=size) for size in (None, 50))
    assert len(data.train_images) == 500 and len(small.train_images) == 50
    assert torch.equal(data.held_out_labels, small.held_out_labels)
    assert len(data.held_out_images) == 100
    # The same pixels, standardized by the images trained on: never by those held out.
    assert abs(data.train_images.double().mean().item()) < 1e-6
    assert not rows(data.held_out_images) & rows(data.train_images)
    assert torch.equal(data.test_labels, standardized(raw).test_labels)
    counts = torch.bincount(data.held_out_labels) / torch.from_numpy(np.bincount(raw.train_labels))
    assert (counts - 1 / 6).abs().max() < 2 / np.bincount(raw.train_labels).min()


def test_every_stretch_of_the_order_is_stratified():
    labels = np.repeat([0, 1, 2], [500, 300, 100])
    order = stratified_order(labels, seed=1)
    assert sorted(order) == list(range(900))
    for start, stop in ((0, 90), (450, 540), (810, 900)):
        assert np.abs(np.bincount(labels[order[start:stop]]) - [50, 30, 10]).max() <= 1
    assert not np.array_equal(order, stratified_order(labels, seed=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"train_size": 1438},
            "train_size is 1438: digits has 10 (one image of each class) to 1437 training images",
        ),
        (
            {"train_size": 9},
            "train_size is 9: digits has 10 (one image of each class) to 1437 training images",
        ),
        (
            {"train_size": -5},
            "train_size is -5: digits has 10 (one image of each class) to 1437 training images",
        ),
        (
            {"train_size": 1400, "held_out": 100},
            "train_size is 1400: digits has 10 (one image of each class) to 1337 training images beside 100 held out",
        ),
        (
            {"held_out": 1437},
            "held_out is 1437: digits can set aside 10 (one image of each class) to 1427 of its 1437 training"
            " images, or 0",
        ),
        (
            {"held_out": -1},
            "held_out is -1: digits can set aside 10 (one image of each class) to 1427 of its 1437 training"
            " images, or 0",
        ),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(InvalidConfig) as caught:
        load_data("digits", **options)
    assert str(caught.value) == message


def test_an_unknown_name_is_refused():
    with pytest.raises(InvalidConfig) as caught:
        load_data("cifar")
    assert str(caught.value) == "unknown data set 'cifar': did you mean 'cifar10'? known: digits, cifar10"
    assert DATA == ("digits", "cifar10")


def test_held_out_images_must_be_asked_for(digits):
    with pytest.raises(InvalidConfig, match=r"^digits was loaded without held-out images: load it with held_out=N$"):
        digits.split("held_out")


def test_the_description_goes_into_json(digits):
    described = json.loads(json.dumps(load_data("digits", train_size=100, held_out=20).describe()))
    assert described["fingerprint"] == digits.fingerprint
    assert {k: described[k] for k in ("name", "train_size", "held_out", "test_size", "pad", "flip")} == {
        "name": "digits",
        "train_size": 100,
        "held_out": 20,
        "test_size": 360,
        "pad": 1,
        "flip": False,
    }
    assert described["image_shape"] == [1, 8, 8]


def test_the_data_lie_where_they_were_asked_for():
    data = load_data("digits", device="meta")  # any device that is not the default one
    assert {t.device.type for t in (data.train_images, data.test_labels, data.held_out_images)} == {"meta"}
    assert data.device.type == "meta"

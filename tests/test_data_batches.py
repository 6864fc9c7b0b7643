"""Batches: fixed by (seed, epoch), every image once per epoch, whatever else happens."""

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope.data import load_data
from normscope.data.batches import batches, epoch, evaluation_batches
from normscope.errors import InvalidConfig


@pytest.fixture(scope="module")
def data():
    return load_data("digits", train_size=100, held_out=50)


def same(one, other) -> bool:
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(a, b) for pair in zip(one, other, strict=True) for a, b in zip(*pair, strict=True)
    )


def rows(images: torch.Tensor) -> list[bytes]:
    return sorted(image.numpy().tobytes() for image in images)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**64),
    size=st.integers(1, 100),
    number=st.integers(0, 50),
    augment=st.booleans(),
    drop_last=st.booleans(),
)
def test_a_seed_fixes_every_bit(data, seed, size, number, augment, drop_last):
    options = {"seed": seed, "epoch": number, "augment": augment, "drop_last": drop_last}
    first = list(epoch(data, size, **options))
    torch.rand(3)  # the global state must not matter
    assert same(first, epoch(data, size, **options))
    state = torch.get_rng_state()
    list(epoch(data, size, **options))
    assert torch.equal(state, torch.get_rng_state())


@settings(deadline=None, max_examples=25)
@given(size=st.integers(1, 100), start=st.integers(0, 250), drop_last=st.booleans())
def test_a_run_that_goes_on_sees_the_same_batches(data, size, start, drop_last):
    whole = islice(batches(data, size, seed=3, drop_last=drop_last), start, start + 4)
    resumed = islice(batches(data, size, seed=3, drop_last=drop_last, start=start), 4)
    assert same(whole, resumed)


def test_endless_batches_are_the_epochs_in_turn(data):
    turns = [batch for number in range(3) for batch in epoch(data, 30, seed=5, epoch=number)]
    assert len(turns) == 9
    assert same(turns, islice(batches(data, 30, seed=5), 9))


def test_an_epoch_has_every_image_once_with_its_label(data):
    pairs = list(epoch(data, 30, seed=0, epoch=0, augment=False, drop_last=False))
    assert [len(y) for _, y in pairs] == [30, 30, 30, 10]
    images, labels = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    assert rows(images) == rows(data.train_images)
    label_of = {row.numpy().tobytes(): label for row, label in zip(data.train_images, data.train_labels, strict=True)}
    assert all(label_of[image.numpy().tobytes()] == label for image, label in zip(images, labels, strict=True))


def test_the_last_small_batch_is_dropped_unless_wanted(data):
    assert [len(y) for _, y in epoch(data, 30, seed=0, epoch=0)] == [30, 30, 30]


def test_seeds_and_epochs_give_different_batches(data):
    firsts = [
        next(epoch(data, 100, seed=seed, epoch=number))[1].numpy().tobytes() for seed in range(5) for number in range(5)
    ]
    assert len(set(firsts)) == 25  # seed + epoch as the state would give 9


def test_an_image_is_augmented_the_same_at_any_batch_size(data):
    small = torch.cat([x for x, _ in epoch(data, 7, seed=1, epoch=2, drop_last=False)])
    assert torch.equal(small, next(epoch(data, 100, seed=1, epoch=2))[0])


def test_augmentation_changes_images_but_not_their_order(data):
    (plain, labels), (moved, same_labels) = (
        next(epoch(data, 100, seed=1, epoch=0, augment=augment)) for augment in (False, True)
    )
    assert torch.equal(labels, same_labels)
    # A shift of (0, 0) is one of nine: about 89 images move.
    moved_images = (plain != moved).flatten(1).any(1).sum().item()
    assert 70 <= moved_images <= 99


@pytest.mark.parametrize("split", ["train", "held_out", "test"])
def test_evaluation_sees_every_image_once_in_order(data, split):
    images, labels = data.split(split)
    pairs = list(evaluation_batches(data, 32, split=split))
    assert torch.equal(torch.cat([x for x, _ in pairs]), images)
    assert torch.equal(torch.cat([y for _, y in pairs]), labels)
    assert max(len(y) for _, y in pairs) == 32


def test_batches_of_another_split_are_one_plain_pass(data):
    assert same(batches(data, 32, seed=0, split="test"), evaluation_batches(data, 32, split="test"))


@pytest.mark.parametrize(
    "draw_one",
    [
        lambda data: evaluation_batches(data, 32, split="test"),
        lambda data: epoch(data, 32, seed=0, epoch=0, augment=False),
    ],
)
def test_work_in_place_on_a_batch_leaves_the_data_alone(data, draw_one):
    before = data.train_images.clone(), data.test_images.clone()
    images, labels = next(draw_one(data))
    images.zero_()
    labels.zero_()
    assert torch.equal(data.train_images, before[0]) and torch.equal(data.test_images, before[1])
    assert data.train_labels.any() and data.test_labels.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda data: batches(data, 101, seed=0),
            "batch_size is 101: digits has 100 training images here: choose 1 to 100",
        ),
        (
            lambda data: batches(data, 0, seed=0),
            "batch_size is 0: digits has 100 training images here: choose 1 to 100",
        ),
        (
            lambda data: epoch(data, 0, seed=0, epoch=0),
            "batch_size is 0: digits has 100 training images here: choose 1 to 100",
        ),
        (lambda data: batches(data, 10, seed=-1), "seed is -1: it must not be negative"),
        (lambda data: batches(data, 10, seed=0, start=-1), "start is -1: it must not be negative"),
        (lambda data: epoch(data, 10, seed=0, epoch=-1), "epoch is -1: it must not be negative"),
        (lambda data: evaluation_batches(data, 0), "batch_size is 0: it must be at least 1"),
        (
            lambda data: evaluation_batches(data, 5, split="tset"),
            "unknown split 'tset': did you mean 'test'? known: train, held_out, test",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_once(data, call, message):
    with pytest.raises(InvalidConfig) as caught:
        call(data)  # not even a first batch is asked for
    assert str(caught.value) == message

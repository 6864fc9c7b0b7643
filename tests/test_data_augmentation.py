"""Crops and flips at once equal crops and flips one by one."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope.data import Augmentation, augment, draw


def naive(images: np.ndarray, dy, dx, flip, pad: int, fill) -> np.ndarray:
    """Pad, cut, mirror: image by image, channel by channel."""
    out = np.empty_like(images)
    height, width = images.shape[2:]
    for b, image in enumerate(images):
        for c, channel in enumerate(image):
            padded = np.pad(channel, pad, constant_values=fill[c])
            cut = padded[dy[b] : dy[b] + height, dx[b] : dx[b] + width]
            out[b, c] = cut[:, ::-1] if flip[b] else cut
    return out


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 6),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)),
    pad=st.integers(0, 4),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_equals_the_naive_twin(size, shape, pad, flip, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, *shape, generator=generator)
    fill = torch.randn(shape[0], generator=generator)
    draws = draw(size, Augmentation(pad, flip), generator)
    fast = augment(images, draws, pad=pad, fill=fill)
    slow = naive(images.numpy(), draws.dy, draws.dx, draws.flip, pad, fill.numpy())
    assert np.array_equal(fast.numpy(), slow)  # pixels are moved, never computed with: no tolerance


def test_draws_cover_their_range_evenly():
    draws = draw(9000, Augmentation(pad=4, flip=True), torch.Generator().manual_seed(0))
    for shifts in (draws.dy, draws.dx):
        counts = torch.bincount(shifts)
        assert len(counts) == 9
        # Binomial with n = 9000 and p = 1/9: the standard deviation is 29.8; five of them.
        assert (counts - 1000).abs().max() < 150
    assert abs(draws.flip.sum().item() - 4500) < 5 * 47.5
    assert abs(np.corrcoef(draws.dy, draws.dx)[0, 1]) < 5 / 9000**0.5


def test_no_flips_where_none_are_wanted():
    draws = draw(500, Augmentation(pad=1, flip=False), torch.Generator().manual_seed(0))
    assert not draws.flip.any()
    assert draws.dy.unique().tolist() == [0, 1, 2]


def test_augmenting_leaves_its_input_alone():
    images = torch.randn(4, 3, 5, 5)
    before = images.clone()
    draws = draw(4, Augmentation(0, False), torch.Generator())
    out = augment(images, draws, pad=0, fill=torch.zeros(3))
    out.zero_()
    assert torch.equal(images, before)

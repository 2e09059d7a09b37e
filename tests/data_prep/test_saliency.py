"""Saliency boxes: against brute force, on pictures whose odd part is known, and the same every time."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from data_prep.regions.saliency import best_rectangle, saliency_map, salient_boxes

GRIDS = arrays.arrays(np.int64, st.tuples(st.integers(2, 6), st.integers(2, 7)), elements=st.integers(-5, 5))


@given(GRIDS, st.integers(1, 2))
def test_the_best_rectangle_by_brute_force(gain, smallest):
    rows, columns = gain.shape
    sums = {
        (top, bottom, left, right): gain[top:bottom, left:right].sum()
        for top, bottom in itertools.combinations(range(rows + 1), 2)
        for left, right in itertools.combinations(range(columns + 1), 2)
        if min(bottom - top, right - left) >= smallest
    }
    place, total = best_rectangle(gain.astype(float), smallest)
    assert total == max(sums.values()) == sums[place]


def noisy(size, place, seed):
    """A picture of horizontal stripes with a patch of another texture at `place` (fractions)."""
    generator = np.random.default_rng(seed)
    width, height = size
    pixels = 100 + 40 * np.sin(np.arange(height) / 3)[:, None, None] + generator.normal(0, 4, (height, width, 3))
    x1, y1, x2, y2 = place
    patch = np.s_[int(y1 * height) : int(y2 * height), int(x1 * width) : int(x2 * width)]
    pixels[patch] = generator.normal(120, 60, pixels[patch].shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("place", [(0.1, 0.2, 0.4, 0.5), (0.6, 0.5, 0.9, 0.9), (0.4, 0.0, 0.7, 0.3)])
@pytest.mark.parametrize("size", [(300, 200), (120, 260)])
def test_what_differs_is_boxed_first(place, size):
    picture = noisy(size, place, 0)
    (box, share), *others = salient_boxes(picture)
    sides = [min(box[axis + 2], place[axis + 2]) - max(box[axis], place[axis]) for axis in (0, 1)]
    area = (place[2] - place[0]) * (place[3] - place[1])
    assert min(sides) > 0 and sides[0] * sides[1] > 0.6 * area  # most of the patch
    assert (box[2] - box[0]) * (box[3] - box[1]) < 2.2 * area and share > 0.3
    assert all(share >= other for _, other in others)


@pytest.mark.parametrize("seed", range(5))
def test_boxes_keep_the_rules(seed):
    picture = noisy((90, 17 + seed), (0.1 * seed, 0.2, 0.1 * seed + 0.3, 0.6), seed)
    boxes = salient_boxes(picture, maximum=4)
    assert boxes == salient_boxes(picture.copy(), maximum=4) and 0 < len(boxes) <= 4
    for (x1, y1, x2, y2), share in boxes:
        assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 and 0 < share <= 1
        assert min(x2 - x1, y2 - y1) >= 6 / 32
    for (one, _), (two, _) in itertools.combinations(boxes, 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
    assert saliency_map(picture).sum() == pytest.approx(1)


def test_in_a_picture_of_one_colour_nothing_stands_out():
    assert salient_boxes(Image.new("RGB", (40, 30), "teal")) == []

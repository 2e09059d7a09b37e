"""Pictures of any aspect: the geometry and the pixels of transformers' ViltImageProcessor, padding, buckets."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from transformers import ViltImageProcessor

from tmrjax.divergence.pictures import (
    PairPictureSettings,
    default_buckets,
    estimator_pixels,
    pad_pictures,
    resized_size,
)

SMALL = PairPictureSettings(size=64, longest=160)


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@given(st.integers(1, 3000), st.integers(1, 3000))
@example(301, 326)  # 415.89 rounds to 416, a multiple of 32
def test_sizes_are_those_of_vilt(height, width):
    from transformers.models.vilt.image_processing_vilt import get_resize_output_image_size

    picture = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (height, width, 3))
    theirs = get_resize_output_image_size(
        picture, shorter=384, longer=639, size_divisor=32, input_data_format="channels_last"
    )
    ours = resized_size(height, width, PairPictureSettings())
    assert ours == tuple(max(32, side) for side in theirs)


def test_pixels_and_mask_are_those_of_vilt():
    pictures = [noise(90, 120), noise(120, 80), noise(20, 20), noise(64, 65)]
    processor = ViltImageProcessor(size={"shortest_edge": 64})
    theirs = processor(pictures, return_tensors="np")
    longer = int(1333 / 800 * 64)  # what the processor makes of it
    settings = PairPictureSettings(size=64, longest=longer)
    ours, mask = pad_pictures([estimator_pixels(p, settings) for p in pictures], theirs["pixel_values"].shape[2:])
    np.testing.assert_allclose(ours, theirs["pixel_values"].transpose(0, 2, 3, 1), atol=1e-6)
    assert np.array_equal(mask, theirs["pixel_mask"].astype(bool))


@given(st.integers(1, 2000), st.integers(1, 2000), st.booleans())
def test_every_picture_fits_into_a_bucket(height, width, square):
    settings = PairPictureSettings(size=64, longest=160, square=square)
    size = resized_size(height, width, settings)
    assert all(side % 32 == 0 and side >= 32 for side in size) and max(size) <= 160
    assert any(size[0] <= bucket[0] and size[1] <= bucket[1] for bucket in default_buckets(settings))
    if square:
        assert size == (64, 64)


def test_default_buckets():
    assert default_buckets(PairPictureSettings()) == (
        (384, 384), (384, 480), (480, 384), (384, 608), (608, 384), (608, 608),
    )  # fmt: skip
    assert default_buckets(PairPictureSettings(square=True)) == ((384, 384),)
    assert default_buckets(PairPictureSettings(size=96, longest=96)) == ((96, 96),)


def test_padding_is_masked():
    pixels, mask = pad_pictures([None, np.ones((32, 64, 3), np.float32)], (64, 96))
    assert pixels.shape == (2, 64, 96, 3) and mask.sum((1, 2)).tolist() == [0, 32 * 64]
    assert mask[1, :32, :64].all() and np.array_equal(pixels[..., 0] == 1, mask)
    with pytest.raises(ValueError, match="does not fit"):
        pad_pictures([np.ones((96, 64, 3), np.float32)], (64, 96))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="multiple of 32"):
        PairPictureSettings(size=100)
    with pytest.raises(ValueError, match="size <= longest"):
        PairPictureSettings(size=384, longest=352)


def test_pixels_are_between_minus_one_and_one():
    white = estimator_pixels(Image.new("RGB", (50, 50), "white"), SMALL)
    black = estimator_pixels(Image.new("RGB", (50, 50), "black"), SMALL)
    assert white.dtype == np.float32 and white.min() == white.max() == 1 and black.min() == black.max() == -1

"""Pixels of the released code: against OpenCV's values, torchvision's rule written out, and averages by repetition."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tmrjax.pictures.decode import IMAGE_MEAN, IMAGE_STD, picture_to_pixels, region_to_pixels
from tmrjax.pictures.preprocessing import PictureSettings, area_resized, cropped, torchvision_pixels


def pattern(height, width):
    y, x, c = np.mgrid[:height, :width, :3]
    return ((37 * y + 101 * x * x + 53 * c * y * x + 29 * c) % 256).astype(np.uint8)


# What cv2.resize(pattern(*shape), (size, size), interpolation=cv2.INTER_AREA) of OpenCV 4.14.0 returns.
OPENCV = {
    (5, 7): [
        [[79, 109, 109], [140, 131, 150], [99, 138, 67]],
        [[131, 111, 143], [185, 115, 140], [93, 82, 123]],
        [[161, 180, 177], [120, 165, 174], [152, 158, 201]],
    ],
    (2, 3): [
        [[0, 29, 58], [67, 96, 125], [117, 146, 175], [148, 177, 206]],
        [[0, 29, 58], [67, 96, 125], [117, 146, 175], [148, 177, 206]],
        [[37, 66, 95], [104, 169, 62], [154, 168, 97], [185, 64, 199]],
        [[37, 66, 95], [104, 169, 62], [154, 168, 97], [185, 64, 199]],
    ],
    (9, 2): [
        [[21, 49, 79], [21, 49, 79], [121, 180, 96], [121, 180, 96]],
        [[98, 128, 157], [98, 128, 157], [200, 114, 114], [200, 114, 114]],
        [[177, 206, 235], [177, 206, 235], [79, 105, 131], [79, 105, 131]],
        [[27, 56, 57], [27, 56, 57], [100, 238, 148], [100, 238, 148]],
    ],
    (3, 8): [
        [[51, 80, 109], [145, 174, 203], [151, 180, 81], [69, 98, 127]],
        [[75, 122, 83], [169, 116, 148], [90, 107, 82], [93, 96, 98]],
        [[100, 121, 100], [194, 101, 136], [72, 77, 83], [118, 94, 113]],
        [[125, 79, 161], [219, 129, 167], [97, 91, 85], [143, 93, 171]],
    ],
}


@pytest.mark.parametrize("shape", OPENCV)
def test_area_gives_opencvs_values(shape):
    """Both sides shrink, both grow, and one of each."""
    expected = np.array(OPENCV[shape])
    found = area_resized(pattern(*shape), len(expected))
    assert found.dtype == np.float32 and np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.8  # where a side grows OpenCV computes with 11-bit weights


def averaged(pixels, size):
    """Each pixel repeated `size` times a side, then means of blocks as large as the source: the exact area average."""
    for axis in (0, 1):
        repeated = np.repeat(np.moveaxis(pixels, axis, 0), size, 0)
        blocks = repeated.reshape(size, -1, *repeated.shape[1:]).mean(1, dtype=np.float64)
        pixels = np.moveaxis(blocks, 0, axis)
    return pixels


@given(st.integers(12, 40), st.integers(12, 40), st.integers(0, 99))
def test_area_is_the_mean_over_the_covered_area(height, width, seed):
    size = 12
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    np.testing.assert_allclose(area_resized(pixels, size), averaged(pixels, size), atol=0.5 + 1e-9)


def test_area_of_a_thin_picture_takes_no_more_memory_than_the_picture():
    thin = np.zeros((1, 2_000_000, 3), np.uint8)
    thin[:, 1_000_000:] = 255
    assert area_resized(thin, 8)[:, :4].max() == 0 and area_resized(thin, 8)[:, 4:].min() == 255


def whole_then_crop(picture, size, resize):
    """torchvision's Resize, CenterCrop, ToTensor and Normalize on a PIL picture, as its documentation tells them."""
    width, height = picture.size
    new = (resize, int(resize * height / width)) if width <= height else (int(resize * width / height), resize)
    left, top = (round((side - size) / 2.0) for side in new)
    part = picture.resize(new, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return (np.asarray(part) / 255 - np.array(IMAGE_MEAN)) / np.array(IMAGE_STD)


@given(st.integers(5, 90), st.integers(5, 90))
@example(61, 40)  # the long side is 24 · 61 / 40 = 36.6: rounding up would move the crop
@example(70, 48)  # an odd long side of 35: the crop begins at 7.5, rounded to 8
def test_torchvision_is_resize_then_centre_crop(width, height):
    pixels = np.random.default_rng(width * 97 + height).integers(0, 256, (height, width, 3)).astype(np.uint8)
    picture = Image.fromarray(pixels)
    found, expected = torchvision_pixels(picture, 20, 24), whole_then_crop(picture, 20, 24)
    # Pillow rounds to integers after each of its two passes, on other sub-pixel positions.
    np.testing.assert_allclose(found, expected, atol=2 / 255 / min(IMAGE_STD))
    assert np.abs(found - expected).mean() < 0.5 / 255 / min(IMAGE_STD)


def test_a_region_is_cut_at_rounded_pixels_and_not_stretched():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 100, 3)).astype(np.uint8))
    box = (0.104, 0.26, 0.796, 0.74)  # pixels 10.4 to 79.6 and 10.4 to 29.6
    part = picture.crop((10, 10, 80, 30))
    assert np.array_equal(np.asarray(cropped(picture, box)), np.asarray(part))
    found = PictureSettings(20, 24, regions="torchvision").region_pixels(picture, box)
    np.testing.assert_allclose(found, whole_then_crop(part, 20, 24), atol=2 / 255 / min(IMAGE_STD))
    assert np.abs(found - region_to_pixels(picture, box, 20)).mean() > 0.1
    assert cropped(picture, (1.0, 1.0, 1.0, 1.0)).size == (1, 1)


def test_the_defaults_are_ours_and_other_ways_are_told_apart():
    picture = Image.fromarray(pattern(30, 50))
    ours, bgr = PictureSettings(20, 24), PictureSettings(20, 24, whole="area_bgr")
    np.testing.assert_array_equal(ours.whole_pixels(picture), picture_to_pixels(picture, 20, 24))
    box = (0.1, 0.1, 0.5, 0.9)
    np.testing.assert_array_equal(ours.region_pixels(picture, box), region_to_pixels(picture, box, 20))
    np.testing.assert_array_equal(bgr.whole_pixels(picture), area_resized(pattern(30, 50), 20)[..., ::-1])
    assert ours.ours and not bgr.ours and not PictureSettings(missing="zeros").ours
    for wrong in ({"whole": "rgb"}, {"regions": "crop"}, {"missing": "black"}):
        with pytest.raises(ValueError, match=f"pictures.{next(iter(wrong))} is '{next(iter(wrong.values()))}'"):
            PictureSettings(**wrong)
    with pytest.raises(ValueError, match="resized to 10 and cropped to 20"):
        PictureSettings(20, 10)

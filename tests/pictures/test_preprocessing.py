"""Pixels beside transformers' image processors, OpenCV's values, torchvision's rule written out; bytes to floats."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from tmrjax.pictures.area import area_resized
from tmrjax.pictures.decode import load_picture
from tmrjax.pictures.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGE_MEAN,
    IMAGE_STD,
    WHOLE,
    PictureSettings,
    cropped,
    square_of,
    stretched,
)


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
    assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 1
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
    found = PictureSettings().normalise(square_of(picture, 20, 24, "torchvision"))
    expected = whole_then_crop(picture, 20, 24)
    # Pillow rounds to integers after each of its two passes, on other sub-pixel positions.
    np.testing.assert_allclose(found, expected, atol=2 / 255 / min(IMAGE_STD))
    assert np.abs(found - expected).mean() < 0.5 / 255 / min(IMAGE_STD)


def test_a_region_is_cut_at_rounded_pixels_and_not_stretched():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 100, 3)).astype(np.uint8))
    box = (0.104, 0.26, 0.796, 0.74)  # pixels 10.4 to 79.6 and 10.4 to 29.6
    part = picture.crop((10, 10, 80, 30))
    assert np.array_equal(np.asarray(cropped(picture, box)), np.asarray(part))
    settings = PictureSettings(20, 24, regions="torchvision")
    found = settings.normalise(settings.region_pixels(picture, box))
    np.testing.assert_allclose(found, whole_then_crop(part, 20, 24), atol=2 / 255 / min(IMAGE_STD))
    assert np.abs(found - settings.normalise(stretched(picture, box, 20))).mean() > 0.1
    assert cropped(picture, (1.0, 1.0, 1.0, 1.0)).size == (1, 1)


def test_the_defaults_are_ours_and_other_ways_are_told_apart():
    picture = Image.fromarray(pattern(30, 50))
    ours, bgr = PictureSettings(20, 24), PictureSettings(20, 24, whole="area_bgr")
    np.testing.assert_array_equal(ours.whole_pixels(picture), square_of(picture, 20, 24))
    box = (0.1, 0.1, 0.5, 0.9)
    np.testing.assert_array_equal(ours.region_pixels(picture, box), stretched(picture, box, 20))
    np.testing.assert_array_equal(bgr.whole_pixels(picture), area_resized(pattern(30, 50), 20)[..., ::-1])
    assert ours.as_bytes and bgr.as_bytes and not PictureSettings(missing="zeros").as_bytes
    for wrong in ({"whole": "rgb"}, {"regions": "crop"}, {"missing": "black"}, {"resample": "sinc"}):
        with pytest.raises(ValueError, match=f"pictures.{next(iter(wrong))} is '{next(iter(wrong.values()))}'"):
            PictureSettings(**wrong)
    with pytest.raises(ValueError, match="resized to 10 and cropped to 20"):
        PictureSettings(20, 10)
    for wrong, message in (
        ({"std": (1, 0, 1)}, r"pictures.std is \(1, 0, 1\); expected three finite numbers above 0"),
        ({"mean": (0.5, 0.5)}, r"pictures.mean is \(0.5, 0.5\); expected three finite numbers$"),
        ({"rescale": 0.0}, "pictures.rescale is 0.0; expected a finite number above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            PictureSettings(**wrong)


def test_old_checkpoints_read_the_same_settings_and_json_keeps_new_ones():
    old = {"size": 20, "resize": 24, "whole": "torchvision", "regions": "stretch", "missing": "mask"}
    settings = PictureSettings(**old)
    assert (settings.mean, settings.std, settings.resample) == (IMAGE_MEAN, IMAGE_STD, "bilinear")
    changed = PictureSettings(whole="squash", resize=224, mean=(0.1, 0.2, 0.3), resample="bicubic", rescale=0.5)
    again = PictureSettings(**json.loads(json.dumps(dataclasses.asdict(changed))))
    assert again == changed and hash(again) == hash(changed)


# ------------------------------------------------------------------ bytes to floats


ALL_BYTES = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)


@pytest.mark.parametrize(
    "settings", [PictureSettings(), PictureSettings(mean=CLIP_MEAN, std=CLIP_STD), PictureSettings(rescale=1 / 127.5)]
)
def test_the_device_normalises_to_the_very_bits_of_numpy(settings):
    """Under jit too, where a program would multiply instead of dividing, or contract two operations into one."""
    mean, std = np.asarray(settings.mean, np.float32), np.asarray(settings.std, np.float32)
    by_hand = (np.asarray(ALL_BYTES, np.float32) / np.float32(1 / settings.rescale) - mean) / std
    np.testing.assert_array_equal(settings.normalise(ALL_BYTES), by_hand)
    for pixels in (ALL_BYTES, np.tile(ALL_BYTES, (3, 2, 2, 1))):
        expected = np.broadcast_to(np.tile(by_hand, (pixels.shape[-3] // 16, pixels.shape[-2] // 16, 1)), pixels.shape)
        on_device = jax.jit(settings.normalise)(pixels)
        assert on_device.dtype == jnp.float32
        np.testing.assert_array_equal(on_device, expected)


def test_floats_and_unnormalised_pictures_pass_through_and_other_integers_are_refused():
    settings, floats = PictureSettings(whole="area_bgr"), np.full((2, 2, 3), 300.0, np.float32)
    assert settings.normalise(floats) is floats
    np.testing.assert_array_equal(jax.jit(lambda x: settings.normalise(x, whole=True))(ALL_BYTES), ALL_BYTES)
    np.testing.assert_array_equal(settings.normalise(ALL_BYTES), PictureSettings().normalise(ALL_BYTES))
    np.testing.assert_array_equal(
        PictureSettings().normalise(ALL_BYTES, whole=True), PictureSettings().normalise(ALL_BYTES)
    )
    with pytest.raises(ValueError, match="pixels are int32; expected uint8, or floats"):
        settings.normalise(np.zeros((1, 1, 3), np.int32))


def test_normalisation_by_hand():
    pixels = PictureSettings(24, 26).whole_pixels(Image.new("RGB", (30, 50), (255, 0, 51)))
    assert pixels.dtype == np.uint8 and pixels.shape == (24, 24, 3)
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert PictureSettings().normalise(pixels)[7, 9] == pytest.approx(expected)


# ------------------------------------------------------------------ preprocessor_config.json

PROCESSORS = {
    "vit": transformers.ViTImageProcessor(),
    "swin": transformers.ViTImageProcessor(
        size={"height": 40, "width": 40}, resample=3, image_mean=list(IMAGE_MEAN), image_std=list(IMAGE_STD)
    ),
    "clip": transformers.CLIPImageProcessor(),
    "clip_small": transformers.CLIPImageProcessor(size={"shortest_edge": 50}, crop_size=37, resample=2),
    "clip_squashed": transformers.CLIPImageProcessor(size={"height": 48, "width": 48}, crop_size=37),
    "resnet": transformers.ConvNextImageProcessor(size={"shortest_edge": 48}, crop_pct=0.875, resample=3),
    "resnet_large": transformers.ConvNextImageProcessor(do_normalize=False),
    "levels": transformers.ViTImageProcessor(do_rescale=False, do_normalize=False, size=33, resample=0),
}


def assert_equals_processor(name: str, picture: Image.Image, most: int) -> None:
    """Levels before the normalisation, then what becomes of them."""
    processor = PROCESSORS[name]
    settings = PictureSettings.from_processor(json.loads(processor.to_json_string()))
    as_numpy = {"return_tensors": "np", "data_format": "channels_last"}
    levels = processor(picture, do_rescale=False, do_normalize=False, **as_numpy)["pixel_values"][0]
    found = settings.whole_pixels(picture)
    assert found.shape == (settings.size, settings.size, 3)
    assert np.abs(found.astype(int) - levels.astype(int)).max() <= most
    expected = processor(picture, **as_numpy)["pixel_values"][0]
    np.testing.assert_allclose(settings.normalise(levels.astype(np.uint8)), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (300, 301), (5, 140), (1, 40)], ids=str)
def test_pixels_are_those_of_transformers_processors(name, size):
    noise = np.random.default_rng(sum(size)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    # A picture as thin as the last one is not resized as a whole: Pillow may take its two passes in another order.
    assert_equals_processor(name, Image.fromarray(noise), most=0 if size[0] > 1 else 1)


def test_a_picture_of_extreme_shape_is_not_resized_as_a_whole(monkeypatch):
    asked, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: asked.append(size) or resize(self, size, *a, **k)
    )
    PictureSettings(whole="processor", resample="bicubic").whole_pixels(Image.new("RGB", (20_000, 2)))
    assert asked == [(224, 224)]


@pytest.mark.data
@pytest.mark.parametrize("name", ["vit", "swin", "clip", "resnet"])
def test_real_pictures_are_those_of_transformers_processors(name, data_root):
    paths = sorted((data_root / "images").glob("*/*.jpg"))[:5]
    assert len(paths) == 5
    for path in paths:
        assert_equals_processor(name, load_picture(path), most=0)


def test_the_files_of_published_folders_are_read():
    """As the hub has them: old and new forms of the same keys."""
    resnet = {"crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type":
              "ConvNextFeatureExtractor", "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
              "resample": 3, "size": 224}  # fmt: skip
    clip = {"crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True, "feature_extractor_type":
            "CLIPFeatureExtractor", "image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD), "resample": 3,
            "size": 224}  # fmt: skip
    vit = {"do_normalize": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
           "resample": 2, "size": 224}  # fmt: skip
    swin = {"do_normalize": True, "do_resize": True, "feature_extractor_type": "ViTFeatureExtractor", "image_mean":
            [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224}  # fmt: skip
    half = (0.5, 0.5, 0.5)
    read = PictureSettings.from_processor
    assert read(resnet) == PictureSettings(224, 256, "processor", resample="bicubic")
    assert read(clip) == PictureSettings(
        224, 224, "processor", resample="bicubic", mean=CLIP_MEAN, std=CLIP_STD, rescale=1 / 255
    )
    assert read(vit) == PictureSettings(224, 224, "squash", mean=half, std=half)
    assert read(swin, missing="zeros") == PictureSettings(224, 224, "squash", resample="bicubic", missing="zeros")
    assert read(None) == PictureSettings()
    assert read({"image_mean": 0.5, "image_std": 0.25}).std == (0.25,) * 3


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (
            {"image_processor_type": "EfficientNetImageProcessor"},
            "'EfficientNetImageProcessor' is not built here.*ViT, Co",
        ),
        ({"do_resize": False}, "do_resize false is not supported"),
        ({"size": {"height": 10, "width": 12}}, "size {'height': 10, 'width': 12} is not supported"),
        ({"size": {"shortest_edge": 10}}, "without a centre crop leaves pictures of all shapes"),
        ({"size": {"longest_edge": 10}}, "expected a number of pixels"),
        ({"size": 10, "do_center_crop": True, "crop_size": 20}, "resized to 10 and cropped to 20"),
        ({"resample": 9}, "resample 9 is none of Pillow's codes"),
        ({"do_pad": True}, "do_pad True is not supported"),
        ({"image_std": [0, 1, 1]}, "pictures.std"),
        ({"image_std": "ImageNet"}, r"pictures.std is \('ImageNet',\); expected three finite numbers above 0"),
    ],
)
def test_what_a_processor_asks_for_and_is_not_built_is_named(mapping, message):
    with pytest.raises(ValueError, match=message):
        PictureSettings.from_processor(mapping)


@pytest.mark.parametrize("whole", WHOLE)
@pytest.mark.parametrize("size", [(300, 120), (90, 260), (64, 64)])
def test_the_part_that_is_seen(whole, size):
    """A picture whose colours are its places tells where the corners of the square come from."""
    across, down = np.meshgrid(*((np.arange(side) + 0.5) / side * 255 for side in size))
    picture = Image.fromarray(np.stack([across, down, 0 * down], -1).round().astype(np.uint8))
    settings = PictureSettings(size=56, resize=64, whole=whole)
    pixels = settings.whole_pixels(picture)[..., :: -1 if whole == "area_bgr" else 1].astype(float) / 255
    left, top, right, bottom = settings.seen(*size)
    assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    half = (right - left) / 112, (bottom - top) / 112  # half a pixel of the square
    np.testing.assert_allclose(pixels[0, 0, :2], (left + half[0], top + half[1]), atol=0.012)
    np.testing.assert_allclose(pixels[-1, -1, :2], (right - half[0], bottom - half[1]), atol=0.012)

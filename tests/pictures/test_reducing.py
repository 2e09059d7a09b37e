"""Pictures that are decoded smaller than they are: which, how much; nothing moves, and small ones are exact."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from tmrjax.inputs.pictures import Pictures, PixelSource
from tmrjax.pictures.decode import decode_decoded, load_decoded, load_picture, whole
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Record

EXACT = PictureSettings(32, 36)
FAST = dataclasses.replace(EXACT, reducing_gap=2.0)
BOX = (0.1, 0.05, 0.95, 0.9)


def waves(width, height):
    """Slow waves: a shift by one pixel of the picture changes values by up to 16 levels, a coarser decode hardly."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    channels = [np.sin(x / 6.5 + 0.3 * c) * 60 + np.sin(y / 7.5 - 0.4 * c) * 60 + 128 for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def jpeg(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=98, subsampling=0, **options)
    return buffer.getvalue()


def both(data, settings=FAST, boxes=(None, BOX)):
    """Per part the exact pixels and the fast ones; and the factor of the fast decode."""
    exact = dataclasses.replace(settings, reducing_gap=0.0)
    full, small = decode_decoded(data, "x", None), decode_decoded(data, "x", settings.shrinking(boxes))

    def pixels(with_settings, picture):
        return [
            with_settings.whole_pixels(picture) if box is None else with_settings.region_pixels(picture, box)
            for box in boxes
        ]

    return pixels(exact, full), pixels(settings, small), small.factor


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ways", [{}, {"whole": "torchvision", "regions": "torchvision"}, {"whole": "squash"}])
def test_nothing_moves_in_any_orientation(orientation, ways):
    """417 and 303 are no multiples of 4 or 2: the decoder adds a part of a pixel, and being upright moves it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exact, fast, factor = both(jpeg(waves(417, 303), exif=exif), dataclasses.replace(FAST, **ways))
    assert factor == (2 if "regions" in ways else 4)  # a region of torchvision's is cropped once more
    for one, other in zip(exact, fast, strict=True):
        apart = np.abs(one.astype(int) - other)[2:-2, 2:-2]  # at its edge a region may see what lies outside of it
        assert (apart <= 2).mean() > 0.95, (apart.mean(), apart.max())
        assert apart.max() <= 4


@pytest.mark.parametrize(
    ("size", "boxes", "factor"),
    [
        ((1200, 900), [None], 8),  # 36 rows become 900, the crop has 800 x 800: 25 pixels for one
        ((1200, 900), [None, (0.0, 0.0, 0.5, 0.5)], 4),  # 450 rows for 32: 14 for one
        ((1200, 900), [None, (0.0, 0.0, 0.5, 0.5), (0.4, 0.4, 0.9, 0.51)], 1),
        ((1200, 900), [(0.0, 0.0, 0.2, 0.2)], 2),
        ((127, 127), [None], 1),  # 3.5 pixels for one
        ((4000, 20), [None], 1),
    ],
)
def test_the_part_that_needs_most_pixels_decides(size, boxes, factor):
    assert FAST.shrinking(boxes)(size) == factor
    assert decode_decoded(jpeg(Image.new("RGB", size)), "x", FAST.shrinking(boxes)).factor == factor


@pytest.mark.parametrize("kind", ["CMYK", "L", "MPO", "RGB"])
def test_kinds_of_jpeg_keep_their_colours(tmp_path, kind):
    picture = waves(401, 300).convert("RGB" if kind == "MPO" else kind)
    picture.save(tmp_path / "a.jpg", "MPO" if kind == "MPO" else "JPEG", quality=98, subsampling=0)
    small = load_decoded(tmp_path / "a.jpg", FAST.shrinking([None]))
    exact = EXACT.whole_pixels(load_picture(tmp_path / "a.jpg")).astype(int)
    assert small.factor == 4 and small.pixels.mode == "RGB" and small.size == (401, 300)
    assert (np.abs(FAST.whole_pixels(small) - exact) <= 2).mean() > 0.95


def test_other_formats_are_averaged_over_blocks(tmp_path, monkeypatch):
    """A PNG cannot be decoded smaller. Its alpha is laid over white before anything is averaged."""
    picture = waves(417, 303).convert("RGBA")
    picture.putalpha(128)
    picture.save(tmp_path / "a.png")
    asked, reduce = [], Image.Image.reduce
    monkeypatch.setattr(Image.Image, "reduce", lambda self, *a, **k: asked.append(a) or reduce(self, *a, **k))
    decoded = load_decoded(tmp_path / "a.png", FAST.shrinking([None]))
    assert decoded.factor == 1
    exact = EXACT.whole_pixels(load_picture(tmp_path / "a.png")).astype(int)
    assert asked == []
    assert (np.abs(FAST.whole_pixels(decoded) - exact) <= 1).mean() > 0.95
    assert asked[0][0] == (4, 4)


@pytest.mark.parametrize("size", [(120, 130), (9, 300), (1, 20_000), (60, 40)])
@pytest.mark.parametrize("ways", [{}, {"whole": "processor", "regions": "torchvision"}, {"whole": "squash"}])
def test_small_and_thin_pictures_are_read_exactly(size, ways):
    if ways.get("whole") == "squash" and max(size) > 130:
        pytest.skip("a squashed picture shrinks along its long side alone, which may be reduced")
    settings = dataclasses.replace(FAST, **ways)
    picture = waves(*size)
    box = (0.2, 0.2, 0.8, 0.21) if size[1] > 1000 else BOX
    exact = dataclasses.replace(settings, reducing_gap=0.0)
    assert np.array_equal(settings.whole_pixels(picture), exact.whole_pixels(picture))
    if settings.regions == "torchvision" or size[1] <= 130:
        assert np.array_equal(settings.region_pixels(picture, box), exact.region_pixels(picture, box))


def test_a_thin_picture_is_never_resized_as_a_whole(monkeypatch):
    asked, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: asked.append(size) or resize(self, size, *a, **k)
    )
    for ways in ({}, {"whole": "processor"}, {"whole": "torchvision"}):
        settings = dataclasses.replace(FAST, **ways)
        settings.whole_pixels(Image.new("RGB", (3, 9_000)))
        settings.region_pixels(Image.new("RGB", (3, 9_000)), (0, 0, 1, 1))
    assert set(asked) == {(32, 32)}


def test_exact_settings_are_what_a_checkpoint_without_the_key_has():
    old = {name: value for name, value in dataclasses.asdict(EXACT).items() if name != "reducing_gap"}
    assert PictureSettings(**old) == EXACT and EXACT.shrinking([None]) is None
    assert EXACT.of_pixels == {k: v for k, v in old.items() if k not in ("missing", "generated_regions")}  # old caches
    assert FAST.of_pixels["reducing_gap"] == 2.0


def test_what_the_gap_cannot_be_is_said():
    for gap in (0.5, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"reducing_gap is .*; expected 0 \(exact\), or at least 1"):
            PictureSettings(reducing_gap=gap)
    with pytest.raises(ValueError, match="whole='area_bgr' is exact"):
        PictureSettings(reducing_gap=2.0, whole="area_bgr", missing="zeros")


@pytest.mark.parametrize("settings", [EXACT, FAST])
def test_a_picture_is_decoded_once_for_all_of_its_parts(tmp_path, monkeypatch, settings):
    (tmp_path / "a.jpg").write_bytes(jpeg(waves(417, 303)))
    boxes = ((0.0, 0.0, 0.9, 0.9), (0.0, 0.1, 1.0, 1.0))
    source = PixelSource(tmp_path, Pictures("tokens", "pooled", generated=False), settings)
    loads = []
    real = source.open
    monkeypatch.setattr(source, "open", lambda *given: loads.append(given[1:3]) or real(*given))
    found = source.load(Record("1", ("a",), image="a.jpg", regions=boxes))
    assert len(loads) == 1
    small = load_decoded(tmp_path / "a.jpg", settings.shrinking([None, *boxes]))
    assert np.array_equal(found["image"], settings.whole_pixels(small))
    assert np.array_equal(found["regions"][1], settings.region_pixels(small, boxes[1]))
    assert small.factor == (4 if settings is FAST else 1)


def test_a_decoded_picture_maps_boxes_to_its_own_pixels():
    picture = whole(Image.new("RGB", (10, 6)))
    assert picture.box((1, 2, 10, 6)) == (1, 2, 10, 6)

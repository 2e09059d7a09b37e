"""Picture files to pixels: every kind of file that Pillow reads, damaged ones, and the geometry of crop and resize."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tmrjax.files import DataError
from tmrjax.pictures import decode as images
from tmrjax.pictures.decode import (
    PictureError,
    decode_picture,
    load_picture,
)
from tmrjax.pictures.preprocessing import square_of, stretched


def saved(tmp_path, picture, name, **options):
    path = tmp_path / name
    picture.save(path, **options)
    return path


QUARTERS = np.zeros((40, 60, 3), np.uint8)  # red, green / blue, white
QUARTERS[:20, :30], QUARTERS[:20, 30:] = (255, 0, 0), (0, 255, 0)
QUARTERS[20:, :30], QUARTERS[20:, 30:] = (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(tmp_path, orientation):
    upright = Image.fromarray(QUARTERS)
    # How a camera stores the upright picture under each orientation tag: the inverse of what a viewer does.
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    loaded = load_picture(saved(tmp_path, stored, "a.png", exif=exif))
    assert loaded.mode == "RGB" and np.array_equal(np.asarray(loaded), QUARTERS)


GREY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


@pytest.mark.parametrize(
    ("picture", "name", "expected"),
    [
        (Image.fromarray(GREY), "grey.png", GREY),
        (Image.fromarray(GREY.astype(np.uint16) * 257), "grey16.png", GREY),
        (Image.fromarray(GREY.astype(np.int32)), "grey32.tiff", GREY),
        (Image.fromarray(GREY > 100), "bits.png", np.where(GREY > 100, 255, 0)),
        (Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (8, 8), 0)]), "la.png", np.full((8, 8), 255)),
        (Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (8, 8), 255)]), "la2.png", GREY),
        (Image.fromarray(GREY).convert("P"), "palette.gif", GREY),
    ],
)
def test_greys_of_all_depths(tmp_path, picture, name, expected):
    loaded = load_picture(saved(tmp_path, picture, name))
    assert loaded.mode == "RGB"
    assert np.array_equal(np.asarray(loaded), np.stack([expected] * 3, -1))


def test_transparency_lies_over_white(tmp_path):
    picture = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    picture.putpixel((1, 0), (200, 0, 0, 51))  # a fifth of red over white
    loaded = np.asarray(load_picture(saved(tmp_path, picture, "a.png")))
    assert loaded[0].tolist() == [[0, 0, 0], [244, 204, 204]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 90, 90, 90])
    loaded = np.asarray(load_picture(saved(tmp_path, palette, "p.png", transparency=1)))
    assert loaded[0].tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk_and_animation(tmp_path):
    loaded = np.asarray(load_picture(saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "c.jpg")))
    assert np.abs(loaded.astype(int) - [255, 0, 0]).max() < 8
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(load_picture(path))[0, 0].tolist() == [255, 0, 0]


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")


def encoded(kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("empty.jpg", b"", "no picture"),
        ("text.jpg", b"<html>404</html>", "no picture"),
        ("cut.jpg", encoded("JPEG")[:-1500], "a damaged picture"),
        ("cut.png", encoded("PNG")[:-1500], "a damaged picture"),
        ("cut.gif", encoded("GIF")[:-1500], "a damaged picture"),
        ("noise.png", encoded("PNG")[:60] + b"\0" * 500 + encoded("PNG")[560:], "a damaged picture"),
        ("bomb.png", png_header(60_000, 60_000), "too large"),
        ("float.tiff", None, "floating-point pixels"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, data, message):
    path = tmp_path / name
    if data is None:
        Image.fromarray(np.ones((2, 2), np.float32)).save(path)
    else:
        path.write_bytes(data)
    with pytest.raises(PictureError, match=message) as caught:
        load_picture(path)
    assert str(caught.value).startswith(f"{path}: found ") and isinstance(caught.value, DataError)


def eps_with_jpg_suffix(tmp_path):
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (100, 100), "red").save(path, "EPS")
    return path


def test_a_foreign_file_starts_no_interpreter(tmp_path, monkeypatch):
    """Pillow runs `gs` for a file that is EPS, whatever its name is; a stand-in says whether it was called."""
    stand_in = tmp_path / "bin" / "gs"
    stand_in.parent.mkdir()
    stand_in.write_text(f"#!/bin/sh\necho called >> {tmp_path / 'called'}\n")
    stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{stand_in.parent}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked up anew
    path = eps_with_jpg_suffix(tmp_path)
    with pytest.raises(PictureError, match="no picture"):
        load_picture(path)
    with pytest.raises(PictureError, match="no picture"):
        decode_picture(path.read_bytes(), "an EPS")
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "ICO", "SGI", "DDS"])
def test_only_formats_of_the_list_are_decoded(tmp_path, kind):
    with pytest.raises(PictureError, match="no picture; expected one of JPEG, PNG"):
        load_picture(saved(tmp_path, Image.fromarray(QUARTERS), "a.png", format=kind))


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_the_formats_of_the_list_are_decoded(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    loaded = load_picture(saved(tmp_path, Image.fromarray(QUARTERS), "a.bin", format=kind, **options))
    assert np.abs(np.asarray(loaded, int) - QUARTERS).mean() < 6


def test_a_pipe_as_picture_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="a pipe, a socket or a device"):
        load_picture(tmp_path / "pipe.jpg")
    with pytest.raises(PictureError, match="NUL"):
        load_picture("a\0.jpg")


def test_a_picture_of_more_than_forty_million_pixels_is_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(png_header(8_000, 5_001))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(PictureError, match=r"8000 x 5001 pixels.*at most 40,000,000 pixels. Scale it down"):
        load_picture(path)


@pytest.mark.parametrize(("values", "found"), [([0, 65_536], "from 0 to 65536"), ([-1, 65_535], "from -1 to 65535")])
def test_greys_beyond_sixteen_bits_are_no_plain_white_or_black(tmp_path, values, found):
    path = saved(tmp_path, Image.fromarray(np.array([values], np.int32)), "a.tiff")
    with pytest.raises(PictureError, match=f"greys {found}; expected values in 0 to 65,535"):
        load_picture(path)
    Image.fromarray(np.array([[0, 65_535]], np.int32)).save(path)
    assert np.asarray(load_picture(path))[0, :, 0].tolist() == [0, 255]


def test_an_error_of_floating_point_pixels_is_said_once(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.ones((2, 2), np.float32)), "a.tiff")
    with pytest.raises(PictureError) as caught:
        load_picture(path)
    assert str(caught.value).count("found") == 1 and "damaged" not in str(caught.value)


def test_missing_and_folder(tmp_path):
    with pytest.raises(PictureError, match="no such file"):
        load_picture(tmp_path / "a.jpg")
    with pytest.raises(PictureError):
        load_picture(tmp_path)


def test_the_limit_of_pixels_holds_without_pillows(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 63)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(PictureError, match=r"too large \(8 x 8 pixels\)"):
        load_picture(saved(tmp_path, Image.fromarray(GREY), "a.png"))


@pytest.mark.parametrize(("width", "height"), [(300, 100), (100, 300), (128, 128)])
def test_resize_and_centre_crop_keep_a_ramp_where_it_belongs(width, height):
    """A ramp along an axis stays a ramp: each pixel's value tells where in the picture it came from."""
    x = np.broadcast_to(np.linspace(0, 255, width)[None, :], (height, width))
    y = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    picture = Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8))
    size, resize = 48, 64
    result = square_of(picture, size, resize)
    scale = resize / min(width, height)
    for axis, length in ((0, width), (1, height)):
        resized = round(length * scale)
        centre = (np.arange(size) + (resized - size) // 2 + 0.5) / scale - 0.5  # in pixels of the original
        expected = centre / (length - 1) * 255
        profile = result[:, :, axis].mean(0 if axis == 0 else 1)
        assert np.abs(profile - expected).max() < 1.5


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 40), st.integers(0, 20))
def test_every_size_gives_the_asked_shape(width, height, size, more):
    pixels = square_of(Image.new("RGB", (width, height), "white"), size, size + more)
    assert pixels.shape == (size, size, 3) and pixels.dtype == np.uint8
    assert (pixels == 255).all()  # no border came in


@pytest.mark.parametrize(("width", "height"), [(37, 91), (400, 300), (5, 700), (64, 64)])
def test_the_crop_comes_before_the_resize_and_changes_no_pixel(width, height):
    """Against the long way, which resizes the whole picture first: at most one level of 255."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture, size, resize = Image.fromarray(noise), 48, 64
    scale = resize / min(width, height)
    whole = picture.resize([max(resize, round(side * scale)) for side in (width, height)], Image.Resampling.BILINEAR)
    left, top = (whole.width - size) // 2, (whole.height - size) // 2
    expected = np.asarray(whole.crop((left, top, left + size, top + size)), int)
    assert np.abs(square_of(picture, size, resize) - expected).max() <= 1


def test_a_thin_picture_is_never_resized_as_a_whole(monkeypatch):
    """1 x 20,000 pixels with the short side at 256 would be 256 x 5,120,000."""
    asked, resize = [], Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: asked.append(size) or resize(self, size, *a, **k)
    )
    assert square_of(Image.new("RGB", (1, 20_000)), 224, 256).shape == (224, 224, 3)
    assert asked == [(224, 224)]


def test_a_crop_larger_than_the_picture_is_refused():
    with pytest.raises(ValueError, match="resized to 20 and cropped to 24"):
        square_of(Image.new("RGB", (30, 30)), 24, 20)


@pytest.mark.parametrize(
    ("box", "color"),
    [
        ((0, 0, 0.5, 0.5), (255, 0, 0)),
        ((0.5, 0, 1, 0.5), (0, 255, 0)),
        ((0, 0.5, 0.5, 1), (0, 0, 255)),
        ((0.5, 0.5, 1, 1), (255, 255, 255)),
        ((0.999, 0.999, 1, 1), (255, 255, 255)),  # thinner than a pixel
        ((0.2, 0.1, 0.2000001, 0.4), (255, 0, 0)),
    ],
)
def test_a_region_is_what_its_box_covers(box, color):
    result = stretched(Image.fromarray(QUARTERS), box, 16)
    assert result.shape == (16, 16, 3) and (result == color).all()


def test_a_region_lies_between_its_edges():
    x, y = np.meshgrid(np.linspace(0, 255, 200), np.linspace(0, 255, 100))
    picture = Image.fromarray(np.stack([x, y, 0 * x], -1).round().astype(np.uint8))
    result = stretched(picture, (0.3, 0.1, 0.9, 0.5), 20)
    for axis, length, first, last in ((0, 200, 60, 180), (1, 100, 10, 50)):  # pixels of the picture
        centre = first + (np.arange(20) + 0.5) * (last - first) / 20 - 0.5
        assert np.abs(result[:, :, axis].mean(axis) - centre / (length - 1) * 255).max() < 1.5


@given(st.tuples(*[st.floats(0, 1)] * 4).filter(lambda box: box[0] < box[2] and box[1] < box[3]))
def test_any_box_of_the_format_gives_pixels_of_the_picture(box):
    result = stretched(Image.new("RGB", (13, 7), "white"), box, 5)
    assert result.shape == (5, 5, 3) and (result == 255).all()

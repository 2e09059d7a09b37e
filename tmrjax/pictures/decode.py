"""Picture files to RGB pictures.

A picture that cannot be read is an error with its name, never a black square. What a format can do beyond plain RGB is
decided here, once: EXIF orientation is applied, transparency is laid over white, 16-bit greys are scaled to 8 bits,
CMYK and palettes become RGB, of an animation the first frame is taken.

The decoder of JPEG can scale by 1/2, 1/4 or 1/8 while it decodes, which costs less than the whole picture. Whoever
needs less than the whole says so (:data:`Shrinking`) and gets a :class:`Decoded`, which knows where a pixel of the file
has gone.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tmrjax.files import DataError, open_regular

# Of a full decode: about 160 MB, several times that while it is converted, and pictures are decoded in threads. A file
# of a few kilobytes may claim any size.
MAX_PIXELS = 40_000_000

# Nothing else is tried: Pillow would start Ghostscript for a file that is EPS inside, and each decoder more is one that
# a hostile file can attack. JPEG includes MPO, the one of many telephones.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")

# Width and height of the upright picture -> 1, 2, 4 or 8: the decoder may make it so many times smaller.
Shrinking = Callable[[tuple[int, int]], int]
_ORIENTATION = 0x0112  # of EXIF
# Orientations by what being upright does: it exchanges the sides, its left edge was a right or lower one, its upper
# edge was a lower or right one.
_EXCHANGED, _MIRRORED, _UPSIDE_DOWN = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)


class PictureError(DataError):
    """A picture file that is missing, damaged, too large or of an unknown kind."""


@dataclasses.dataclass(frozen=True)
class Decoded:
    """An RGB picture, upright, that the decoder may have made smaller.

    Attributes:
        pixels: the picture.
        size: width and height of the whole picture, upright.
        factor: how many times smaller ``pixels`` is, each side rounded up.
        before: how much of what the rounding added lies left of and above the picture, in pixels of ``pixels``. A
            decoder adds it at the right and below, which is elsewhere once the picture stands upright.
    """

    pixels: Image.Image
    size: tuple[int, int]
    factor: int = 1
    before: tuple[float, float] = (0.0, 0.0)

    def box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """A box in pixels of the whole picture as one in ``pixels``."""
        (left, top), factor = self.before, self.factor
        right, bottom = left + box[2] / factor, top + box[3] / factor
        left, top = left + box[0] / factor, top + box[1] / factor
        return left, top, min(right, self.pixels.width), min(bottom, self.pixels.height)


def whole(picture: Image.Image) -> Decoded:
    """An RGB picture that is as large as it was in its file."""
    return Decoded(picture, picture.size)


def load_picture(path: str | os.PathLike) -> Image.Image:
    """The picture as RGB, upright. Raises :class:`PictureError` naming the file, which must be a regular one."""
    return load_decoded(path, None).pixels


def decode_picture(data: bytes, name: str | os.PathLike) -> Image.Image:
    """As :func:`load_picture`, from the bytes of a picture file; `name` is what an error calls them."""
    return _load(io.BytesIO(data), name, None).pixels


def load_decoded(path: str | os.PathLike, shrinking: Shrinking | None) -> Decoded:
    """As :func:`load_picture`; a JPEG may come as many times smaller as ``shrinking`` says, None is the whole."""
    try:
        with open_regular(path) as file:
            return _load(file, path, shrinking)
    except FileNotFoundError:
        raise PictureError(path, "no such file", "a picture", "Correct the path, or write null for it.") from None
    except OSError as error:
        raise PictureError(path, error.strerror or str(error), "a readable file", "Correct the path.") from None


def decode_decoded(data: bytes, name: str | os.PathLike, shrinking: Shrinking | None) -> Decoded:
    """As :func:`load_decoded`, from the bytes of a picture file; `name` is what an error calls them."""
    return _load(io.BytesIO(data), name, shrinking)


def upright_rgb(picture: Image.Image, name: str | os.PathLike) -> Image.Image:
    """As :func:`load_picture`, from an open picture; `name` is what an error calls it."""
    if picture.width * picture.height > MAX_PIXELS:
        found = f"a picture of {picture.width} x {picture.height}"
        raise PictureError(name, found, f"at most {MAX_PIXELS:,} pixels", "Scale it down.")
    try:
        return _to_rgb(ImageOps.exif_transpose(picture), name)
    except PictureError:
        raise
    except Exception as error:  # a file that Pillow has opened, but not decoded yet
        raise PictureError(name, f"a damaged picture ({error})", "a whole one", "Download it again.") from None


def _load(file: BinaryIO, name: str | os.PathLike, shrinking: Shrinking | None) -> Decoded:
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
            if shrinking is None or picture.format not in ("JPEG", "MPO"):
                picture.load()
                return whole(_to_rgb(ImageOps.exif_transpose(picture), name))
            size, orientation = picture.size, picture.getexif().get(_ORIENTATION, 1)
            upright = size[::-1] if orientation in _EXCHANGED else size
            wanted = shrinking(upright)
            picture.draft(None, tuple(max(side // wanted, 1) for side in size))
            factor = next(f for f in (1, 2, 4, 8) if tuple(-(-side // f) for side in size) == picture.size)
            picture.load()
            pixels = _to_rgb(ImageOps.exif_transpose(picture), name)
            added = [side - all_of_it / factor for side, all_of_it in zip(pixels.size, upright, strict=True)]
            before = (added[0] * (orientation in _MIRRORED), added[1] * (orientation in _UPSIDE_DOWN))
            return Decoded(pixels, upright, factor, before)
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(
            name, f"a picture that is too large ({error})", f"at most {MAX_PIXELS:,} pixels", "Scale it down."
        ) from None
    except UnidentifiedImageError:
        raise PictureError(name, "a file that is no picture", f"one of {', '.join(FORMATS)}", "Replace it.") from None
    except Exception as error:  # Pillow's decoders raise a dozen kinds on damaged data
        raise PictureError(name, f"a damaged picture ({error})", "a whole one", "Download it again.") from None


def _to_rgb(picture: Image.Image, path: str | os.PathLike) -> Image.Image:
    if picture.mode in _SIXTEEN_BIT:
        values = np.asarray(picture).astype(np.int64)
        lowest, highest = int(values.min(initial=0)), int(values.max(initial=0))
        if lowest < 0 or highest > 65_535:
            found, advice = f"greys from {lowest} to {highest}", "Convert the picture: it would be all black or white."
            raise PictureError(path, found, "values in 0 to 65,535", advice)
        # 65,535 is white; a 32-bit container may hold 8-bit values too.
        values = values // 257 if highest > 255 else values
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if picture.mode == "F":
        raise PictureError(path, "floating-point pixels", "8 or 16 bits per channel", "Convert the picture.")
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")

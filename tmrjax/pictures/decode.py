"""Picture files to RGB pictures.

A picture that cannot be read is an error with its name, never a black square. What a format can do beyond plain RGB is
decided here, once: EXIF orientation is applied, transparency is laid over white, 16-bit greys are scaled to 8 bits,
CMYK and palettes become RGB, of an animation the first frame is taken.
"""

from __future__ import annotations

import io
import os
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


class PictureError(DataError):
    """A picture file that is missing, damaged, too large or of an unknown kind."""


def load_picture(path: str | os.PathLike) -> Image.Image:
    """The picture as RGB, upright. Raises :class:`PictureError` naming the file, which must be a regular one."""
    try:
        with open_regular(path) as file:
            return _load(file, path)
    except FileNotFoundError:
        raise PictureError(path, "no such file", "a picture", "Correct the path, or write null for it.") from None
    except OSError as error:
        raise PictureError(path, error.strerror or str(error), "a readable file", "Correct the path.") from None


def decode_picture(data: bytes, name: str | os.PathLike) -> Image.Image:
    """As :func:`load_picture`, from the bytes of a picture file; `name` is what an error calls them."""
    return _load(io.BytesIO(data), name)


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


def _load(file: BinaryIO, name: str | os.PathLike) -> Image.Image:
    try:
        with Image.open(file, formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{picture.width} x {picture.height} pixels")
            picture.load()
            return _to_rgb(ImageOps.exif_transpose(picture), name)
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

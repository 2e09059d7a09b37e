"""From a picture to the pixels that a ResNet reads: our own way, and those of the authors' released code.

A checkpoint keeps its :class:`PictureSettings`. The defaults are ours. The released weights were trained on other
pixels, and a model that is fed with other pixels than it was trained on is wrong without an error. The ways:

=============== ============================================================ ==========================================
``crop``        short side to ``resize``, centre crop to ``size``, ImageNet's whole pictures, ours
                mean and deviation (:func:`tmrjax.pictures.decode.picture_to_pixels`)
``stretch``     the region's crop, resized to ``size``², normalised          regions, ours
                (:func:`tmrjax.pictures.decode.region_to_pixels`)
``torchvision`` as ``crop``, with torchvision's roundings; a region is cut   whole pictures of the released NER code,
                out first, at rounded pixels                                 regions of both
``area_bgr``    squashed to ``size``² as OpenCV's INTER_AREA does, channels  whole pictures of the released RE code
                blue, green, red, 0 to 255, not normalised
=============== ============================================================ ==========================================
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from PIL import Image

from tmrjax.pictures.decode import normalised, picture_to_pixels, region_to_pixels
from tmrjax.records.schema import Box

WHOLE = ("crop", "torchvision", "area_bgr")
REGIONS = ("stretch", "torchvision")
MISSING = ("mask", "zeros")


@dataclasses.dataclass(frozen=True)
class PictureSettings:
    """How pictures become pixels: part of every checkpoint. A checkpoint without one of these keys has the default.

    Attributes:
        size: side of the square that the ResNet reads.
        resize: the short side before the centre crop.
        whole: one of WHOLE, see the module.
        regions: one of REGIONS.
        missing: ``mask``: a picture or region that a post lacks has no influence. ``zeros``: zeros take its place and
            count as a picture, as in the released code.
        generated_regions: False treats every region of a generated picture as missing. The released NER code fails to
            crop them and takes zeros for all of them.

    Raises:
        ValueError: an unknown way, or ``resize`` below ``size``.
    """

    size: int = 224
    resize: int = 256
    whole: str = "crop"
    regions: str = "stretch"
    missing: str = "mask"
    generated_regions: bool = True

    def __post_init__(self):
        for name, known in (("whole", WHOLE), ("regions", REGIONS), ("missing", MISSING)):
            if getattr(self, name) not in known:
                raise ValueError(f"pictures.{name} is {getattr(self, name)!r}; expected one of {', '.join(known)}")
        if self.resize < self.size:
            raise ValueError(
                f"pictures are resized to {self.resize} and cropped to {self.size}: the first must not be smaller"
            )

    @property
    def ours(self) -> bool:
        """Whether nothing but the sizes differs from the defaults: the feature cache knows no other way."""
        return self == PictureSettings(self.size, self.resize)

    def whole_pixels(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture as float32 [size, size, 3]."""
        if self.whole == "area_bgr":
            return area_resized(np.asarray(picture)[..., ::-1], self.size)
        if self.whole == "torchvision":
            return torchvision_pixels(picture, self.size, self.resize)
        return picture_to_pixels(picture, self.size, self.resize)

    def region_pixels(self, picture: Image.Image, box: Box) -> np.ndarray:
        """The part of an RGB picture inside ``box`` (fractions of width and height) as float32 [size, size, 3]."""
        if self.regions == "torchvision":
            return torchvision_pixels(cropped(picture, box), self.size, self.resize)
        return region_to_pixels(picture, box, self.size)


def cropped(picture: Image.Image, box: Box) -> Image.Image:
    """The part of a picture inside ``box``, at rounded pixels as ``Image.crop`` takes them, one pixel at least."""
    width, height = picture.size
    left, right = (round(fraction * width) for fraction in box[::2])
    top, bottom = (round(fraction * height) for fraction in box[1::2])
    left, top = min(left, width - 1), min(top, height - 1)
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def torchvision_pixels(picture: Image.Image, size: int, resize: int) -> np.ndarray:
    """``Resize(resize)``, ``CenterCrop(size)``, ``Normalize`` of torchvision on an RGB picture.

    The long side is rounded down, the crop's corner to the nearest even number. Returns float32 [size, size, 3].
    """
    shorter, longer = sorted(picture.size)
    long_side = int(resize * longer / shorter)
    width, height = (long_side, resize) if picture.width > picture.height else (resize, long_side)
    left, top = round((width - size) / 2), round((height - size) / 2)
    # The crop in coordinates of the source: a thin picture resized as a whole would take gigabytes.
    across, down = picture.width / width, picture.height / height
    box = (left * across, top * down, (left + size) * across, (top + size) * down)
    return normalised(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))


def area_resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pixels squashed to a square as OpenCV's ``resize(..., interpolation=INTER_AREA)`` does.

    Where no side grows, a pixel of the result is the average over the area of the source that it covers, each source
    pixel weighted by its covered share. Where a side grows, OpenCV takes two neighbours at most on both sides, weighted
    by what the first and the second one cover if the side grows; this function does the same.

    Args:
        pixels: uint8 [H, W, C].
        size: the side of the result.

    Returns:
        float32 [size, size, C] with integer values from 0 to 255. Against OpenCV 4.14 a value differs by 1 at most,
        where the average lies close to half-way between two integers.
    """
    lengths = pixels.shape[:2]
    shrinks = min(lengths) >= size
    # The longer side first: the other order would blow a thin picture up.
    for axis in sorted((0, 1), key=lambda axis: -lengths[axis]):
        rows = np.moveaxis(pixels, axis, 0)
        weights = _covered if shrinks else _two_neighbours
        mixed = [np.tensordot(share, rows[first : first + len(share)], 1) for first, share in weights(len(rows), size)]
        pixels = np.moveaxis(np.stack(mixed), 0, axis)
    # OpenCV rounds halves up where a side grows, and to the even neighbour elsewhere.
    return (np.rint(pixels) if shrinks else np.floor(pixels + 0.5)).astype(np.float32)


def _covered(source: int, target: int) -> list[tuple[int, np.ndarray]]:
    """Per target pixel the first source pixel that it covers, and the shares of that one and the following ones."""
    scale, result = source / target, []
    for i in range(target):
        left, right = i * scale, min((i + 1) * scale, source)
        first = int(left)
        covered = np.arange(first, min(math.ceil(right), source))
        shares = np.minimum(right, covered + 1) - np.maximum(left, covered)
        result.append((first, shares / shares.sum()))
    return result


def _two_neighbours(source: int, target: int) -> list[tuple[int, np.ndarray]]:
    """As :func:`_covered` with two source pixels at most, in OpenCV's order of operations.

    The order matters: where ``i · scale`` is an integer, one rounding decides which of two pixels is taken.
    """
    inverse = target / source
    scale, result = 1 / inverse, []
    for i in range(target):
        first = int(i * scale)
        second = max(np.float32((i + 1) - (first + 1) * inverse), 0) % 1
        result.append((first, np.array([1 - second, second]) if first + 1 < source else np.ones(1)))
    return result

"""Pictures as the divergence estimator reads them: of any aspect, in whole patches, padded, with a mask (§3.4).

ViLT's geometry: the short side to 384, the long side to less than 640, both cut down to multiples of the patch, 32
(its own processors compute int(1333 / 800 · 384) = 639, so 608 is the longest side they ever yield); pixels scaled to
[-1, 1]. A batch has one height and width out of a few buckets; smaller ones lie at its top left, the rest is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Size = tuple[int, int]  # height, width, in pixels


@dataclass(frozen=True)
class PairPictureSettings:
    """size: the short side; longest: the most the long side may have before both are cut to multiples of divisor.

    square: straight to size × size, whatever the aspect, so that stretched pictures cannot be told from others.
    buckets: the sizes of padded pictures that a batch may have; () means :func:`default_buckets`. Part of every
    checkpoint.
    """

    size: int = 384
    longest: int = 639
    divisor: int = 32
    square: bool = False
    buckets: tuple[Size, ...] = ()

    def __post_init__(self):
        if self.size % self.divisor or not 0 < self.size <= self.longest:
            raise ValueError(
                f"size {self.size}, longest {self.longest}: expected a multiple of {self.divisor} and size <= longest"
            )


def resized_size(height: int, width: int, settings: PairPictureSettings) -> Size:
    """Height and width after resizing, multiples of `settings.divisor` and at least one of it.

    As ViLT's own processor, rounding included; that one yields 0 for pictures that are more than 20 times as long as
    wide, which are one patch thick here.
    """
    if settings.square:
        return settings.size, settings.size
    scale = settings.size / min(height, width)
    sides = (settings.size, scale * width) if height < width else (scale * height, settings.size)
    if max(sides) > settings.longest:
        scale = settings.longest / max(sides)
        sides = scale * sides[0], scale * sides[1]
    divisor = settings.divisor
    new_height, new_width = (max(divisor, int(side + 0.5) // divisor * divisor) for side in sides)
    return new_height, new_width


def default_buckets(settings: PairPictureSettings) -> tuple[Size, ...]:
    """A square, the middle and the longest landscape and portrait, and the square that holds everything."""
    short, divisor = settings.size, settings.divisor
    longest = settings.longest // divisor * divisor
    if settings.square:
        return ((short, short),)
    middle = (short + longest) // 2 // divisor * divisor
    sizes = {(short, side) for side in (short, middle, longest)} | {(side, short) for side in (middle, longest)}
    return tuple(sorted(sizes | {(longest, longest)}, key=lambda size: (size[0] * size[1], size)))


def estimator_pixels(picture: Image.Image, settings: PairPictureSettings) -> np.ndarray:
    """The resized picture (bicubic) as float32 [height, width, 3] in [-1, 1]: mean and deviation 0.5 per channel."""
    height, width = resized_size(picture.height, picture.width, settings)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    return (np.asarray(resized, np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)


def pad_pictures(pictures: Sequence[np.ndarray | None], size: Size) -> tuple[np.ndarray, np.ndarray]:
    """One batch at one size: pixels float32 [B, height, width, 3], zero where padded, and the mask [B, height, width].

    None is a row without picture: all masked. Raises ValueError for a picture larger than `size`.
    """
    pixels = np.zeros((len(pictures), *size, 3), np.float32)
    mask = np.zeros((len(pictures), *size), bool)
    for row, picture in enumerate(pictures):
        if picture is None:
            continue
        height, width = picture.shape[:2]
        if height > size[0] or width > size[1]:
            raise ValueError(f"a picture of {height} x {width} does not fit into the bucket {size[0]} x {size[1]}")
        pixels[row, :height, :width] = picture
        mask[row, :height, :width] = True
    return pixels, mask

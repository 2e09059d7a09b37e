"""Pictures squashed by area, as OpenCV does it: whole pictures of the authors' released RE code."""

from __future__ import annotations

import math

import numpy as np


def area_resized(pixels: np.ndarray, size: int) -> np.ndarray:
    """Pixels squashed to a square as OpenCV's ``resize(..., interpolation=INTER_AREA)`` does.

    Where no side grows, a pixel of the result is the average over the area of the source that it covers, each source
    pixel weighted by its covered share. Where a side grows, OpenCV takes two neighbours at most on both sides, weighted
    by what the first and the second one cover if the side grows; this function does the same.

    Args:
        pixels: uint8 [H, W, C].
        size: the side of the result.

    Returns:
        uint8 [size, size, C]. Against OpenCV 4.14 a value differs by 1 at most,
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
    return (np.rint(pixels) if shrinks else np.floor(pixels + 0.5)).astype(np.uint8)


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

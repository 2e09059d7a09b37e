"""Boxes around what stands out in a picture: the download-free stand-in for visual grounding (paper section 3.2).

They come from the picture alone and answer no phrase. The map is the spectral residual of Hou and Zhang (CVPR 2007):

    R = log|F(I)| - mean_3x3(log|F(I)|),   S = gaussian * |F^-1(exp(R + i arg F(I)))|^2

of the picture I in grey at 64 x 64; what is like everything else in the spectrum vanishes, what differs stays. A box
is the rectangle that maximises the sum of (S - k mean S); it is taken out, and the next one is looked for. Numpy and
Pillow only; the same picture gives the same boxes.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from tmrjax.records.schema import Box

SIDE = 64  # of the map
CELLS = 32  # of the grid on which rectangles are searched
SMALLEST = 6  # cells, the least width and height of a box
ABOVE_MEAN = 1.3  # k: what a box gains by a cell is how far this exceeds the mean
BLUR = 3.0  # cells of the map, standard deviation of the Gaussian
FLAT = 1.0  # of 255, standard deviation of a picture in which nothing stands out


def saliency_map(picture: Image.Image) -> np.ndarray:
    """S as [64, 64], rows from the top, summing to 1; zeros for a picture of one colour."""
    grey = np.asarray(picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float64)
    if grey.std() < FLAT:
        return np.zeros((SIDE, SIDE))
    spectrum = np.fft.fft2(grey)
    log_amplitude = np.log(np.abs(spectrum) + 1e-9)
    mean = sum(np.roll(log_amplitude, (row, column), (0, 1)) for row in (-1, 0, 1) for column in (-1, 0, 1)) / 9
    sharp = np.abs(np.fft.ifft2(np.exp(log_amplitude - mean + 1j * np.angle(spectrum)))) ** 2
    distance = np.arange(SIDE)[:, None] - np.arange(SIDE)
    gaussian = np.exp(-(distance**2) / (2 * BLUR**2))
    gaussian /= gaussian.sum(1, keepdims=True)  # at the border too, where a part of the bell is outside
    smooth = gaussian @ sharp @ gaussian.T
    return smooth / smooth.sum()


def salient_boxes(picture: Image.Image, maximum: int = 3) -> list[tuple[Box, float]]:
    """At most `maximum` boxes that do not overlap, as fractions of width and height, most salient first.

    Each with its share of the picture's saliency, a number in (0, 1]. A picture of one colour has none.
    """
    block = SIDE // CELLS
    cells = saliency_map(picture).reshape(CELLS, block, CELLS, block).sum((1, 3))
    gain = cells - ABOVE_MEAN * cells.mean()
    boxes = []
    for _ in range(maximum):
        (top, bottom, left, right), total = best_rectangle(gain, SMALLEST)
        if total <= 0:
            break
        area = np.s_[top:bottom, left:right]
        boxes.append(((left / CELLS, top / CELLS, right / CELLS, bottom / CELLS), float(cells[area].sum())))
        gain[area] = -1  # more than all cells together could gain
    return sorted(boxes, key=lambda item: -item[1])


def best_rectangle(gain: np.ndarray, smallest: int) -> tuple[tuple[int, int, int, int], float]:
    """The (top, bottom, left, right) of largest sum among rectangles of at least `smallest` rows and columns, and it.

    Half-open ranges; of equal sums the first in the order of (top, bottom, left). gain: [R, C]. O(R^2 C).
    """
    rows, columns = gain.shape
    tops, bottoms = np.array(
        [(top, bottom) for top in range(rows) for bottom in range(top + smallest, rows + 1)], int
    ).T
    down = np.vstack([np.zeros(columns), gain.cumsum(0)])
    across = np.pad((down[bottoms] - down[tops]).cumsum(1), ((0, 0), (1, 0)))  # [pairs, C + 1]
    lowest = np.minimum.accumulate(across, 1)[:, : columns + 1 - smallest]
    sums = across[:, smallest:] - lowest
    pair, end = divmod(int(sums.argmax()), sums.shape[1])
    left = int(across[pair, : end + 1].argmin())
    return (int(tops[pair]), int(bottoms[pair]), left, end + smallest), float(sums[pair, end])

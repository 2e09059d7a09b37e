"""The drawer of the demo world: small pictures of a person, a place, an organisation or a thing, and their boxes.

Stands in for the diffusion model of the paper's section 3.3 and for the photographs of the posts alike. Each scene
has its shapes and, most of the time, its palette, so that even a small ResNet at random weights separates them.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZE = 64  # pixels, width and height
NOISE = 7.0  # standard deviation of the pixel noise, of 255
PALETTE_SHARE = 0.9  # how often the background has the palette of its scene

Color = tuple[int, int, int]

# Background colours, top to bottom of a vertical gradient; the scene decides which row is likely, not certain.
PALETTES: dict[str, tuple[tuple[Color, Color], ...]] = {
    "PER": (((236, 178, 160), (196, 120, 110)), ((245, 205, 180), (170, 90, 95))),
    "LOC": (((120, 190, 240), (70, 150, 70)), ((150, 210, 235), (110, 140, 60))),
    "ORG": (((40, 50, 110), (20, 25, 70)), ((70, 70, 140), (30, 30, 90))),
    "MISC": (((250, 215, 90), (230, 150, 40)), ((245, 235, 120), (215, 170, 60))),
    "NEUTRAL": (((150, 150, 150), (110, 110, 110)), ((185, 185, 180), (140, 140, 145))),
}


@dataclass(frozen=True)
class Drawing:
    """A drawn picture and the boxes of its objects (fractions), the main object first."""

    picture: Image.Image
    regions: tuple[tuple[float, float, float, float], ...]


def draw(scene: str, generator: np.random.Generator) -> Drawing:
    """Draws `scene` (an entity type or "NEUTRAL") with one main object and up to two stones that mean nothing."""
    palette = scene if generator.random() < PALETTE_SHARE else _pick(generator, sorted(PALETTES))
    top, bottom = _pick(generator, PALETTES[palette])
    blend = np.linspace(0, 1, SIZE)[:, None, None]
    rows = np.asarray(top) * (1 - blend) + np.asarray(bottom) * blend + generator.normal(0, 10, size=3)
    ground = Image.fromarray(np.broadcast_to(rows, (SIZE, SIZE, 3)).clip(0, 255).astype(np.uint8))
    canvas = ImageDraw.Draw(ground)
    scale = generator.uniform(0.95, 1.2)
    middle = SIZE / 2 + generator.uniform(-8, 8)
    foot = SIZE - 6 + generator.uniform(-6, 4)
    _SCENES[scene](canvas, middle, foot, scale, generator)
    # One frame for all scenes, as large as the largest object: a box tells where to look, not what is there.
    boxes = [(middle - 23 * scale, foot - 44 * scale, middle + 23 * scale, foot + 2)]
    boxes += [_stone(canvas, generator) for _ in range(int(generator.integers(0, 3)))]
    noisy = np.asarray(ground, dtype=np.float64) + generator.normal(0, NOISE, size=(SIZE, SIZE, 3))
    picture = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    return Drawing(picture, tuple(_fractions(box) for box in boxes))


def encode(picture: Image.Image) -> bytes:
    """The picture as JPEG bytes, the same for the same picture."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92, subsampling=0)
    return buffer.getvalue()


def _person(canvas, middle, foot, scale, generator):
    """A head on shoulders."""
    skin = _shade((225, 170, 130), generator)
    shirt = _shade((200, 50, 70), generator)
    hair = _shade((60, 35, 25), generator)
    head, height = 10 * scale, 44 * scale
    top = foot - height
    canvas.polygon(
        [
            (middle - 8 * scale, top + 2 * head),
            (middle + 8 * scale, top + 2 * head),
            (middle + 16 * scale, foot),
            (middle - 16 * scale, foot),
        ],
        fill=shirt,
    )
    canvas.ellipse((middle - head, top, middle + head, top + 2 * head), fill=skin)
    canvas.pieslice((middle - head, top - 1, middle + head, top + 2 * head), 180, 360, fill=hair)
    for side in (-1, 1):
        eye = middle + side * 3.5 * scale
        canvas.ellipse((eye - 1, top + head + 1, eye + 1, top + head + 3), fill=(20, 20, 20))


def _place(canvas, middle, foot, scale, generator):
    """A row of houses with lit windows before a hill."""
    hill = _shade((60, 120, 60), generator)
    canvas.polygon(
        [(0, SIZE), (middle - 20, foot - 30 * scale), (middle + 25, foot - 18 * scale), (SIZE, SIZE)], fill=hill
    )
    left = middle - 20 * scale
    for _ in range(4):
        height = generator.uniform(16, 38) * scale
        wall = _shade((120, 110, 125), generator)
        canvas.rectangle((left, foot - height, left + 9 * scale, foot), fill=wall)
        for y in np.arange(foot - height + 3, foot - 4, 6):
            for x in (left + 2, left + 5.5 * scale):
                canvas.rectangle((x, y, x + 1.5, y + 2), fill=(250, 240, 160))
        left += 10 * scale


def _organisation(canvas, middle, foot, scale, generator):
    """A sign with a striped emblem."""
    first, second = _shade((235, 235, 240), generator), _shade((40, 90, 210), generator)
    left, top, right, bottom = middle - 21 * scale, foot - 44 * scale, middle + 21 * scale, foot - 10 * scale
    canvas.rectangle((left, top, right, bottom), fill=first)
    width = (right - left) / 7
    for stripe in range(1, 7, 2):
        canvas.rectangle((left + stripe * width, top, left + (stripe + 1) * width, bottom), fill=second)
    center = (top + bottom) / 2
    canvas.rectangle(
        (middle - 8 * scale, center - 8 * scale, middle + 8 * scale, center + 8 * scale), fill=(210, 30, 40)
    )
    canvas.rectangle((middle - 4 * scale, center - 4 * scale, middle + 4 * scale, center + 4 * scale), fill=first)
    canvas.rectangle((middle - 1.5, bottom, middle + 1.5, foot), fill=(90, 90, 100))


def _thing(canvas, middle, foot, scale, generator):
    """A cup, or a car on two wheels."""
    color = _shade((120, 40, 160), generator)
    dark = (35, 30, 40)
    if generator.random() < 0.5:
        left, top, right = middle - 12 * scale, foot - 30 * scale, middle + 10 * scale
        canvas.arc((right - 5, top + 5, right + 9 * scale, foot - 6), 270, 90, fill=color, width=3)
        canvas.polygon([(left, top), (right, top), (right - 3, foot), (left + 3, foot)], fill=color)
        canvas.ellipse((left, top - 3, right, top + 3), fill=dark)
        return
    left, right, top = middle - 23 * scale, middle + 23 * scale, foot - 16 * scale
    canvas.rectangle((left, top, right, foot - 4), fill=color)
    canvas.polygon(
        [(left + 8, top), (left + 14, top - 10 * scale), (right - 14, top - 10 * scale), (right - 8, top)],
        fill=_shade((170, 110, 200), generator),
    )
    for wheel in (left + 9 * scale, right - 9 * scale):
        canvas.ellipse((wheel - 6, foot - 9, wheel + 6, foot + 2), fill=dark)


def _nothing(canvas, middle, foot, scale, generator):
    """A few waves of grey: nothing that names a type."""
    for line in range(4):
        y = foot - line * 11 * scale
        canvas.line([(middle - 18 * scale, y), (middle, y - 4), (middle + 18 * scale, y)], fill=(90, 90, 95), width=2)


_SCENES = {"PER": _person, "LOC": _place, "ORG": _organisation, "MISC": _thing, "NEUTRAL": _nothing}


def _stone(canvas, generator):
    x, y, radius = generator.uniform(6, SIZE - 6), generator.uniform(SIZE - 14, SIZE - 4), generator.uniform(3, 5)
    canvas.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_shade((130, 130, 130), generator))
    return x - radius, y - radius, x + radius, y + radius


def _shade(color: Color, generator) -> Color:
    return tuple(int(part) for part in (np.asarray(color) + generator.normal(0, 16, size=3)).round().clip(0, 255))


def _fractions(box) -> tuple[float, float, float, float]:
    """Pixels to fractions, cut at the picture's edge; four digits, which is finer than a pixel."""
    x1, y1, x2, y2 = (round(float(min(max(value, 0), SIZE)) / SIZE, 4) for value in box)
    return x1, y1, x2, y2


def _pick(generator, choices):
    return choices[int(generator.integers(len(choices)))]

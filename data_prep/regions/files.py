"""Regions that were found elsewhere: files of boxes or of crops, the released ones among them (paper section 3.2).

* JSONL: `{"id", "boxes": [[x1, y1, x2, y2], ...], "phrases"?: [...], "scores"?: [...]}`, or `"crops": [file, ...]`.
* The released `.pth` files: boxes in pixels of 768 x 768, and names of crops; keyed by id or, in RE, by row.

A crop is a picture that was cut out of another; the box is where it fits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_prep.importing import release_files
from data_prep.regions.detectors import Found
from tmrjax.files import DataError, parse_json, read_bytes
from tmrjax.pictures.decode import load_picture
from tmrjax.records.schema import RecordChecker

ALIKE = 10.0  # of 255: root of the mean squared difference up to which a crop is taken to be from where it fits best
OUTSIDE = 0.01  # of a side: by how much a box may reach over the edge and still be cut off there


@dataclass(frozen=True)
class Entry:
    """The regions of one record: boxes as fractions, or in pixels (`pixels`), or names of crops."""

    where: str
    boxes: tuple[tuple[float, ...], ...] = ()
    crops: tuple[str, ...] = ()
    phrases: tuple[str | None, ...] = ()
    scores: tuple[float | None, ...] = ()


def read_regions(path: Path, split: str | None = None) -> tuple[dict[str, Entry], dict[str, int]]:
    """Entries by record id, and what was met in a released file.

    split: needed for a file keyed by rows, whose record ids are `<split>-<row>`. Raises :class:`DataError`.
    """
    if path.suffix != ".pth":
        return dict(_jsonl(path)), {}
    content = release_files.load_pth(path)
    rows = _by_rows(content)
    if rows and split is None:
        raise DataError(path, "regions by row", "the split that the rows count", f"Write it as SPLIT={path.name}.")
    if any(isinstance(item, str) and item.endswith(".png") for items in content.values() for item in items):
        names = release_files.read_crops(path)
        found, met = {key: Entry(str(path), crops=tuple(crops)) for key, crops in names.items()}, {}
    else:
        read = (release_files.read_row_boxes if rows else release_files.read_boxes)(path)
        if read.phrases_instead:
            raise DataError(path, "phrases where boxes should be", "boxes", "This file has none; leave it out.")
        found = {key: Entry(str(path), boxes=boxes) for key, boxes in read.boxes.items()}
        met = {
            "boxes under a pixel (dropped)": read.too_small,
            "boxes that stood there before (dropped)": read.repeated,
            "lists that stood three times (read once)": len(read.boxes) if read.tripled else 0,
        }
    return {f"{split}-{int(key):05d}" if rows else key: entry for key, entry in found.items()}, met


def is_keyed_by_rows(path: Path) -> bool:
    """Whether this is a file of regions by row: of the release, only those of MNRE are."""
    return path.suffix == ".pth" and _by_rows(release_files.load_pth(path))


def _by_rows(content: Mapping[Any, Any]) -> bool:
    return bool(content) and all(isinstance(key, int) for key in content)


def _jsonl(path: Path):
    seen: dict[str, str] = {}
    lines = read_bytes(path).split(b"\n")
    for number, line in enumerate(lines[:-1] if not lines[-1] else lines, start=1):
        where = f"{path}:{number}"
        check, value = RecordChecker(where), parse_json(line, where)
        check.keys(value, ("id",), ("id", "boxes", "crops", "phrases", "scores"), "entry")
        if ("boxes" in value) == ("crops" in value):
            check.fail("boxes and crops" if "boxes" in value else "neither boxes nor crops", "one of them", "Choose.")
        identifier = check.text(value["id"], "id")
        if identifier in seen:
            check.fail(f"the id {identifier!r} again, first at {seen[identifier]}", "an id once", "Join the lines.")
        seen[identifier] = where
        boxes = value.get("boxes", [])
        if not isinstance(boxes, list):
            check.fail(f"{boxes!r} in 'boxes'", "a list of boxes", "Write [] where there are none.")
        numbers = tuple(check.numbers(box, f"boxes[{index}]", 4) for index, box in enumerate(boxes))
        crops = check.texts(value.get("crops", []), "crops")
        extra = {name: _matching(check, value, name, len(numbers) or len(crops)) for name in ("phrases", "scores")}
        yield identifier, Entry(where, numbers, crops, **extra)


def _matching(check: RecordChecker, value: Mapping[str, Any], name: str, count: int) -> tuple:
    items = value.get(name, [])
    if not isinstance(items, list) or len(items) not in (0, count):
        check.fail(f"{items!r} in {name!r}", f"a list of {count}, one per region", "Leave the key out if unknown.")
    if name == "phrases":
        return tuple(check.optional_text(item, name) for item in items)
    return tuple(None if item is None else check.numbers([item], name, 1)[0] for item in items)


def place(entry: Entry, picture: Image.Image, units: str, crops: Path | None) -> tuple[list[Found], int]:
    """The regions of an entry as fractions of its picture, in the file's order, and how many crops fitted nowhere.

    units: of boxes, "fractions", "pixels" of the picture as it is, or the side of a square in pixels ("768").
    crops: the folder of crops. Raises :class:`DataError` for a box that reaches out of the picture or a missing crop.
    """
    placed: list[tuple[int, tuple[float, ...]]] = []
    lost = 0
    for index, name in enumerate(entry.crops):
        if crops is None:
            raise DataError(entry.where, f"the crop {name!r}", "a folder of crops", "Name it with --crops=DIR.")
        box = locate(picture, load_picture(crops / name))
        if box is None:
            lost += 1
        else:
            placed.append((index, box))
    width, height = {"fractions": (1, 1), "pixels": picture.size}.get(units) or (int(units), int(units))
    for index, box in enumerate(entry.boxes):
        fractions = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        if all(map(math.isfinite, fractions)) and not -OUTSIDE <= min(fractions) <= max(fractions) <= 1 + OUTSIDE:
            found = f"the box {list(box)} outside a picture of {picture.width} x {picture.height}"
            raise DataError(entry.where, found, f"boxes in {units}", "Is it of another picture, or are --units wrong?")
        placed.append((index, fractions))
    phrases = entry.phrases or (None,) * (len(entry.boxes) + len(entry.crops))
    scores = entry.scores or (None,) * len(phrases)
    return [Found(box, phrases[index], scores[index]) for index, box in placed], lost


def locate(picture: Image.Image, crop: Image.Image) -> tuple[float, ...] | None:
    """Where a crop was cut out of a picture, as fractions; None where it fits nowhere.

    The offset (y, x) of least sum over the crop C of (I[y + v, x + u] - C[v, u])^2, in grey, for all offsets at once by
    a Fourier transform; found where its mean is at most ALIKE^2 and a quarter of C's variance. The first of equals.
    """
    whole, part = (np.asarray(image.convert("L"), np.float64) for image in (picture, crop))
    (rows, columns), (height, width) = whole.shape, part.shape
    if height > rows or width > columns:
        return None
    product = np.fft.rfft2(whole) * np.conj(np.fft.rfft2(part, whole.shape))
    correlation = np.fft.irfft2(product, whole.shape)[: rows - height + 1, : columns - width + 1]
    sums = np.pad((whole**2).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    squares = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    difference = (squares - 2 * correlation + (part**2).sum()) / part.size
    y, x = divmod(int(difference.argmin()), difference.shape[1])
    # A dull crop is near to any dull place: it must also fit far better than its own mean would.
    if difference[y, x] > min(ALIKE**2, part.var() / 4 + 1):
        return None
    return x / columns, y / rows, (x + width) / columns, (y + height) / rows

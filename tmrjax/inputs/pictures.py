"""The pictures of a post: the whole picture and its regions, its own and the generated one (§3.2, §3.3).

A method says what it wants of each (:class:`Pictures`): pixels are encoded to ``tokens`` (states of patches),
``pooled`` (one vector) or ``stages`` (maps of several resolutions). A source loads pixels, or what a frozen encoder
made of them ahead of time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from tmrjax.inputs.base import Example, Input, Reading, Spec
from tmrjax.pictures.cache import FeatureCache, PictureRequest
from tmrjax.pictures.decode import load_picture
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Record
from tmrjax.records.schema import NUM_REGIONS, Box

# What may be kept of a picture -> the end of its key in a batch.
FEATURE_KEYS = {"tokens": "features", "pooled": "pooled", "stages": "stages"}
KEPT = (*FEATURE_KEYS, "pixels")


@dataclasses.dataclass(frozen=True)
class Pictures(Input):
    """``image…`` and ``region…`` of a post, with ``image_mask`` [B] and ``region_mask`` [B, 3].

    Attributes:
        whole, regions: what the method reads of the whole picture and of the regions, one of KEPT; None is nothing.
            "pixels": the method calls the parts of its picture encoder itself.
        generated: whether the generated picture is read too, under keys with the prefix ``generated_``.
    """

    whole: str | None = "tokens"
    regions: str | None = "pooled"
    generated: bool = True
    name: ClassVar[str] = "pictures"

    def __post_init__(self):
        for kind in (self.whole, self.regions):
            if kind is not None and kind not in KEPT:
                raise ValueError(f"a method asks for {kind!r} of pictures; expected one of {', '.join(KEPT)}")

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Prefixes of the pictures that take part."""
        return ("", "generated_") if self.generated else ("",)

    @property
    def parts(self) -> dict[str, str]:
        """What is kept of "image" and of "region", without those that are not read."""
        parts = {"image": self.whole, "region": self.regions}
        return {name: kept for name, kept in parts.items() if kept is not None}

    def check(self, records: Sequence[Record]) -> str | None:
        """Some record has each kind of picture."""
        if not any(record.image is not None for record in records):
            return "no record has a picture: import the set with pictures, or take a method that reads text only"
        if self.generated and not any(record.generated is not None for record in records):
            return (
                "no record has a generated picture: run data_prep/back_translate.py, or leave them out with "
                "--config.model.use_back_translation=False"
            )
        return None

    def lacking(self, record: Record) -> tuple[str, ...]:
        """ "picture", "generated picture"."""
        own = ("picture",) if record.image is None else ()
        return (*own, "generated picture") if self.generated and record.generated is None else own

    def spec(self, length: int, reading: Reading) -> Spec:
        """Arrays as the source gives them, and masks."""
        spec: Spec = dict(reading.pictures.spec())
        for prefix in self.prefixes:
            if self.whole:
                spec[f"{prefix}image_mask"] = ((), bool)
            if self.regions:
                spec[f"{prefix}region_mask"] = ((NUM_REGIONS,), bool)
        return spec

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Loads the pictures of one record."""
        source, record = reading.pictures, example.record
        values = dict(source.load(record))
        # With "zeros" what is not there stays zero and counts as a picture, as in the released code.
        everywhere = source.settings.missing == "zeros"
        found = {prefix: boxes for prefix, _, boxes in slots(record, Path(), self.prefixes, source.settings)}
        for prefix in self.prefixes:
            count = NUM_REGIONS if everywhere else len(found.get(prefix, ()))
            if self.whole:
                values[f"{prefix}image_mask"] = everywhere or prefix in found
            if self.regions:
                values[f"{prefix}region_mask"] = [True] * count
        return values


class PictureSource(Protocol):
    """Loads the pictures of one record as arrays of a row, without masks."""

    settings: PictureSettings

    def spec(self) -> Spec:
        """Keys with the shape and dtype of one row."""

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """The arrays of one record; keys of what it lacks may be left out, they are zeros then."""


def slots(
    record: Record, root: Path, prefixes: Sequence[str], settings: PictureSettings
) -> Iterator[tuple[str, Path, tuple[Box, ...]]]:
    """(prefix, picture, boxes) of the pictures that a record has."""
    for prefix in prefixes:
        owner = record.generated if prefix else record
        if owner is not None and owner.image is not None:
            read = settings.generated_regions or not prefix
            yield prefix, root / owner.image, owner.regions[:NUM_REGIONS] if read else ()


class PixelSource:
    """Pictures as pixels: ``{prefix}image`` [S, S, 3] and ``{prefix}regions`` [3, S, S, 3], as ``settings`` say.

    uint8 for :meth:`tmrjax.pictures.preprocessing.PictureSettings.normalise` on the device, a quarter of what floats
    take on the way there; float32 where ``settings.as_bytes`` is False.
    """

    def __init__(self, root: Path, pictures: Pictures, settings: PictureSettings):
        self.root, self.pictures, self.settings = Path(root), pictures, settings

    def spec(self) -> Spec:
        """See the class."""
        shape, kind = (self.settings.size, self.settings.size, 3), np.uint8 if self.settings.as_bytes else np.float32
        spec: Spec = {}
        for prefix in self.pictures.prefixes:
            if self.pictures.whole:
                spec[f"{prefix}image"] = (shape, kind)
            if self.pictures.regions:
                spec[f"{prefix}regions"] = ((NUM_REGIONS, *shape), kind)
        return spec

    def open(self, record: Record, prefix: str, path: Path) -> Image.Image:
        """The picture of a record as RGB."""
        return load_picture(path)

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """Decode each picture once, whole and in regions."""
        arrays, settings = {}, self.settings
        for prefix, path, boxes in slots(record, self.root, self.pictures.prefixes, settings):
            picture = self.open(record, prefix, path)
            if self.pictures.whole:
                arrays[f"{prefix}image"] = settings.whole_pixels(picture)
            if self.pictures.regions and boxes:
                arrays[f"{prefix}regions"] = np.stack([settings.region_pixels(picture, box) for box in boxes])
        return arrays if settings.as_bytes else normalised(arrays, settings)


def normalised(
    batch: Mapping[str, Any], settings: PictureSettings, prefixes: Sequence[str] = ("", "generated_")
) -> dict[str, Any]:
    """A batch, or the arrays of one record, with its pixels as floats; what is no pixels stays as it is."""
    found = dict(batch)
    for prefix in prefixes:
        for name in (f"{prefix}image", f"{prefix}regions"):
            if name in found:
                found[name] = settings.normalise(found[name], whole=name.endswith("image"))
    return found


class FeatureSource:
    """Pictures as what a frozen encoder made of them: ``{prefix}image_{kept}`` and ``{prefix}region_{kept}``.

    The end of a key is of FEATURE_KEYS. ``caches``: by what is kept, one of KEPT.
    """

    def __init__(self, root: Path, pictures: Pictures, settings: PictureSettings, caches: Mapping[str, FeatureCache]):
        self.root, self.pictures, self.settings, self.caches = Path(root), pictures, settings, caches

    def spec(self) -> Spec:
        """See the class."""
        spec: Spec = {}
        for prefix in self.pictures.prefixes:
            for part, kept in self.pictures.parts.items():
                before = (NUM_REGIONS,) if part == "region" else ()
                shapes = self.caches[kept].shapes[kept]
                several = [((*before, *shape), np.float32) for shape in (shapes if kept == "stages" else (shapes,))]
                spec[f"{prefix}{part}_{FEATURE_KEYS[kept]}"] = several if kept == "stages" else several[0]
        return spec

    def load(self, record: Record) -> dict[str, Any]:
        """Read them from the caches."""
        arrays = {}
        for prefix, path, boxes in slots(record, self.root, self.pictures.prefixes, self.settings):
            for part, kept in self.pictures.parts.items():
                asked = [PictureRequest(path, box) for box in ((None,) if part == "image" else boxes)]
                found = [self.caches[kept][request][kept] for request in asked]
                if not found:
                    continue
                key = f"{prefix}{part}_{FEATURE_KEYS[kept]}"
                if part == "image":
                    arrays[key] = found[0]
                elif kept == "stages":
                    arrays[key] = tuple(np.stack(maps) for maps in zip(*found, strict=True))
                else:
                    arrays[key] = np.stack(found)
        return arrays


def picture_requests(
    records: Sequence[Record], root: Path, pictures: Pictures, settings: PictureSettings, kept: str
) -> list[PictureRequest]:
    """What a FeatureSource will ask the cache of ``kept`` for."""
    whole, regions = ((part == kept) for part in (pictures.whole, pictures.regions))
    return [
        PictureRequest(path, box)
        for record in records
        for _, path, boxes in slots(record, Path(root), pictures.prefixes, settings)
        for box in (*((None,) if whole else ()), *(boxes if regions else ()))
    ]

"""The pictures of a post: the whole picture and its regions, its own and the generated one (§3.2, §3.3).

A method says what it wants of each (:class:`Pictures`): pixels are encoded to ``tokens`` (states of patches),
``pooled`` (one vector) or ``stages`` (maps of several resolutions). A source loads pixels, or what a frozen encoder
made of them ahead of time.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from tmrjax.inputs.base import Example, Input, Reading, Spec
from tmrjax.pictures.cache import FeatureCache
from tmrjax.pictures.decode import Decoded, Shrinking, load_decoded
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.pictures.requests import PictureRequest
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
    """Loads the pictures of one record as arrays of a row, without masks.

    pool: threads that load the records of a batch side by side; None where one after the other is as fast.
    """

    settings: PictureSettings
    pool: Executor | None

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

    ``num_threads``: that decode the pictures of one batch side by side, for Pillow leaves Python's lock while it works.
    All batches that are in the making share them.
    """

    def __init__(self, root: Path, pictures: Pictures, settings: PictureSettings, num_threads: int = 1):
        self.root, self.pictures, self.settings, self.num_threads = Path(root), pictures, settings, num_threads

    @functools.cached_property
    def pool(self) -> Executor | None:
        """See :class:`PictureSource`."""
        return ThreadPoolExecutor(self.num_threads, "pictures") if self.num_threads > 1 else None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "pool"}

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

    def open(self, record: Record, prefix: str, path: Path, shrinking: Shrinking | None) -> Decoded:
        """The picture of a record as RGB."""
        return load_decoded(path, shrinking)

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """Decode each picture once, whole and in regions."""
        arrays, settings = {}, self.settings
        for prefix, path, found in slots(record, self.root, self.pictures.prefixes, settings):
            boxes = found if self.pictures.regions else ()
            parts = (*((None,) if self.pictures.whole else ()), *boxes)
            if not parts:
                continue
            picture = self.open(record, prefix, path, settings.shrinking(parts))
            if self.pictures.whole:
                arrays[f"{prefix}image"] = settings.whole_pixels(picture)
            if boxes:
                arrays[f"{prefix}regions"] = np.stack([settings.region_pixels(picture, box) for box in boxes])
        return arrays if settings.as_bytes else normalised(arrays, settings)


class CachedPixelSource(PixelSource):
    """As :class:`PixelSource`, with the pixels that a cache keeps: nothing is decoded."""

    def __init__(self, root: Path, pictures: Pictures, settings: PictureSettings, cache: FeatureCache):
        super().__init__(root, pictures, settings)
        self.cache = cache

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """Read them from the cache."""
        arrays = {}
        for prefix, path, boxes in slots(record, self.root, self.pictures.prefixes, self.settings):
            if self.pictures.whole:
                arrays[f"{prefix}image"] = self.cache[PictureRequest(path, None)]["pixels"]
            if self.pictures.regions and boxes:
                found = [self.cache[PictureRequest(path, box)]["pixels"] for box in boxes]
                arrays[f"{prefix}regions"] = np.stack(found)
        return arrays


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

    pool: ClassVar[None] = None

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
    records: Sequence[Record], root: Path, pictures: Pictures, settings: PictureSettings, kept: str | None
) -> list[PictureRequest]:
    """What a FeatureSource will ask the cache of ``kept`` for; None: what a CachedPixelSource will ask for."""
    whole, regions = (part == kept if kept else part is not None for part in (pictures.whole, pictures.regions))
    return [
        PictureRequest(path, box)
        for record in records
        for _, path, boxes in slots(record, Path(root), pictures.prefixes, settings)
        for box in (*((None,) if whole else ()), *(boxes if regions else ()))
    ]

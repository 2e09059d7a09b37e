"""From examples to batches: bucket by length, shuffle by seed, load pictures ahead, shard by process.

The order of a run is a pure function of (seed, step), so the position of a run is one number, the step, which any
number of workers can resume from (:mod:`tmrjax.inputs.batching`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from tmrjax.fusion import NEUTRAL_SCORES
from tmrjax.inputs.batching import BatchPlan, PlannedBatches
from tmrjax.inputs.examples import RelationExample, TaggingExample, TextSettings
from tmrjax.pictures.cache import FeatureCache, PictureRequest
from tmrjax.pictures.decode import load_picture
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Record
from tmrjax.records.schema import NUM_REGIONS

Example = TaggingExample | RelationExample


class PictureSource(Protocol):
    """Loads the pictures of one record as the arrays of a model's batch, without masks."""

    prefixes: tuple[str, ...]
    settings: PictureSettings

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """The arrays of one record, without a batch axis; what it lacks is as in :meth:`empty`."""

    def empty(self) -> dict[str, np.ndarray]:
        """The arrays of a record without any picture; masks hide them."""


def _slots(
    record: Record, root: Path, prefixes: Sequence[str], settings: PictureSettings
) -> Iterator[tuple[str, Path, tuple]]:
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

    def __init__(self, root: Path, prefixes: Sequence[str], settings: PictureSettings):
        self.root, self.prefixes, self.settings = Path(root), tuple(prefixes), settings

    def empty(self) -> dict[str, np.ndarray]:
        """The arrays of a record without any picture; a mask hides them."""
        shape, kind = (self.settings.size, self.settings.size, 3), np.uint8 if self.settings.as_bytes else np.float32
        arrays = {}
        for prefix in self.prefixes:
            arrays[f"{prefix}image"] = np.zeros(shape, kind)
            arrays[f"{prefix}regions"] = np.zeros((NUM_REGIONS, *shape), kind)
        return arrays

    def open(self, record: Record, prefix: str, path: Path) -> Image.Image:
        """The picture of a record as RGB."""
        return load_picture(path)

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """Decode each picture once, whole and in regions."""
        arrays, settings = self.empty(), self.settings
        for prefix, path, boxes in _slots(record, self.root, self.prefixes, settings):
            picture = self.open(record, prefix, path)
            whole, regions = settings.whole_pixels(picture), [settings.region_pixels(picture, box) for box in boxes]
            if not settings.as_bytes:
                whole = settings.normalise(whole, whole=True)
                regions = [settings.normalise(region) for region in regions]
            arrays[f"{prefix}image"] = whole
            arrays[f"{prefix}regions"][: len(boxes)] = regions if boxes else 0
        return arrays


class FeatureSource:
    """Pictures as maps of a frozen ResNet: ``{prefix}image_features`` [P, C], ``{prefix}region_features`` [3, P, C]."""

    def __init__(self, root: Path, prefixes: Sequence[str], settings: PictureSettings, cache: FeatureCache):
        self.root, self.prefixes, self.settings, self.cache = Path(root), tuple(prefixes), settings, cache

    def empty(self) -> dict[str, np.ndarray]:
        """The arrays of a record without any picture; a mask hides them."""
        shape, arrays = self.cache.shapes["tokens"], {}
        for prefix in self.prefixes:
            arrays[f"{prefix}image_features"] = np.zeros(shape, np.float32)
            arrays[f"{prefix}region_features"] = np.zeros((NUM_REGIONS, *shape), np.float32)
        return arrays

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """Read the maps from the cache."""
        arrays = self.empty()
        for prefix, path, boxes in _slots(record, self.root, self.prefixes, self.settings):
            arrays[f"{prefix}image_features"] = self.cache[PictureRequest(path, None)]["tokens"]
            for i, box in enumerate(boxes):
                arrays[f"{prefix}region_features"][i] = self.cache[PictureRequest(path, box)]["tokens"]
        return arrays


def picture_requests(
    records: Sequence[Record], root: Path, prefixes: Sequence[str], settings: PictureSettings
) -> list[PictureRequest]:
    """Everything a FeatureSource will ask for."""
    return [
        PictureRequest(path, box)
        for record in records
        for _, path, boxes in _slots(record, Path(root), prefixes, settings)
        for box in (None, *boxes)
    ]


@dataclasses.dataclass(frozen=True)
class Collator:
    """Puts examples of one kind into one batch; pickles.

    Attributes:
        kind: the class of the examples, which names the keys of its task.
        settings: how long phrases are.
        pictures: where the pictures come from; None leaves pictures and phrases out.
    """

    kind: type[TaggingExample] | type[RelationExample]
    settings: TextSettings
    pictures: PictureSource | None

    def __call__(self, examples: Sequence[Example | None], length: int) -> dict[str, np.ndarray]:
        """One batch under the keys of :mod:`tmrjax.models`; ``None`` is a row of padding, with every mask False.

        ``row_mask`` [B] is False for such rows. A record without scores gets NEUTRAL_SCORES (Eq. 2).
        """
        pictures, phrase_length = self.pictures, self.settings.phrase_length
        shapes = {"input_ids": ((length,), np.int32), "attention_mask": ((length,), bool)}
        if pictures is not None:
            shapes |= {"phrase_ids": ((phrase_length,), np.int32), "phrase_mask": ((phrase_length,), bool)}
        shapes |= self.kind.shapes(length, self.settings)
        batch = {name: np.zeros((len(examples), *shape), dtype) for name, (shape, dtype) in shapes.items()}
        batch["row_mask"] = np.array([example is not None for example in examples])
        for row, example in enumerate(examples):
            if example is None:
                continue
            values = {"input_ids": example.pieces.input_ids, "attention_mask": [True] * len(example.pieces.input_ids)}
            if pictures is not None:
                values |= {"phrase_ids": example.phrase_ids, "phrase_mask": [True] * len(example.phrase_ids)}
            for name, value in (values | example.values()).items():
                if np.ndim(value):
                    batch[name][row, : len(value)] = value
                else:
                    batch[name][row] = value
        return batch if pictures is None else batch | self._pictures(examples)

    def _pictures(self, examples: Sequence[Example | None]) -> dict[str, np.ndarray]:
        rows, settings = len(examples), self.pictures.settings
        loaded = [
            self.pictures.empty() if example is None else self.pictures.load(example.record) for example in examples
        ]
        batch = {name: np.stack([arrays[name] for arrays in loaded]) for name in loaded[0]}
        for prefix in self.pictures.prefixes:
            image_mask, region_mask = np.zeros(rows, bool), np.zeros((rows, NUM_REGIONS), bool)
            scores = np.tile(np.asarray(NEUTRAL_SCORES, np.float32), (rows, 1))
            for row, example in enumerate(examples):
                if example is None:
                    continue
                record = example.record
                if settings.missing == "zeros":  # what is not there stays zero and counts as a picture
                    image_mask[row], region_mask[row] = True, True
                for _, _, boxes in _slots(record, Path(), [prefix], settings):
                    image_mask[row] = True
                    region_mask[row, : len(boxes)] = True
                given = record.generated_scores if prefix else record.scores
                if given is not None:
                    scores[row] = given
            batch |= {f"{prefix}image_mask": image_mask, f"{prefix}region_mask": region_mask, f"{prefix}scores": scores}
        return batch


@dataclasses.dataclass(frozen=True)
class Batches(PlannedBatches):
    """An epoch-spanning stream of batches of one process; pickles, so that grain's worker processes can build it."""

    examples: Sequence[Any]
    plan: BatchPlan
    collate: Callable[[Sequence[Any], int], Mapping[str, np.ndarray]]
    process_index: int = 0
    process_count: int = 1

    def load(self, bucket: int, indices: Sequence[int]) -> Mapping[str, np.ndarray]:
        """The batch of these examples, -1 for a row of padding, with `bucket` word pieces."""
        return self.collate([self.examples[i] if i >= 0 else None for i in indices], bucket)


def sample_fraction(records: Sequence[Record], fraction: float, seed: int) -> list[Record]:
    """A share of the records without replacement, in their order: the paper's low-resource setting (§4.4)."""
    if not 0 < fraction <= 1:
        raise ValueError(f"data.fraction must lie in (0, 1], found {fraction}")
    count = max(1, round(fraction * len(records)))
    chosen = np.random.default_rng(seed).choice(len(records), count, replace=False)
    return [records[i] for i in sorted(chosen)]

"""From records to batches: tokenise once, bucket by length, shuffle by seed, load pictures ahead, shard by process.

The order of a run is a pure function of (seed, step), so the position of a run is one number, the step, which any
number of workers can resume from (:mod:`tmrjax.batching`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from tmrjax.batching import BatchPlan, PlannedBatches
from tmrjax.feature_cache import FeatureCache, PictureRequest
from tmrjax.fusion import NEUTRAL_SCORES
from tmrjax.images import load_picture, picture_to_pixels, region_to_pixels
from tmrjax.models import NUM_REGIONS
from tmrjax.records import Record
from tmrjax.tagging import TagSet, Tokenizer, WordPieces, encode_phrases, encode_words

logger = logging.getLogger(__name__)


class Example(NamedTuple):
    """A record as integers. tags: index of each kept word's tag, None where the record has no tags."""

    record: Record
    pieces: WordPieces
    phrase_ids: list[int]
    tags: list[int] | None


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How text becomes word pieces: part of every checkpoint.

    max_pieces and max_phrase_pieces are n and m of P1 (80 with, 4 without [CLS] and [SEP]). piece_tags: tags on every
    word piece in the scheme of the released code (R6) instead of on words.
    """

    max_pieces: int = 80
    max_phrase_pieces: int = 4
    piece_tags: bool = False


RELEASE_TAGS = (
    "PAD", "O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "X", "[CLS]", "[SEP]",
)  # fmt: skip


def encode_records(
    records: Sequence[Record], tokenizer: Tokenizer, tag_set: TagSet, settings: TextSettings
) -> list[Example]:
    """Tokenise records once; words that are cut or have no piece are counted and said, never dropped in silence."""
    examples, cut_posts, cut_words, empty_words, cut_phrases = [], 0, 0, 0, 0
    for record in records:
        pieces = encode_words(tokenizer, record.tokens, settings.max_pieces)
        phrase_ids, cut = encode_phrases(tokenizer, record.phrases, settings.max_phrase_pieces)
        cut_posts, cut_words = cut_posts + bool(pieces.cut), cut_words + len(pieces.cut)
        empty_words, cut_phrases = empty_words + len(pieces.empty), cut_phrases + cut
        tags = None
        if record.tags is not None:
            indices = tag_set.encode(record.tags)
            tags = [indices[word] for word in pieces.words]
            if settings.piece_tags:
                tags = _piece_tags(record.tags, pieces)
        examples.append(Example(record, pieces, phrase_ids, tags))
    if cut_words:
        logger.warning(
            "%d words of %d posts lie behind the limit of %d word pieces: they are predicted as O and count as missed",
            cut_words, cut_posts, settings.max_pieces,
        )  # fmt: skip
    if empty_words:
        logger.info("%d words have no word piece (invisible characters): they are predicted as O", empty_words)
    if cut_phrases:
        logger.info("%d phrase pieces lie behind the limit of %d", cut_phrases, settings.max_phrase_pieces)
    return examples


def _piece_tags(tags: Sequence[str], pieces: WordPieces) -> list[int]:
    """R6: [CLS], then each word's tag on its first piece and X on the others, [SEP]."""
    result = [RELEASE_TAGS.index("X")] * len(pieces.input_ids)
    result[0], result[-1] = RELEASE_TAGS.index("[CLS]"), RELEASE_TAGS.index("[SEP]")
    for word, start in zip(pieces.words, pieces.word_starts, strict=True):
        result[start] = RELEASE_TAGS.index(tags[word])
    return result


class PictureSource(Protocol):
    """Loads the pictures of one record as the arrays of a model's batch, without masks."""

    prefixes: tuple[str, ...]

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """The arrays of one record, without a batch axis; what it lacks is as in :meth:`empty`."""

    def empty(self) -> dict[str, np.ndarray]:
        """The arrays of a record without any picture; masks hide them."""


def _slots(record: Record, root: Path, prefixes: Sequence[str]) -> Iterator[tuple[str, Path, tuple]]:
    """(prefix, picture, boxes) of the pictures that a record has."""
    for prefix in prefixes:
        owner = record.generated if prefix else record
        if owner is not None and owner.image is not None:
            yield prefix, root / owner.image, owner.regions[:NUM_REGIONS]


class PixelSource:
    """Pictures as normalised pixels: ``{prefix}image`` [S, S, 3] and ``{prefix}regions`` [3, S, S, 3]."""

    def __init__(self, root: Path, prefixes: Sequence[str], *, size: int, resize: int):
        self.root, self.prefixes, self.size, self.resize = Path(root), tuple(prefixes), size, resize

    def empty(self) -> dict[str, np.ndarray]:
        """The arrays of a record without any picture; a mask hides them."""
        shape = (self.size, self.size, 3)
        arrays = {}
        for prefix in self.prefixes:
            arrays[f"{prefix}image"] = np.zeros(shape, np.float32)
            arrays[f"{prefix}regions"] = np.zeros((NUM_REGIONS, *shape), np.float32)
        return arrays

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """Decode each picture once, whole and in regions."""
        arrays = self.empty()
        for prefix, path, boxes in _slots(record, self.root, self.prefixes):
            picture = load_picture(path)
            arrays[f"{prefix}image"] = picture_to_pixels(picture, self.size, self.resize)
            for i, box in enumerate(boxes):
                arrays[f"{prefix}regions"][i] = region_to_pixels(picture, box, self.size)
        return arrays


class FeatureSource:
    """Pictures as maps of a frozen ResNet: ``{prefix}image_features`` [P, C], ``{prefix}region_features`` [3, P, C]."""

    def __init__(self, root: Path, prefixes: Sequence[str], cache: FeatureCache):
        self.root, self.prefixes, self.cache = Path(root), tuple(prefixes), cache

    def empty(self) -> dict[str, np.ndarray]:
        """The arrays of a record without any picture; a mask hides them."""
        shape, arrays = self.cache.feature_shape, {}
        for prefix in self.prefixes:
            arrays[f"{prefix}image_features"] = np.zeros(shape, np.float32)
            arrays[f"{prefix}region_features"] = np.zeros((NUM_REGIONS, *shape), np.float32)
        return arrays

    def load(self, record: Record) -> dict[str, np.ndarray]:
        """Read the maps from the cache."""
        arrays = self.empty()
        for prefix, path, boxes in _slots(record, self.root, self.prefixes):
            arrays[f"{prefix}image_features"] = self.cache[PictureRequest(path, None)]
            for i, box in enumerate(boxes):
                arrays[f"{prefix}region_features"][i] = self.cache[PictureRequest(path, box)]
        return arrays


def picture_requests(records: Sequence[Record], root: Path, prefixes: Sequence[str]) -> list[PictureRequest]:
    """Everything a FeatureSource will ask for."""
    return [
        PictureRequest(path, box)
        for record in records
        for _, path, boxes in _slots(record, Path(root), prefixes)
        for box in (None, *boxes)
    ]


def collate(
    examples: Sequence[Example | None], length: int, settings: TextSettings, pictures: PictureSource | None
) -> dict[str, np.ndarray]:
    """One batch under the keys of DESIGN.md §3; ``None`` is a row of padding, with every mask False.

    Besides: ``row_mask`` [B], False for such rows. A record without scores gets NEUTRAL_SCORES (Eq. 2).
    """
    rows, phrase_length = len(examples), settings.max_phrase_pieces + 2
    words = length - 2
    batch = {
        "input_ids": np.zeros((rows, length), np.int32),
        "attention_mask": np.zeros((rows, length), bool),
        "word_starts": np.zeros((rows, words), np.int32),
        "word_mask": np.zeros((rows, words), bool),
        "tags": np.zeros((rows, length if settings.piece_tags else words), np.int32),
        "row_mask": np.array([example is not None for example in examples]),
    }
    for row, example in enumerate(examples):
        if example is None:
            continue
        pieces, kept = example.pieces, len(example.pieces.words)
        batch["input_ids"][row, : len(pieces.input_ids)] = pieces.input_ids
        batch["attention_mask"][row, : len(pieces.input_ids)] = True
        batch["word_starts"][row, :kept] = pieces.word_starts
        batch["word_mask"][row, :kept] = True
        if example.tags is not None:
            batch["tags"][row, : len(example.tags)] = example.tags
    if pictures is None:
        return batch
    batch["phrase_ids"] = np.zeros((rows, phrase_length), np.int32)
    batch["phrase_mask"] = np.zeros((rows, phrase_length), bool)
    for row, example in enumerate(examples):
        if example is not None:
            batch["phrase_ids"][row, : len(example.phrase_ids)] = example.phrase_ids
            batch["phrase_mask"][row, : len(example.phrase_ids)] = True
    loaded = [pictures.empty() if example is None else pictures.load(example.record) for example in examples]
    batch |= {name: np.stack([arrays[name] for arrays in loaded]) for name in loaded[0]}
    for prefix in pictures.prefixes:
        image_mask, region_mask = np.zeros(rows, bool), np.zeros((rows, NUM_REGIONS), bool)
        scores = np.tile(np.asarray(NEUTRAL_SCORES, np.float32), (rows, 1))
        for row, example in enumerate(examples):
            if example is None:
                continue
            record = example.record
            for _, _, boxes in _slots(record, Path(), [prefix]):
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

    examples: Sequence[Example]
    plan: BatchPlan
    settings: TextSettings
    pictures: PictureSource | None
    process_index: int = 0
    process_count: int = 1

    def load(self, bucket: int, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The batch of these examples, -1 for a row of padding, with `bucket` word pieces."""
        chosen = [self.examples[i] if i >= 0 else None for i in indices]
        return collate(chosen, bucket, self.settings, self.pictures)


def sample_fraction(records: Sequence[Record], fraction: float, seed: int) -> list[Record]:
    """A share of the records without replacement, in their order: the paper's low-resource setting (§4.4)."""
    if not 0 < fraction <= 1:
        raise ValueError(f"data.fraction must lie in (0, 1], found {fraction}")
    count = max(1, round(fraction * len(records)))
    chosen = np.random.default_rng(seed).choice(len(records), count, replace=False)
    return [records[i] for i in sorted(chosen)]

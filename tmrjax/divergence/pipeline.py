"""From the corpus to the divergence estimator's batches: word pieces, patches of any aspect, a few static shapes.

Pairs are read from disk when their batch is built; only their sizes are in memory
(:class:`tmrjax.divergence.corpus.CorpusSplit`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tmrjax.divergence.corpus import CorpusSplit, Pair
from tmrjax.divergence.pictures import (
    PairPictureSettings,
    default_buckets,
    estimator_pixels,
    pad_pictures,
    resized_size,
)
from tmrjax.inputs.batching import BatchPlan, PlannedBatches
from tmrjax.pictures.decode import decode_picture
from tmrjax.text.pieces import Tokenizer

logger = logging.getLogger(__name__)

_TEXTS_AT_ONCE = 1000


@dataclasses.dataclass(frozen=True)
class PairTextSettings:
    """max_pieces: with [CLS] and [SEP], 40 as in ViLT; buckets: lengths that a batch may have, () for max_pieces alone.

    Part of every checkpoint. Raises ValueError where no bucket holds a text of max_pieces.
    """

    max_pieces: int = 40
    buckets: tuple[int, ...] = ()

    def __post_init__(self):
        if self.buckets and max(self.buckets) < self.max_pieces:
            raise ValueError(f"the longest bucket {max(self.buckets)} is below max_pieces {self.max_pieces}")


def encode_text(tokenizer: Tokenizer, text: str, settings: PairTextSettings) -> list[int]:
    """[CLS], the word pieces of a text, [SEP], cut to the limit."""
    return encode_texts(tokenizer, [text], settings)[0]


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str], settings: PairTextSettings) -> list[list[int]]:
    """As :func:`encode_text`, for many at once."""
    # Cut here, not by the tokenizer: its truncation is a state of the object, and several threads share it.
    whole = tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
    limit = settings.max_pieces
    return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in whole]


@dataclasses.dataclass(frozen=True)
class TextLengths:
    """pieces: [N] of each text, cut to the limit; cut: how many texts lost pieces; empty: how many have none at all."""

    pieces: np.ndarray
    cut: int
    empty: int


def text_lengths(texts: Iterable[str], tokenizer: Tokenizer, settings: PairTextSettings) -> TextLengths:
    """Reads every text once; those over the limit are counted and said, never cut in silence."""
    lengths, chunk = [], []

    def count() -> None:
        pieces = tokenizer(list(chunk), truncation=False, verbose=False)["input_ids"]
        lengths.append(np.array([len(ids) for ids in pieces], np.int32))
        chunk.clear()

    for text in texts:
        chunk.append(text)
        if len(chunk) == _TEXTS_AT_ONCE:
            count()
    if chunk:
        count()
    whole = np.concatenate(lengths)
    cut, empty = int((whole > settings.max_pieces).sum()), int((whole <= 2).sum())
    if cut:
        logger.warning("%d of %d texts have more than %d word pieces and are cut", cut, len(whole), settings.max_pieces)
    if empty:
        logger.warning("%d of %d texts have no word piece at all", empty, len(whole))
    return TextLengths(np.minimum(whole, settings.max_pieces), cut, empty)


def pair_buckets(texts: PairTextSettings, pictures: PairPictureSettings) -> tuple[tuple[int, int, int], ...]:
    """The shapes (pieces, height, width) that a batch may have; the largest holds all the others."""
    sizes = pictures.buckets or default_buckets(pictures)
    lengths = texts.buckets or (texts.max_pieces,)
    return tuple((length, *size) for length in lengths for size in sizes)


def pair_sizes(split: CorpusSplit, lengths: np.ndarray | None, texts: PairTextSettings, pictures: PairPictureSettings):
    """[N, 3]: pieces (the limit where `lengths` is None), height and width of every pair as resized."""
    sizes = np.empty((len(split), 3), np.int32)
    sizes[:, 0] = texts.max_pieces if lengths is None else lengths
    shapes, inverse = np.unique(np.stack([split.index["height"], split.index["width"]], 1), axis=0, return_inverse=True)
    resized = np.array([resized_size(height, width, pictures) for height, width in shapes.tolist()], np.int32)
    sizes[:, 1:] = resized[inverse.reshape(-1)]
    return sizes


def plan_pairs(
    split: CorpusSplit,
    tokenizer: Tokenizer,
    texts: PairTextSettings,
    pictures: PairPictureSettings,
    batch_size: int,
    *,
    epochs: int = 1,
    seed: int | None = None,
) -> tuple[BatchPlan, TextLengths]:
    """The plan of a run over a split, and what reading its texts found (all of them are read once)."""
    lengths = text_lengths((pair.text for pair in split), tokenizer, texts)
    sizes = pair_sizes(split, lengths.pieces, texts, pictures)
    return BatchPlan(sizes, pair_buckets(texts, pictures), batch_size, epochs=epochs, seed=seed), lengths


def collate_inputs(
    texts: Sequence[Sequence[int] | None], pictures: Sequence[np.ndarray | None], bucket: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """What the estimator reads of one batch: word pieces of :func:`encode_text`, pixels of :func:`estimator_pixels`.

    input_ids, attention_mask [B, T], pixel_values [B, H, W, 3], pixel_mask [B, H, W] with the shape (T, H, W) of
    `bucket`; None is a row of padding, with every mask False.
    """
    length, height, width = bucket
    batch = {
        "input_ids": np.zeros((len(texts), length), np.int32),
        "attention_mask": np.zeros((len(texts), length), bool),
    }
    for row, ids in enumerate(texts):
        if ids is not None:
            batch["input_ids"][row, : len(ids)] = ids
            batch["attention_mask"][row, : len(ids)] = True
    batch["pixel_values"], batch["pixel_mask"] = pad_pictures(pictures, (height, width))
    return batch


def collate_pairs(
    pairs: Sequence[Pair | None],
    bucket: tuple[int, int, int],
    tokenizer: Tokenizer,
    texts: PairTextSettings,
    pictures: PairPictureSettings,
    source_names: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """One batch under the keys of :mod:`tmrjax.divergence`; None is a row of padding, with every mask False.

    The arrays of :func:`collate_inputs`, and labels [B] (0 where padded), sources [B] (position in `source_names`, -1
    where padded or not among them), row_mask [B]. Raises :class:`tmrjax.pictures.decode.PictureError` naming the pair.
    """
    known = {name: number for number, name in enumerate(source_names)}
    encoded, loaded = [], []
    for pair in pairs:
        encoded.append(None if pair is None else encode_text(tokenizer, pair.text, texts))
        picture = None if pair is None else decode_picture(pair.image, f"picture of the pair {pair.id}")
        loaded.append(None if picture is None else estimator_pixels(picture, pictures))
    return collate_inputs(encoded, loaded, bucket) | {
        "labels": np.array([0 if pair is None else pair.label for pair in pairs], np.int32),
        "sources": np.array([-1 if pair is None else known.get(pair.source, -1) for pair in pairs], np.int32),
        "row_mask": np.array([pair is not None for pair in pairs]),
    }


@dataclasses.dataclass(frozen=True)
class PairBatches(PlannedBatches):
    """An epoch-spanning stream of batches of pairs for one process; see :func:`collate_pairs`."""

    split: CorpusSplit
    plan: BatchPlan
    tokenizer: Any
    texts: PairTextSettings
    pictures: PairPictureSettings
    process_index: int = 0
    process_count: int = 1

    def load(self, bucket: tuple[int, int, int], indices: Sequence[int]) -> dict[str, np.ndarray]:
        """The batch of these pairs, -1 for a row of padding, in the shape (pieces, height, width)."""
        pairs = [self.split[int(i)] if i >= 0 else None for i in indices]
        names = self.split.info.source_names
        return collate_pairs(pairs, bucket, self.tokenizer, self.texts, self.pictures, names)

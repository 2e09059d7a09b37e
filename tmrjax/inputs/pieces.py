"""The words of a post as word pieces, for tagging; a long post in windows (§3.2)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from tmrjax.inputs.base import Example, Reading, Spec, TextInput
from tmrjax.inputs.settings import TextSettings
from tmrjax.records import Record
from tmrjax.text.pieces import WordPieces, encode_words
from tmrjax.text.windows import make_windows


@dataclasses.dataclass(frozen=True)
class Pieces(TextInput):
    """``input_ids``, ``attention_mask`` [B, T], ``word_starts``, ``word_mask`` [B, W] with W = T − 2."""

    name: ClassVar[str] = "pieces"
    windows: ClassVar[bool] = True

    def pieces(self, record: Record, reading: Reading) -> WordPieces:
        """[CLS], the pieces of the words, [SEP]."""
        text = reading.text
        return encode_words(reading.tokenizer, record.tokens, text.max_pieces, whole_post=text.in_windows)

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        words = length - self.specials
        return {
            "input_ids": ((length,), np.int32),
            "attention_mask": ((length,), bool),
            "word_starts": ((words,), np.int32),
            "word_mask": ((words,), bool),
        }

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Of one post or window."""
        pieces = example.pieces
        return {
            "input_ids": pieces.input_ids,
            "attention_mask": [True] * len(pieces.input_ids),
            "word_starts": pieces.word_starts,
            "word_mask": [True] * len(pieces.word_starts),
        }


def windows_of(example: Example, settings: TextSettings, *, training: bool = False) -> list[Example]:
    """The rows of a post: itself where it fits into max_pieces, else one row per window with the words it owns.

    ``training``: a window's own words are a training example of their own, so no window begins inside of an entity:
    the cut moves to the next place in the overlap that lies outside of entities. Where an entity is longer than the
    overlap, its words behind the cut take no part in the loss.
    """
    pieces, size = example.pieces, settings.max_pieces
    if len(pieces.input_ids) <= size:
        return [example]
    cls, sep = pieces.input_ids[0], pieces.input_ids[-1]
    bounds = [*pieces.word_starts, len(pieces.input_ids) - 1]
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    inside: set[int] = set()
    if training:
        inside = {i for i, word in enumerate(pieces.words) if example.record.tags[word].startswith("I-")}
    rows = []
    for window in make_windows(lengths, size - 2, settings.overlap, inside):
        own_first = window.own_first
        while own_first and own_first in inside and own_first < window.own_last:
            own_first += 1
        own = slice(own_first, window.own_last)
        if own_first == window.own_last:
            continue
        shift = bounds[window.first] - 1
        part = pieces._replace(
            input_ids=[cls, *pieces.input_ids[bounds[window.first] : bounds[window.last]], sep],
            word_starts=[start - shift for start in pieces.word_starts[own]],
            words=pieces.words[own],
            piece_words=[-1, *pieces.piece_words[bounds[window.first] : bounds[window.last]], -1],
        )
        rows.append(example._replace(pieces=part))
    return rows

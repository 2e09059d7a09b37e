"""A post with its two entities marked in its word pieces, for relations (§3.5, Eq. 10)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from tmrjax.files import DataError
from tmrjax.inputs.base import Example, Reading, Spec, TextInput
from tmrjax.records import Record
from tmrjax.text.marking import MarkedPieces, WindowError, encode_marked


class PairDistanceError(DataError):
    """Head and tail do not fit into one window."""


@dataclasses.dataclass(frozen=True)
class Marked(TextInput):
    """``input_ids``, ``attention_mask`` [B, T]; ``head_start``, ``tail_start`` [B], the marker before each entity."""

    name: ClassVar[str] = "marked"

    def pieces(self, record: Record, reading: Reading) -> MarkedPieces:
        """[CLS], a window of the post around both entities with four markers, [SEP].

        Raises:
            PairDistanceError: head and tail do not fit into max_pieces together; the message has the record's id.
            ValueError: a vocabulary without markers.
        """
        limit = reading.text.max_pieces
        try:
            return encode_marked(reading.tokenizer, record.tokens, record.head, record.tail, limit)
        except WindowError as error:
            raise pair_distance(record, error, limit) from None

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        return {
            "input_ids": ((length,), np.int32),
            "attention_mask": ((length,), bool),
            "head_start": ((), np.int32),
            "tail_start": ((), np.int32),
        }

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Of one post."""
        pieces = example.pieces
        return {
            "input_ids": pieces.input_ids,
            "attention_mask": [True] * len(pieces.input_ids),
            "head_start": pieces.head_start,
            "tail_start": pieces.tail_start,
        }


def pair_distance(record: Record, error: WindowError, limit: int) -> PairDistanceError:
    """The error of a record whose entities stand too far apart."""
    return PairDistanceError(
        f"record {record.id}",
        str(error),
        f"at most {limit} word pieces with the markers",
        "Raise data.max_pieces, or drop the record.",
    )

"""How much a word and an object take the same place in the structure of text and picture (MEGA)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tmrjax.files import DataError
from tmrjax.inputs.base import Example, Input, Reading, Spec
from tmrjax.records import Record

SIDE = "alignment"


@dataclasses.dataclass(frozen=True)
class Alignment(Input):
    """``alignment`` [B, T, O]: the weight of each word piece's word for each object.

    A record has it as ``sides["alignment"]``, one row a word with one number an object. Rows of special pieces and of
    markers are zero.

    Attributes:
        limit: O, as of :class:`tmrjax.inputs.objects.Objects`.
    """

    limit: int = 10
    name: ClassVar[str] = "alignment"

    def check(self, records: Sequence[Record]) -> str | None:
        """Some record has it."""
        if any(record.sides.get(SIDE) for record in records):
            return None
        return "no record has an alignment of words and objects: run data_prep/align_objects.py"

    def lacking(self, record: Record) -> tuple[str, ...]:
        """ "alignment"; a picture in which nothing was found has none."""
        objects = record.sides.get("objects")
        return ("alignment",) if SIDE not in record.sides and (objects is None or objects.get("labels")) else ()

    def encode(self, record: Record, pieces: Any, reading: Reading) -> Mapping[str, Any]:
        """The weights [words, at most O]; raises DataError where there is not one row a word."""
        rows = record.sides.get(SIDE) or [[] for _ in record.tokens]
        try:
            weights = np.asarray(rows, np.float32)
        except (TypeError, ValueError):
            weights = np.zeros(0)
        if weights.ndim != 2 or len(weights) != len(record.tokens):
            raise DataError(
                f"record {record.id}", f"{list(weights.shape)} numbers in 'sides.alignment'",
                f"one row for each of the {len(record.tokens)} words, one number an object",
                "Run data_prep/align_objects.py again.",
            )  # fmt: skip
        return {"alignment": weights[:, : self.limit]}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        return {"alignment": ((length, self.limit), np.float32)}

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Of one post or window."""
        weights, words = example.values["alignment"], np.asarray(example.pieces.piece_words)
        if not weights.size:
            return {"alignment": np.zeros((len(words), 0), np.float32)}
        return {"alignment": np.where((words >= 0)[:, None], weights[words], 0)}

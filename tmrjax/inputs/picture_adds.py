"""Whether a picture adds to its text: the label of RpBERT's second task (text-picture relation)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tmrjax.files import DataError
from tmrjax.inputs.base import Input, Reading, Spec
from tmrjax.records import Record

SIDE = "picture_adds"


@dataclasses.dataclass(frozen=True)
class PictureAdds(Input):
    """``picture_adds`` [B]: 1 where the picture adds to the text, else 0; ``sides["picture_adds"]`` of a record."""

    name: ClassVar[str] = "picture_adds"

    def check(self, records: Sequence[Record]) -> str | None:
        """Every record has it."""
        if records and all(SIDE in record.sides for record in records):
            return None
        return "posts of the second stream have no 'picture_adds': run data_prep/import_text_picture.py"

    def encode(self, record: Record, pieces: Any, reading: Reading) -> Mapping[str, Any]:
        """Raises DataError where it is neither true nor false."""
        adds = record.sides.get(SIDE)
        if not isinstance(adds, bool):
            raise DataError(
                f"record {record.id}", f"{str(adds)[:80]!r} in 'picture_adds'", "true or false", "Correct it."
            )
        return {"picture_adds": int(adds)}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        return {"picture_adds": ((), np.int32)}

"""Gold labels of a post as integers: what a head's loss compares with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tmrjax.inputs.base import Example, Input, Reading, Spec
from tmrjax.records import Record
from tmrjax.text.pieces import WordPieces
from tmrjax.text.tags import TagSet

# Tags of the released NER code (:mod:`tmrjax.methods.tmr_release`), by index.
RELEASE_TAGS = (
    "PAD", "O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "X", "[CLS]", "[SEP]",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tags(Input):
    """``tags`` [B, W] of words, or [B, T] of word pieces in the released scheme.

    ``labels``: entity types. ``specials``: of the method's text input. Zeros where a record has no tags.
    """

    labels: tuple[str, ...]
    specials: int = 2
    name: ClassVar[str] = "tags"

    def encode(self, record: Record, pieces: WordPieces, reading: Reading) -> Mapping[str, Any]:
        """The index of each word's tag, or the tags of all pieces; raises ValueError for an unknown tag."""
        if record.tags is None:
            return {"tags": None}
        indices = TagSet(self.labels).encode(record.tags)
        return {"tags": piece_tags(record.tags, pieces) if reading.text.piece_tags else indices}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        return {"tags": ((length if reading.text.piece_tags else length - self.specials,), np.int32)}

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """The tags of the words of a row."""
        tags = example.values["tags"]
        if tags is None or reading.text.piece_tags:
            return {"tags": tags or []}
        return {"tags": [tags[word] for word in example.pieces.words]}


@dataclasses.dataclass(frozen=True)
class Relation(Input):
    """``relation`` [B]: its index among ``labels``, 0 where a record has none."""

    labels: tuple[str, ...]
    name: ClassVar[str] = "relation"

    def encode(self, record: Record, pieces: Any, reading: Reading) -> Mapping[str, Any]:
        """Raises ValueError for an unknown relation."""
        if record.relation is None:
            return {"relation": 0}
        if record.relation not in self.labels:
            raise ValueError(f"unknown relation {record.relation!r}; expected one of {list(self.labels)}")
        return {"relation": self.labels.index(record.relation)}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        return {"relation": ((), np.int32)}


def piece_tags(tags: Sequence[str], pieces: WordPieces) -> list[int]:
    """The released scheme: [CLS], then each word's tag on its first piece and X on the others, [SEP]."""
    result = [RELEASE_TAGS.index("X")] * len(pieces.input_ids)
    result[0], result[-1] = RELEASE_TAGS.index("[CLS]"), RELEASE_TAGS.index("[SEP]")
    for word, start in zip(pieces.words, pieces.word_starts, strict=True):
        result[start] = RELEASE_TAGS.index(tags[word])
    return result

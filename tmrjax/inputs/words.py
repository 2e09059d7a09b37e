"""Words by a vocabulary of the training text, for methods without word pieces (CNN-BLSTM-CRF, PCNN and others)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from tmrjax.inputs.base import Example, Reading, Spec, TextInput
from tmrjax.inputs.marked import pair_distance
from tmrjax.inputs.vocabulary import EMPTY, UNKNOWN, FitsVocabulary, Vocabulary
from tmrjax.records import Record
from tmrjax.text.marking import MarkedPieces, WindowError, window_around
from tmrjax.text.pieces import WordPieces


@dataclasses.dataclass(frozen=True)
class Words(FitsVocabulary, TextInput):
    """``input_ids`` [B, W]: a word is one piece, nothing is added around the words.

    For NER also ``word_starts`` and ``word_mask`` [B, W]; for RE (``pair=True``) ``head_start``, ``tail_start``,
    ``head_end``, ``tail_end`` [B], the first and the last word of each entity. ``attention_mask`` [B, W] in both.

    Attributes:
        pair: whether posts have a head and a tail.
        lowercase: whether words are looked up in lower case.
        min_count: of a word in the training text; rarer ones are unknown.
        vocabulary: fitted.
    """

    pair: bool = False
    lowercase: bool = True
    min_count: int = 1
    vocabulary: Vocabulary = EMPTY
    name: ClassVar[str] = "words"
    specials: ClassVar[int] = 0

    def fit(self, records: Iterable[Record]) -> Self:
        """With the vocabulary of the training text."""
        words = (self._entry(token) for record in records for token in record.tokens)
        return dataclasses.replace(self, vocabulary=Vocabulary.of(words, self.min_count))

    def sizes(self) -> Mapping[str, int]:
        """``num_words``."""
        return {"num_words": len(self.vocabulary)}

    def _entry(self, token: str) -> str:
        return token.lower() if self.lowercase else token

    def pieces(self, record: Record, reading: Reading) -> WordPieces | MarkedPieces:
        """The words; for RE those of a window around both entities."""
        known = self.vocabulary.indices
        ids = [known.get(self._entry(token), UNKNOWN) for token in record.tokens]
        unknown = [word for word, index in enumerate(ids) if index == UNKNOWN]
        limit, count = reading.text.max_pieces, len(ids)
        if self.pair:
            try:
                first, last = window_around([1] * count, record.head, record.tail, limit)
            except WindowError as error:
                raise pair_distance(record, error, limit) from None
            cut = [word for word in range(count) if not first <= word < last]
            starts = record.head[0] - first, record.tail[0] - first
            return MarkedPieces(ids[first:last], *starts, cut, [], unknown)
        kept = list(range(min(count, limit)))
        return WordPieces(ids[:limit], kept, kept, list(range(limit, count)), [], unknown, [])

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        spec: Spec = {"input_ids": ((length,), np.int32), "attention_mask": ((length,), bool)}
        if self.pair:
            return spec | {f"{role}_{side}": ((), np.int32) for role in ("head", "tail") for side in ("start", "end")}
        return spec | {"word_starts": ((length,), np.int32), "word_mask": ((length,), bool)}

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Of one post."""
        pieces, record = example.pieces, example.record
        values = {"input_ids": pieces.input_ids, "attention_mask": [True] * len(pieces.input_ids)}
        if self.pair:
            lengths = [end - start - 1 for start, end in (record.head, record.tail)]
            starts = [pieces.head_start, pieces.tail_start]
            for role, start, length in zip(("head", "tail"), starts, lengths, strict=True):
                values |= {f"{role}_start": start, f"{role}_end": start + length}
            return values
        return values | {"word_starts": pieces.word_starts, "word_mask": [True] * len(pieces.word_starts)}

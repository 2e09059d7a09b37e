"""Words by a vocabulary of the training text, for methods without word pieces (CNN-BLSTM-CRF, PCNN and others)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from tmrjax.inputs.base import Example, Input, Reading, Spec, TextInput
from tmrjax.inputs.marked import pair_distance
from tmrjax.inputs.vocabulary import EMPTY, UNKNOWN, FitsVocabulary, Vocabulary
from tmrjax.records import Record
from tmrjax.text.marking import MarkedPieces, WindowError, window_around
from tmrjax.text.pieces import WordPieces


class WordVocabulary(FitsVocabulary):
    """What inputs that look words up share."""

    lowercase: bool
    min_count: int
    # The method's parameter that word vectors fill, where there are some.
    table: ClassVar[str] = "word_embeddings"

    def fit(self, records: Iterable[Record]) -> Self:
        """With the vocabulary of the training text."""
        words = (self.entry(token) for record in records for token in record.tokens)
        return dataclasses.replace(self, vocabulary=Vocabulary.of(words, self.min_count))

    def sizes(self) -> Mapping[str, int]:
        """``num_words``."""
        return {"num_words": len(self.vocabulary)}

    def entry(self, token: str) -> str:
        """How a word is looked up."""
        return token.lower() if self.lowercase else token

    def indices(self, tokens: Sequence[str]) -> list[int]:
        """The index of each word."""
        known = self.vocabulary.indices
        return [known.get(self.entry(token), UNKNOWN) for token in tokens]


@dataclasses.dataclass(frozen=True)
class Words(WordVocabulary, TextInput):
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

    def pieces(self, record: Record, reading: Reading) -> WordPieces | MarkedPieces:
        """The words; for RE those of a window around both entities."""
        ids = self.indices(record.tokens)
        unknown = [word for word, index in enumerate(ids) if index == UNKNOWN]
        limit, count = reading.text.max_pieces, len(ids)
        if self.pair:
            try:
                first, last = window_around([1] * count, record.head, record.tail, limit)
            except WindowError as error:
                raise pair_distance(record, error, limit) from None
            cut = [word for word in range(count) if not first <= word < last]
            starts = record.head[0] - first, record.tail[0] - first
            return MarkedPieces(ids[first:last], *starts, cut, [], unknown, list(range(first, last)))
        kept = list(range(min(count, limit)))
        return WordPieces(ids[:limit], kept, kept, list(range(limit, count)), [], unknown, [], kept)

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


@dataclasses.dataclass(frozen=True)
class WordIds(WordVocabulary, Input):
    """``word_ids`` [B, W]: the words that a row of word pieces scores, for methods that read both.

    Attributes:
        specials: of the method's text input: W is its length without them.
        lowercase, min_count, vocabulary: as of :class:`Words`.
    """

    specials: int = 2
    lowercase: bool = True
    min_count: int = 1
    vocabulary: Vocabulary = EMPTY
    name: ClassVar[str] = "word_ids"

    def encode(self, record: Record, pieces: WordPieces, reading: Reading) -> Mapping[str, Any]:
        """The index of every word of the post."""
        return {"word_ids": self.indices(record.tokens)}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        return {"word_ids": ((length - self.specials,), np.int32)}

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Those of the words of a row."""
        ids = example.values["word_ids"]
        return {"word_ids": [ids[word] for word in example.pieces.words]}

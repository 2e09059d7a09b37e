"""Characters of words by a vocabulary of the training text (CNN-BLSTM-CRF, HBiLSTM-CRF)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np

from tmrjax.inputs.base import Example, Input, Reading, Spec
from tmrjax.inputs.vocabulary import EMPTY, UNKNOWN, FitsVocabulary, Vocabulary
from tmrjax.records import Record
from tmrjax.text.pieces import WordPieces


@dataclasses.dataclass(frozen=True)
class Characters(FitsVocabulary, Input):
    """``character_ids`` [B, W, C]: the characters of each word that a row scores; 0 is padding.

    Attributes:
        longest: C. Of a longer word the first half and the last half of C are read.
        specials: of the method's text input: W is its length without them.
        vocabulary: fitted.
    """

    longest: int = 30
    specials: int = 0
    vocabulary: Vocabulary = EMPTY
    name: ClassVar[str] = "characters"

    def fit(self, records: Iterable[Record]) -> Self:
        """With the characters of the training text."""
        characters = (character for record in records for token in record.tokens for character in token)
        return dataclasses.replace(self, vocabulary=Vocabulary.of(characters, 1))

    def sizes(self) -> Mapping[str, int]:
        """``num_characters``."""
        return {"num_characters": len(self.vocabulary)}

    def encode(self, record: Record, pieces: WordPieces, reading: Reading) -> Mapping[str, Any]:
        """The indices of each word's characters."""
        known, half = self.vocabulary.indices, self.longest // 2
        words = []
        for token in record.tokens:
            read = token if len(token) <= self.longest else token[: self.longest - half] + token[len(token) - half :]
            words.append([known.get(character, UNKNOWN) for character in read])
        return {"character_ids": words}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        return {"character_ids": ((length - self.specials, self.longest), np.int32)}

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """Those of the words of a row, padded to C."""
        words = example.values["character_ids"]
        padded = np.zeros((len(example.pieces.words), self.longest), np.int32)
        for place, word in enumerate(example.pieces.words):
            padded[place, : len(words[word])] = words[word]
        return {"character_ids": padded}

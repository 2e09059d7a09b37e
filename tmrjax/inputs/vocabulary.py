"""Vocabularies that are fitted on the training text and live in the checkpoint."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable
from typing import Any, ClassVar, Self

PADDING, UNKNOWN = 0, 1


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Entries by index; 0 stands for padding and 1 for what is unknown."""

    entries: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Rows of an embedding table."""
        return len(self.entries) + 2

    @functools.cached_property
    def indices(self) -> dict[str, int]:
        """Entry -> index."""
        return {entry: index for index, entry in enumerate(self.entries, start=2)}

    @classmethod
    def of(cls, entries: Iterable[str], min_count: int) -> Vocabulary:
        """The entries that occur at least ``min_count`` times, the most frequent first, then by their text."""
        counts = Counter(entries)
        kept = [entry for entry, count in counts.items() if count >= min_count]
        return cls(tuple(sorted(kept, key=lambda entry: (-counts[entry], entry))))


EMPTY = Vocabulary()


class FitsVocabulary:
    """What inputs with a vocabulary share: the vocabulary is fitted on train and lives in the checkpoint."""

    vocabulary: Vocabulary
    name: ClassVar[str]

    def to_meta(self) -> list[str]:
        """The entries."""
        return list(self.vocabulary.entries)

    def from_meta(self, meta: Any) -> Self:
        """With the entries of a checkpoint."""
        if not isinstance(meta, list) or not all(isinstance(entry, str) for entry in meta):
            raise ValueError(
                f"the vocabulary of the input {self.name!r} is no list of texts: copy the checkpoint again"
            )
        return dataclasses.replace(self, vocabulary=Vocabulary(tuple(meta)))

    def with_entries(self, entries: Iterable[str]) -> Self:
        """With further entries behind those of the vocabulary, such as words that have a vector."""
        known = self.vocabulary.indices
        further = tuple(dict.fromkeys(entry for entry in entries if entry not in known))
        return dataclasses.replace(self, vocabulary=Vocabulary(self.vocabulary.entries + further))

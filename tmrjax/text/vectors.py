"""Vectors of words from a text file of GloVe, word2vec or fastText: what a word table begins with.

A line is a word and its numbers, with blanks between; word2vec and fastText have a first line with the number of words
and of numbers, which is left out. Words of such files are ordered by how frequent they are.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tmrjax.files import DataError


@dataclasses.dataclass(frozen=True)
class WordVectors:
    """The vectors of the words that were asked for.

    Attributes:
        name: of the file. sha256: of its bytes.
        vectors: by word, float32 [width].
        width: of a vector.
        frequent: the first words of the file, which a vocabulary gets besides: words of posts to come.
    """

    name: str
    sha256: str
    vectors: dict[str, np.ndarray]
    width: int
    frequent: tuple[str, ...]

    def of(self, entry: str) -> np.ndarray | None:
        """The vector of an entry, else of its lower case; of an entry of several words the mean over those it has."""
        for form in (entry, entry.lower()):
            if form in self.vectors:
                return self.vectors[form]
        parts = [self.vectors[part] for part in entry.lower().split() if part in self.vectors]
        return np.mean(parts, axis=0) if parts and " " in entry else None

    def extend(self, one: Any) -> Any:
        """An input that looks words up, with all words that have a vector; any other input as it is."""
        if not hasattr(one, "entry"):
            return one
        return one.with_entries([*self.vectors, *self.frequent])

    def origin(self, fitted: Sequence[Any]) -> dict[str, Any]:
        """What a checkpoint keeps: the file, and how many entries of the vocabularies have a vector."""
        entries = {entry for one in fitted if hasattr(one, "table") for entry in one.vocabulary.entries}
        found = sum(self.of(entry) is not None for entry in entries)
        return {"name": self.name, "sha256": self.sha256, "width": self.width, "found": found, "of": len(entries)}

    def fill(self, vocabulary: Any, table: np.ndarray) -> np.ndarray:
        """A table [len(vocabulary), width] with the vectors of its entries; rows of others stay as they are."""
        table = np.array(table)
        for entry, row in vocabulary.indices.items():
            vector = self.of(entry)
            if vector is not None:
                table[row] = vector
        return table


def read_word_vectors(path: str | os.PathLike, words: Iterable[str], most_frequent: int = 0) -> WordVectors:
    """Reads the vectors of ``words``, of their lower case and of their parts, and of the first ``most_frequent`` words.

    Raises:
        DataError: a line whose count of numbers is another, a number that is none, or no vector at all.
    """
    wanted = {form for word in words for form in (word, word.lower(), *word.lower().split())}
    return _read(Path(path), frozenset(wanted), most_frequent)


@functools.lru_cache(maxsize=2)
def _read(path: Path, wanted: frozenset[str], most_frequent: int) -> WordVectors:
    digest, vectors, frequent, width, lines = hashlib.sha256(), {}, [], 0, 0
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise DataError(path, f"{error.strerror}", "a text file of word vectors", "Correct the path.") from None
    with file:
        for number, line in enumerate(file, start=1):
            digest.update(line)
            fields = line.rstrip().split(b" ")
            if number == 1:
                if len(fields) == 2 and all(field.isdigit() for field in fields):
                    width = int(fields[1])
                    continue
                width = width or len(fields) - 1
            if len(fields) <= width or width < 2:
                raise DataError(
                    f"{path}:{number}", f"{len(fields) - 1} numbers behind the word",
                    f"{max(width, 2)} as in the first line", "Take the text file as it was published.",
                )  # fmt: skip
            # A word may hold blanks (GloVe 840B): the numbers are the last ones.
            word = b" ".join(fields[: len(fields) - width]).decode("utf-8", "replace")
            lines += 1
            if lines > most_frequent and word not in wanted:
                continue
            try:
                vector = np.array(fields[len(fields) - width :], dtype=np.float32)
            except ValueError:
                vector = np.array([np.nan])
            if not np.isfinite(vector).all():
                raise DataError(
                    f"{path}:{number}", f"{line[:60]!r}", f"a word and {width} numbers", "Correct the line."
                )
            vectors.setdefault(word, vector)
            if lines <= most_frequent:
                frequent.append(word)
    if not vectors:
        raise DataError(
            path, "no vector of any word of the data", "a word and its numbers a line", "Is it another language?"
        )
    return WordVectors(path.name, digest.hexdigest(), vectors, width, tuple(frequent))

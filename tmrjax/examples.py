"""From records to integers: word pieces, tags, markers, each record once (§3.2).

What is cut or has no word piece is counted and said, never dropped in silence.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tmrjax.files import DataError
from tmrjax.marking import MarkedPieces, WindowError, encode_marked
from tmrjax.record_schema import Record
from tmrjax.tagging import TagSet, Tokenizer, WordPieces, encode_phrases, encode_words

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[tuple[int, ...], type]]


PHRASES = ("pieces", "release_pieces", "release_words")


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How text becomes word pieces: part of every checkpoint.

    max_pieces and max_phrase_pieces limit the lengths of T^w and T^p (80 with, 4 without [CLS] and [SEP]). piece_tags:
    tags on every word piece in the scheme of :mod:`tmrjax.release` instead of on words. phrases: one of PHRASES, see
    :func:`phrase_ids_of`.
    """

    max_pieces: int = 80
    max_phrase_pieces: int = 4
    piece_tags: bool = False
    phrases: str = "pieces"

    def __post_init__(self):
        if self.phrases not in PHRASES:
            raise ValueError(f"text.phrases is {self.phrases!r}; expected one of {', '.join(PHRASES)}")

    @property
    def phrase_length(self) -> int:
        """P, the number of positions of a batch's phrases."""
        return self.max_phrase_pieces + (0 if self.phrases == "release_words" else 2)


RELEASE_TAGS = (
    "PAD", "O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "X", "[CLS]", "[SEP]",
)  # fmt: skip


class TaggingExample(NamedTuple):
    """A record as integers. tags: index of each kept word's tag, None where the record has no tags."""

    record: Record
    pieces: WordPieces
    phrase_ids: list[int]
    tags: list[int] | None

    @staticmethod
    def shapes(length: int, settings: TextSettings) -> Shapes:
        """The keys of this task's batch, with the shape and dtype of one row; ``length`` in word pieces."""
        words = length - 2
        tags = length if settings.piece_tags else words
        return {"word_starts": ((words,), np.int32), "word_mask": ((words,), bool), "tags": ((tags,), np.int32)}

    def values(self) -> Mapping[str, Any]:
        """This row's part of these keys, without padding."""
        starts = self.pieces.word_starts
        return {"word_starts": starts, "word_mask": [True] * len(starts), "tags": self.tags or []}


class RelationExample(NamedTuple):
    """A record as integers. relation: its index, None where the record has none."""

    record: Record
    pieces: MarkedPieces
    phrase_ids: list[int]
    relation: int | None

    @staticmethod
    def shapes(length: int, settings: TextSettings) -> Shapes:
        """The keys of this task's batch, with the shape and dtype of one row."""
        del length, settings
        return {name: ((), np.int32) for name in ("head_start", "tail_start", "relation")}

    def values(self) -> Mapping[str, Any]:
        """This row's values of these keys."""
        return {
            "head_start": self.pieces.head_start,
            "tail_start": self.pieces.tail_start,
            "relation": self.relation or 0,
        }


def encode_tagging(
    records: Sequence[Record], tokenizer: Tokenizer, tag_set: TagSet, settings: TextSettings
) -> list[TaggingExample]:
    """Examples for the tagger, in the order of ``records``; raises ValueError for an unknown tag."""

    def encode(record: Record, phrase_ids: list[int]) -> TaggingExample:
        pieces = encode_words(tokenizer, record.tokens, settings.max_pieces)
        tags = None
        if record.tags is not None:
            indices = tag_set.encode(record.tags)
            tags = [indices[word] for word in pieces.words]
            if settings.piece_tags:
                tags = _piece_tags(record.tags, pieces)
        return TaggingExample(record, pieces, phrase_ids, tags)

    return _encode_all(records, tokenizer, settings, encode, "they are predicted as O and count as missed")


def encode_relations(
    records: Sequence[Record], tokenizer: Tokenizer, relations: Sequence[str], settings: TextSettings
) -> list[RelationExample]:
    """Examples for the relation classifier, in the order of ``records``.

    Raises:
        DataError: head and tail do not fit into max_pieces together; the message has the record's id.
        ValueError: an unknown relation, or a vocabulary without markers.
    """
    index = {relation: i for i, relation in enumerate(relations)}

    def encode(record: Record, phrase_ids: list[int]) -> RelationExample:
        if record.relation is not None and record.relation not in index:
            raise ValueError(f"unknown relation {record.relation!r}; expected one of {list(relations)}")
        try:
            pieces = encode_marked(tokenizer, record.tokens, record.head, record.tail, settings.max_pieces)
        except WindowError as error:
            raise DataError(
                f"record {record.id}",
                str(error),
                f"at most {settings.max_pieces} word pieces with the markers",
                "Raise data.max_pieces, or drop the record.",
            ) from None
        return RelationExample(record, pieces, phrase_ids, None if record.relation is None else index[record.relation])

    return _encode_all(records, tokenizer, settings, encode, "the window lies around both entities")


def phrase_ids_of(tokenizer: Tokenizer, phrases: Sequence[str], settings: TextSettings) -> tuple[list[int], int]:
    """The ids of a post's phrases, and how many pieces or words were cut.

    ``settings.phrases`` says how; the batch's phrase mask is True for what is returned here.

    * ``pieces``: [CLS], the first m pieces, [SEP]; nothing without phrases (:func:`tmrjax.tagging.encode_phrases`).
    * ``release_pieces``, the released NER code: the same with [CLS] [SEP] for a post without phrases. That code takes
      five positions, so m is 3. Its attention from regions to phrases reads the padding behind them too.
    * ``release_words``, the released RE code: the first m words (6), each looked up whole in the vocabulary, case and
      all, [UNK] where it is none (and for a post without phrases); no [CLS], no [SEP]; padded with 0 to m, the padding
      counted as valid.
    """
    limit = settings.max_phrase_pieces
    if settings.phrases == "release_words":
        words = " ".join(phrases).split(" ")
        ids = tokenizer.convert_tokens_to_ids(words[:limit])
        return [*ids, *[0] * (limit - len(ids))], max(len(words) - limit, 0)
    ids, cut = encode_phrases(tokenizer, phrases, limit)
    if not ids and settings.phrases == "release_pieces":
        ids = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    return ids, cut


def _encode_all(records, tokenizer, settings, encode, consequence: str) -> list:
    examples, cut_phrases = [], 0
    for record in records:
        phrase_ids, cut = phrase_ids_of(tokenizer, record.phrases, settings)
        cut_phrases += cut
        examples.append(encode(record, phrase_ids))
    cut_words = [len(example.pieces.cut) for example in examples if example.pieces.cut]
    if cut_words:
        logger.warning(
            "%d words of %d posts lie outside of the limit of %d word pieces: %s",
            sum(cut_words), len(cut_words), settings.max_pieces, consequence,
        )  # fmt: skip
    empty_words = sum(len(example.pieces.empty) for example in examples)
    if empty_words:
        logger.info("%d words have no word piece (invisible characters): they are not read", empty_words)
    if cut_phrases:
        logger.info("%d phrase pieces lie behind the limit of %d", cut_phrases, settings.max_phrase_pieces)
    return examples


def _piece_tags(tags: Sequence[str], pieces: WordPieces) -> list[int]:
    """The released scheme: [CLS], then each word's tag on its first piece and X on the others, [SEP]."""
    result = [RELEASE_TAGS.index("X")] * len(pieces.input_ids)
    result[0], result[-1] = RELEASE_TAGS.index("[CLS]"), RELEASE_TAGS.index("[SEP]")
    for word, start in zip(pieces.words, pieces.word_starts, strict=True):
        result[start] = RELEASE_TAGS.index(tags[word])
    return result

"""From records to integers: word pieces, tags, markers, each record once; a long post in windows (§3.2).

What is cut, has no word piece or is unknown to the vocabulary is counted and said, never dropped in silence.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tmrjax.files import DataError
from tmrjax.records.schema import Record
from tmrjax.text.marking import MarkedPieces, WindowError, encode_marked
from tmrjax.text.pieces import Tokenizer, WordPieces, encode_phrases, encode_words
from tmrjax.text.splitting import SPLITTINGS
from tmrjax.text.tags import TagSet
from tmrjax.text.windows import make_windows

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[tuple[int, ...], type]]


PHRASES = ("pieces", "release_pieces", "release_words")


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How text becomes word pieces: part of every checkpoint.

    Attributes:
        max_pieces: limit of T^w, with [CLS] and [SEP].
        max_phrase_pieces: limit of T^p, without them.
        piece_tags: tags on every word piece in the scheme of :mod:`tmrjax.methods.tmr_release` instead of on words.
        phrases: one of PHRASES, see :func:`phrase_ids_of`.
        windows: whether a tagger reads posts beyond max_pieces in overlapping windows (:mod:`tmrjax.text.windows`)
            instead of cutting them.
        window_overlap: word pieces that two neighbouring windows share at most.
        word_splitting: how raw text becomes words, one of :data:`tmrjax.text.splitting.SPLITTINGS`.
    """

    max_pieces: int = 80
    max_phrase_pieces: int = 4
    piece_tags: bool = False
    phrases: str = "pieces"
    windows: bool = True
    window_overlap: int = 24
    word_splitting: str = "spaces"

    def __post_init__(self):
        if self.phrases not in PHRASES:
            raise ValueError(f"text.phrases is {self.phrases!r}; expected one of {', '.join(PHRASES)}")
        if self.word_splitting not in SPLITTINGS:
            raise ValueError(f"word_splitting is {self.word_splitting!r}; expected one of {', '.join(SPLITTINGS)}")
        if self.window_overlap < 0:
            raise ValueError(f"window_overlap is {self.window_overlap}; expected 0 or more word pieces")

    @property
    def in_windows(self) -> bool:
        """Whether long posts of a tagger are read in windows: not by released weights, which belong to positions."""
        return self.windows and not self.piece_tags

    @property
    def overlap(self) -> int:
        """``window_overlap``, at most half of what a window holds."""
        return min(self.window_overlap, (self.max_pieces - 2) // 2)

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> TextSettings:
        """The settings of a checkpoint. One from before windows and splitting were kept cut its long posts."""
        return cls(**({"windows": False, "word_splitting": "unseen"} | dict(meta)))

    @property
    def phrase_length(self) -> int:
        """P, the number of positions of a batch's phrases."""
        return self.max_phrase_pieces + (0 if self.phrases == "release_words" else 2)


RELEASE_TAGS = (
    "PAD", "O", "B-MISC", "I-MISC", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC", "X", "[CLS]", "[SEP]",
)  # fmt: skip


class TaggingExample(NamedTuple):
    """A record as integers, or one window of a record.

    tags: index of each kept word's tag, None where the record has no tags. A post that is read in windows has more
    than max_pieces pieces: :func:`tagging_windows` makes rows of a batch of it.
    """

    record: Record
    pieces: WordPieces
    phrase_ids: list[int]
    tags: list[int] | None
    cut_phrase_pieces: int = 0

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
    cut_phrase_pieces: int = 0

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
    """Examples for the tagger, one for each of ``records``, in their order; raises ValueError for an unknown tag."""

    def encode(record: Record, phrase_ids: list[int]) -> TaggingExample:
        pieces = encode_words(tokenizer, record.tokens, settings.max_pieces, whole_post=settings.in_windows)
        tags = None
        if record.tags is not None:
            indices = tag_set.encode(record.tags)
            tags = [indices[word] for word in pieces.words]
            if settings.piece_tags:
                tags = _piece_tags(record.tags, pieces)
        return TaggingExample(record, pieces, phrase_ids, tags)

    return _encode_all(records, tokenizer, settings, encode)


def tagging_windows(example: TaggingExample, settings: TextSettings, *, training: bool = False) -> list[TaggingExample]:
    """The rows of a post: itself where it fits into max_pieces, else one row per window with the words it owns.

    ``training``: a window's own words are a training example of their own, so no window begins inside of an entity:
    the cut moves to the next place in the overlap that lies outside of entities. Where an entity is longer than the
    overlap, its words behind the cut take no part in the loss.
    """
    pieces, size = example.pieces, settings.max_pieces
    if len(pieces.input_ids) <= size:
        return [example]
    cls, sep = pieces.input_ids[0], pieces.input_ids[-1]
    bounds = [*pieces.word_starts, len(pieces.input_ids) - 1]
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    inside: set[int] = set()
    if training:
        inside = {i for i, word in enumerate(pieces.words) if example.record.tags[word].startswith("I-")}
    rows = []
    for window in make_windows(lengths, size - 2, settings.overlap, inside):
        own_first = window.own_first
        while own_first and own_first in inside and own_first < window.own_last:
            own_first += 1
        own = slice(own_first, window.own_last)
        if own_first == window.own_last:
            continue
        shift = bounds[window.first] - 1
        part = pieces._replace(
            input_ids=[cls, *pieces.input_ids[bounds[window.first] : bounds[window.last]], sep],
            word_starts=[start - shift for start in pieces.word_starts[own]],
            words=pieces.words[own],
        )
        rows.append(example._replace(pieces=part, tags=None if example.tags is None else example.tags[own]))
    return rows


def encode_relations(
    records: Sequence[Record], tokenizer: Tokenizer, relations: Sequence[str], settings: TextSettings
) -> list[RelationExample]:
    """Examples for the relation classifier, in the order of ``records``.

    Raises:
        PairDistanceError: head and tail do not fit into max_pieces together; the message has the record's id.
        ValueError: an unknown relation, or a vocabulary without markers.
    """
    index = {relation: i for i, relation in enumerate(relations)}

    def encode(record: Record, phrase_ids: list[int]) -> RelationExample:
        if record.relation is not None and record.relation not in index:
            raise ValueError(f"unknown relation {record.relation!r}; expected one of {list(relations)}")
        try:
            pieces = encode_marked(tokenizer, record.tokens, record.head, record.tail, settings.max_pieces)
        except WindowError as error:
            raise PairDistanceError(
                f"record {record.id}",
                str(error),
                f"at most {settings.max_pieces} word pieces with the markers",
                "Raise data.max_pieces, or drop the record.",
            ) from None
        return RelationExample(record, pieces, phrase_ids, None if record.relation is None else index[record.relation])

    return _encode_all(records, tokenizer, settings, encode)


class PairDistanceError(DataError):
    """Head and tail do not fit into one window."""


def phrase_ids_of(tokenizer: Tokenizer, phrases: Sequence[str], settings: TextSettings) -> tuple[list[int], int]:
    """The ids of a post's phrases, and how many pieces or words were cut.

    ``settings.phrases`` says how; the batch's phrase mask is True for what is returned here.

    * ``pieces``: [CLS], the first m pieces, [SEP]; nothing without phrases (:func:`tmrjax.text.pieces.encode_phrases`).
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


def _encode_all(records, tokenizer, settings, encode) -> list:
    examples = []
    for record in records:
        phrase_ids, cut = phrase_ids_of(tokenizer, record.phrases, settings)
        examples.append(encode(record, phrase_ids)._replace(cut_phrase_pieces=cut))
    return examples


UNKNOWN_SHARE, WRONG_VOCABULARY_SHARE = 0.05, 0.3


def count_words(examples: Sequence[TaggingExample] | Sequence[RelationExample]) -> dict[str, int]:
    """Words of some posts by what the encoder gets of them: all, unread (behind the limit), unknown ([UNK])."""
    return {
        "words": sum(len(example.record.tokens) for example in examples),
        "unread": sum(len(example.pieces.cut) for example in examples),
        "unknown": sum(len(example.pieces.unknown) for example in examples),
    }


def unknown_warning(words: int, unknown: int) -> str | None:
    """A sentence where more than 5 % of the words are [UNK], a stronger one beyond 30 %; None below."""
    if not words or unknown <= UNKNOWN_SHARE * words:
        return None
    found = f"{unknown} of {words} words ({100 * unknown / words:.0f} %) are [UNK] at least by half"
    if unknown > WRONG_VOCABULARY_SHARE * words:
        return (
            f"{found}: the text encoder's vocabulary does not know this language or script, so the model reads them "
            "all alike. Wrong vocabulary? Take the encoder of another language, or a multilingual one"
        )
    return f"{found}: the text encoder's vocabulary does not know them, so the model reads them all alike"


def say_what_is_lost(
    examples: Sequence[TaggingExample] | Sequence[RelationExample], settings: TextSettings, name: str
) -> None:
    """Log what the encoder does not get of some posts: words behind the limit, without pieces, unknown, cut phrases."""
    counts = count_words(examples)
    cut = sum(bool(example.pieces.cut) for example in examples)
    if cut:
        logger.warning(
            "%s: %d words of %d posts lie outside of the limit of %d word pieces and are not read: %s",
            name, counts["unread"], cut, settings.max_pieces,
            "the window lies around both entities" if isinstance(examples[0], RelationExample)
            else "they are predicted as O and count as missed" if settings.piece_tags
            else "they are predicted as O and count as missed; data.windows=True reads them",
        )  # fmt: skip
    unknown = unknown_warning(counts["words"], counts["unknown"])
    if unknown:
        logger.warning("%s: %s", name, unknown)
    empty = sum(len(example.pieces.empty) for example in examples)
    if empty:
        logger.info("%s: %d words have no word piece (invisible characters): they are not read", name, empty)
    cut_phrases = sum(example.cut_phrase_pieces for example in examples)
    if cut_phrases:
        logger.info("%s: %d phrase pieces lie behind the limit of %d", name, cut_phrases, settings.max_phrase_pieces)
    if examples and isinstance(examples[0], TaggingExample):
        shortened = sum(len(example.pieces.shortened) for example in examples)
        if shortened:
            logger.info("%s: %d words are longer than a window: their first pieces are read", name, shortened)
        long = sum(len(example.pieces.input_ids) > settings.max_pieces for example in examples)
        if long:
            logger.info(
                "%s: %d posts are longer than %d word pieces: they are read in windows that share up to %d",
                name, long, settings.max_pieces, settings.overlap,
            )  # fmt: skip


def _piece_tags(tags: Sequence[str], pieces: WordPieces) -> list[int]:
    """The released scheme: [CLS], then each word's tag on its first piece and X on the others, [SEP]."""
    result = [RELEASE_TAGS.index("X")] * len(pieces.input_ids)
    result[0], result[-1] = RELEASE_TAGS.index("[CLS]"), RELEASE_TAGS.index("[SEP]")
    for word, start in zip(pieces.words, pieces.word_starts, strict=True):
        result[start] = RELEASE_TAGS.index(tags[word])
    return result

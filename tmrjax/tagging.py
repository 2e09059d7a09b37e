"""From words to word pieces to tags, and back (§4.1: BIO tagging of posts).

Words carry the tags (the paper's CRF runs over words); word pieces are what BERT reads; characters are what a user
wants back. Every function is exact: a span that leaves this module slices the text it came from, and a word that BERT
cannot see (no piece, or behind the limit) is reported, never dropped in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tmrjax.word_splitting import Word

OUTSIDE = "O"


class Span(NamedTuple):
    """An entity as a half-open interval of words."""

    start: int
    end: int
    label: str


@dataclasses.dataclass(frozen=True)
class TagSet:
    """The BIO tags of some entity types: O first, then B-x, I-x in the order of ``labels`` (§3.5).

    >>> TagSet(("PER", "LOC")).tags
    ('O', 'B-PER', 'I-PER', 'B-LOC', 'I-LOC')
    """

    labels: tuple[str, ...]

    def __post_init__(self):
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError(f"entity types must be present and distinct, found {self.labels!r}")

    @property
    def tags(self) -> tuple[str, ...]:
        """All tags in the order of their indices."""
        return (OUTSIDE, *(f"{prefix}-{label}" for label in self.labels for prefix in "BI"))

    def __len__(self) -> int:
        return 1 + 2 * len(self.labels)

    def encode(self, tags: Sequence[str]) -> list[int]:
        """Indices of ``tags``; an unknown tag raises ValueError."""
        index = {tag: i for i, tag in enumerate(self.tags)}
        unknown = sorted({tag for tag in tags if tag not in index})
        if unknown:
            raise ValueError(f"unknown tags {unknown}; expected one of {list(self.tags)}")
        return [index[tag] for tag in tags]

    def decode(self, indices: Sequence[int]) -> list[str]:
        """The tags of ``indices``."""
        tags = self.tags
        return [tags[int(i)] for i in indices]


def forbidden_transitions(tags: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
    """What IOB2 never allows: (tags that cannot start a post, pairs from → to that cannot follow each other).

    I-x may only follow B-x or I-x. Decoding under these constraints cannot yield an entity without a beginning.
    """
    inside = [i for i, tag in enumerate(tags) if tag.startswith("I-")]
    pairs = [
        (before, i)
        for i in inside
        for before, tag in enumerate(tags)
        if tag[:2] not in ("B-", "I-") or tag[2:] != tags[i][2:]
    ]
    return inside, pairs


def spans_from_tags(tags: Sequence[str], *, strict: bool) -> list[Span]:
    """Entities of a tag sequence.

    strict: IOB2; an entity begins with B-x and goes on over I-x of the same type; an orphan I- is no entity
    (seqeval ``mode="strict", scheme=IOB2``). lenient: an I- without a fitting predecessor opens an entity
    (seqeval's default, conlleval).
    """
    spans: list[Span] = []
    start, label = None, None
    for position, tag in enumerate([*tags, OUTSIDE]):
        prefix, _, kind = tag.partition("-")
        if start is not None and not (prefix == "I" and kind == label):
            spans.append(Span(start, position, label))
            start, label = None, None
        if prefix == "B" or (prefix == "I" and start is None and not strict):
            start, label = position, kind
    return spans


def tags_from_spans(spans: Sequence[Span], length: int) -> list[str]:
    """The IOB2 tags of non-overlapping ``spans`` over ``length`` words; overlap or a bad range raises ValueError."""
    tags = [OUTSIDE] * length
    for start, end, label in spans:
        if not 0 <= start < end <= length:
            raise ValueError(f"span [{start}, {end}) lies outside of {length} words")
        if any(tag != OUTSIDE for tag in tags[start:end]):
            raise ValueError(f"span [{start}, {end}) overlaps another one")
        tags[start:end] = [f"B-{label}", *[f"I-{label}"] * (end - start - 1)]
    return tags


class Tokenizer(Protocol):
    """What is used of a fast tokenizer of transformers."""

    cls_token_id: int
    sep_token_id: int
    unk_token_id: int

    def __call__(self, text, **kwargs):
        """Encodes a text or, with is_split_into_words, its words."""

    def convert_tokens_to_ids(self, tokens):
        """The ids of word pieces."""


class WordPieces(NamedTuple):
    """A post as BERT reads it.

    input_ids: [CLS], the pieces of the kept words, [SEP]. word_starts[i]: position in input_ids of the first piece of
    the word ``words[i]``. words: indices of the words that have a first piece within the limit, ascending.
    cut: words behind the limit (or split by it). empty: words without any piece. Both come back as O.
    unknown: words, kept or cut, of whose pieces at least half are [UNK]: the vocabulary does not know their script.
    shortened: words that are longer than a window, of which only the first pieces are read.
    """

    input_ids: list[int]
    word_starts: list[int]
    words: list[int]
    cut: list[int]
    empty: list[int]
    unknown: list[int]
    shortened: list[int]


def pieces_of_words(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[list[int]]:
    """The ids of each word's pieces; empty for a word of invisible characters."""
    # verbose=False: what does not fit is cut or read in windows, so the tokenizer's warning of its length is wrong.
    encoding = tokenizer(list(tokens), is_split_into_words=True, add_special_tokens=False, verbose=False)
    pieces: list[list[int]] = [[] for _ in tokens]
    for piece, word in zip(encoding["input_ids"], encoding.word_ids(), strict=True):
        pieces[word].append(piece)
    return pieces


def unknown_words(tokenizer: Tokenizer, pieces: Sequence[Sequence[int]]) -> list[int]:
    """Words of whose pieces at least half are [UNK]."""
    unknown = tokenizer.unk_token_id
    return [word for word, ids in enumerate(pieces) if ids and 2 * sum(i == unknown for i in ids) >= len(ids)]


def encode_words(
    tokenizer: Tokenizer, tokens: Sequence[str], max_pieces: int, *, whole_post: bool = False
) -> WordPieces:
    """Word pieces of a tokenised post, at most ``max_pieces`` including [CLS] and [SEP].

    A word is kept whole or cut whole: half a word would be scored on a truncated meaning. ``whole_post``: no word is
    cut, for a post that :mod:`tmrjax.windows` divides; a word that is longer than a window is shortened to one.
    """
    if max_pieces < 3:
        raise ValueError(f"max_pieces must leave room for [CLS], one piece and [SEP], found {max_pieces}")
    pieces = pieces_of_words(tokenizer, tokens)
    input_ids, word_starts, words, cut, shortened = [tokenizer.cls_token_id], [], [], [], []
    for word, ids in enumerate(pieces):
        if not ids:
            continue
        if whole_post and len(ids) > max_pieces - 2:
            shortened.append(word)
            ids = ids[: max_pieces - 2]  # noqa: PLW2901
        elif not whole_post and (cut or len(input_ids) + len(ids) + 1 > max_pieces):
            cut.append(word)
            continue
        words.append(word)
        word_starts.append(len(input_ids))
        input_ids.extend(ids)
    input_ids.append(tokenizer.sep_token_id)
    empty = [word for word, ids in enumerate(pieces) if not ids]
    return WordPieces(input_ids, word_starts, words, cut, empty, unknown_words(tokenizer, pieces), shortened)


def encode_phrases(tokenizer: Tokenizer, phrases: Sequence[str], max_pieces: int) -> tuple[list[int], int]:
    """[CLS] phrases [SEP] with at most ``max_pieces`` content pieces, and how many pieces were cut.

    Without any phrase the result is empty: the coarse grain is masked, not fed with an empty sentence.
    """
    content = tokenizer(" ".join(phrases), add_special_tokens=False, verbose=False)["input_ids"] if phrases else []
    if not content:
        return [], 0
    kept = content[:max_pieces]
    return [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id], len(content) - len(kept)


def restore_tags(predicted: Sequence[str], words: Sequence[int], length: int) -> list[str]:
    """Tags of all ``length`` words from those of the scored ``words``; what was cut or has no piece is O.

    A word without a piece inside an entity (a zero-width joiner between two names) belongs to it: otherwise the
    entity would fall apart into a beginning and an orphan. An orphan I- goes on with no entity, so the words before
    it stay O; it can occur where the decoding is not constrained to IOB2.
    """
    tags = [OUTSIDE] * length
    previous, before = -1, OUTSIDE
    for tag, word in zip(predicted, words, strict=True):
        if tag.startswith("I-") and before[:2] in ("B-", "I-") and before[2:] == tag[2:]:
            tags[previous + 1 : word] = [tag] * (word - previous - 1)
        tags[word] = tag
        previous, before = word, tag
    return tags


def character_spans(spans: Sequence[Span], words: Sequence[Word]) -> list[tuple[int, int, str]]:
    """(start, end, label) in characters, such that ``text[start:end]`` is the entity."""
    return [(words[span.start].start, words[span.end - 1].end, span.label) for span in spans]

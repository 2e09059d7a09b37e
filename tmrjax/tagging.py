"""From characters to words to word pieces to tags, and back (§4.1: BIO tagging of posts).

Three alignments meet here. Words carry the tags (the paper's CRF runs over words); word pieces are what BERT reads;
characters are what a user wants back. Every function is exact: a span that leaves this module slices the text it
came from, and a word that BERT cannot see (no piece, or behind the limit) is reported, never dropped in silence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import regex

OUTSIDE = "O"

# URLs, user names and hashtags stay whole; then words with inner apostrophes, dots or hyphens; then one grapheme
# cluster, so that an emoji with its modifiers is one word.
_WORD = regex.compile(
    r"https?://\S+|www\.\S+"
    r"|[@#][\p{L}\p{M}\p{N}_]+"
    r"|[\p{L}\p{M}\p{N}_]+(?:['’.\-&][\p{L}\p{M}\p{N}_]+)*"
    r"|\X"
)
_INVISIBLE = regex.compile(r"[\s\p{Cf}\p{Cc}\p{Mn}]*")


class Span(NamedTuple):
    """An entity as a half-open interval of words."""

    start: int
    end: int
    label: str


class Word(NamedTuple):
    """A word and the half-open interval of characters it covers: ``text[start:end] == word``."""

    word: str
    start: int
    end: int


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


def split_words(text: str) -> list[Word]:
    """Words of a raw post with their characters.

    White space and invisible characters (zero-width space, soft hyphen, byte order mark, ...) separate words and
    belong to none; an emoji with its modifiers is one word.
    """
    return [
        Word(match.group(), match.start(), match.end())
        for match in _WORD.finditer(text)
        if not _INVISIBLE.fullmatch(match.group())
    ]


def join_words(tokens: Sequence[str]) -> tuple[str, list[Word]]:
    """The text of given tokens, joined by blanks, and the characters of each."""
    words, position = [], 0
    for token in tokens:
        words.append(Word(token, position, position + len(token)))
        position += len(token) + 1
    return " ".join(tokens), words


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
    """

    input_ids: list[int]
    word_starts: list[int]
    words: list[int]
    cut: list[int]
    empty: list[int]


def encode_words(tokenizer: Tokenizer, tokens: Sequence[str], max_pieces: int) -> WordPieces:
    """Word pieces of a tokenised post, at most ``max_pieces`` including [CLS] and [SEP].

    A word is kept whole or cut whole: half a word would be scored on a truncated meaning.
    """
    if max_pieces < 3:
        raise ValueError(f"max_pieces must leave room for [CLS], one piece and [SEP], found {max_pieces}")
    encoding = tokenizer(list(tokens), is_split_into_words=True, add_special_tokens=False)
    pieces: dict[int, list[int]] = {}
    for piece, word in zip(encoding["input_ids"], encoding.word_ids(), strict=True):
        pieces.setdefault(word, []).append(piece)
    input_ids, word_starts, words, cut = [tokenizer.cls_token_id], [], [], []
    for word, ids in sorted(pieces.items()):
        if cut or len(input_ids) + len(ids) + 1 > max_pieces:
            cut.append(word)
            continue
        words.append(word)
        word_starts.append(len(input_ids))
        input_ids.extend(ids)
    input_ids.append(tokenizer.sep_token_id)
    empty = [i for i in range(len(tokens)) if i not in pieces]
    return WordPieces(input_ids, word_starts, words, cut, empty)


def encode_phrases(tokenizer: Tokenizer, phrases: Sequence[str], max_pieces: int) -> tuple[list[int], int]:
    """[CLS] phrases [SEP] with at most ``max_pieces`` content pieces, and how many pieces were cut.

    Without any phrase the result is empty: the coarse grain is masked, not fed with an empty sentence.
    """
    content = tokenizer(" ".join(phrases), add_special_tokens=False)["input_ids"] if phrases else []
    if not content:
        return [], 0
    kept = content[:max_pieces]
    return [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id], len(content) - len(kept)


def restore_tags(predicted: Sequence[str], words: Sequence[int], length: int) -> list[str]:
    """Tags of all ``length`` words from those of the scored ``words``; what was cut or has no piece is O.

    A word without a piece inside an entity (a zero-width joiner between two names) belongs to it: otherwise the
    entity would fall apart into a beginning and an orphan.
    """
    tags = [OUTSIDE] * length
    previous = -1
    for tag, word in zip(predicted, words, strict=True):
        if tag.startswith("I-") and previous >= 0:
            tags[previous + 1 : word] = [tag] * (word - previous - 1)
        tags[word] = tag
        previous = word
    return tags


def character_spans(spans: Sequence[Span], words: Sequence[Word]) -> list[tuple[int, int, str]]:
    """(start, end, label) in characters, such that ``text[start:end]`` is the entity."""
    return [(words[span.start].start, words[span.end - 1].end, span.label) for span in spans]

"""Two entities of a post marked in its word pieces (§3.5, Eq. 10): [unused0] head [unused1], [unused2] tail [unused3].

These are entries of BERT's vocabulary; a tokenizer without them gets special tokens of the same names.

The state at the marker before an entity stands for the entity (Eq. 10). Entities may stand in any order, touch or
overlap. A post that is too long is read through a window around both entities; a marker is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from tmrjax.text.pieces import Tokenizer, pieces_of_words, unknown_words
from tmrjax.text.tokenizers import tokenizer_from_json, tokenizer_to_json

MARKERS = ("[unused0]", "[unused1]", "[unused2]", "[unused3]")  # before and after the head, before and after the tail


class WindowError(ValueError):
    """Both entities and what stands between them do not fit into the limit of word pieces."""


class MarkedPieces(NamedTuple):
    """A post with two marked entities as BERT reads it.

    input_ids: [CLS], the pieces of the window's words with four markers among them, [SEP]. head_start, tail_start:
    positions of [unused0] and [unused2]. cut: words outside of the window. empty: words without any piece. unknown:
    words of whose pieces at least half are [UNK]. piece_words[p]: the word of piece p, -1 for a special one or a
    marker.
    """

    input_ids: list[int]
    head_start: int
    tail_start: int
    cut: list[int]
    empty: list[int]
    unknown: list[int]
    piece_words: list[int]


def _find_markers(tokenizer: Tokenizer) -> tuple[list[int], list[str]]:
    """Ids of MARKERS, and those that the vocabulary lacks."""
    ids = tokenizer.convert_tokens_to_ids(list(MARKERS))
    return ids, [m for m, i in zip(MARKERS, ids, strict=True) if i is None or i == tokenizer.unk_token_id]


def marker_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of MARKERS; raises ValueError where the vocabulary has not all of them."""
    ids, missing = _find_markers(tokenizer)
    if missing:
        raise ValueError(
            f"the vocabulary lacks {', '.join(missing)}, which mark the entities: take a BERT vocabulary with [unused] "
            "entries, or give the tokenizer special tokens for them (add_markers), which its encoder's table must hold"
        )
    return tuple(ids)


def add_markers(tokenizer: Any) -> tuple[Any, int]:
    """A tokenizer that has MARKERS, and how many of them were added.

    [unused] entries of a BERT vocabulary are there already. Others get special tokens behind their last one: the
    encoder's word table must have ``len(tokenizer)`` rows (:func:`tmrjax.encoders.open.grow_vocabulary`). The one that
    is given stays as it is.
    """
    _, missing = _find_markers(tokenizer)
    if not missing:
        return tokenizer, 0
    from tokenizers import AddedToken

    larger = tokenizer_from_json(tokenizer_to_json(tokenizer))
    added = larger.add_tokens([AddedToken(marker, normalized=False, special=True) for marker in missing])
    return larger, added


def encode_marked(
    tokenizer: Tokenizer, tokens: Sequence[str], head: tuple[int, int], tail: tuple[int, int], max_pieces: int
) -> MarkedPieces:
    """Word pieces of a tokenised post with its head and tail marked, at most ``max_pieces`` with [CLS] and [SEP].

    Where the post is too long, whole words are left out at its ends: the window holds both entities with all words
    between them and grows to the left and to the right in turn, word by word.

    Args:
        tokenizer: with MARKERS in its vocabulary.
        tokens: the post's words.
        head, tail: half-open ranges of words.
        max_pieces: the limit.

    Raises:
        WindowError: the words from the first entity's start to the last one's end do not fit.
        ValueError: a range out of bounds, or a vocabulary without markers.
    """
    for name, (start, end) in (("head", head), ("tail", tail)):
        if not 0 <= start < end <= len(tokens):
            raise ValueError(f"{name} [{start}, {end}) lies outside of {len(tokens)} words")
    before_head, after_head, before_tail, after_tail = marker_ids(tokenizer)
    pieces = pieces_of_words(tokenizer, tokens)
    first, last = window_around([len(word) for word in pieces], head, tail, max_pieces - 2 - len(MARKERS))
    input_ids, positions, of = [tokenizer.cls_token_id], {}, [-1]
    for word in range(first, last):
        for (start, _), marker in ((head, before_head), (tail, before_tail)):
            if word == start:
                positions[marker] = len(input_ids)
                input_ids.append(marker)
                of.append(-1)
        input_ids += pieces[word]
        of += [word] * len(pieces[word])
        for (_, end), marker in ((head, after_head), (tail, after_tail)):
            if word == end - 1:
                input_ids.append(marker)
                of.append(-1)
    input_ids.append(tokenizer.sep_token_id)
    return MarkedPieces(
        input_ids,
        positions[before_head],
        positions[before_tail],
        cut=[word for word in range(len(tokens)) if not first <= word < last],
        empty=[word for word, ids in enumerate(pieces) if not ids],
        unknown=unknown_words(tokenizer, pieces),
        piece_words=[*of, -1],
    )


def window_around(lengths: Sequence[int], head: tuple[int, int], tail: tuple[int, int], room: int) -> tuple[int, int]:
    """The half-open range of words that is read, of at most ``room`` pieces."""
    first, last = min(head[0], tail[0]), max(head[1], tail[1])
    room -= sum(lengths[first:last])
    if room < 0:
        raise WindowError(
            f"head {list(head)} and tail {list(tail)} with the words between them are {-room} word pieces too long"
        )
    growing = True
    while growing:
        growing = False
        if first > 0 and lengths[first - 1] <= room:
            first, room, growing = first - 1, room - lengths[first - 1], True
        if last < len(lengths) and lengths[last] <= room:
            last, room, growing = last + 1, room - lengths[last], True
    return first, last

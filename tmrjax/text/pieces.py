"""From words to word pieces to tags, and back (§4.1: BIO tagging of posts).

Words carry the tags (the paper's CRF runs over words); word pieces are what BERT reads; characters are what a user
wants back. Every function is exact: a span that leaves this module slices the text it came from, and a word that BERT
cannot see (no piece, or behind the limit) is reported, never dropped in silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

# split_special_tokens: a post that holds the text of a special token ("</s>") does not get the token.
# verbose=False: what does not fit is cut or read in windows, so the tokenizer's warning of its length is wrong.
_PLAIN = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}


class Tokenizer(Protocol):
    """What is used of a fast tokenizer of transformers."""

    cls_token_id: int
    sep_token_id: int
    unk_token_id: int
    all_special_ids: list[int]

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
    piece_words[p]: the word of piece p, -1 for a special one.
    """

    input_ids: list[int]
    word_starts: list[int]
    words: list[int]
    cut: list[int]
    empty: list[int]
    unknown: list[int]
    shortened: list[int]
    piece_words: list[int]


def pieces_of_words(tokenizer: Tokenizer, tokens: Sequence[str]) -> list[list[int]]:
    """The ids of each word's pieces; empty for a word of invisible characters."""
    encoding = tokenizer(list(tokens), is_split_into_words=True, **_PLAIN)
    pieces: list[list[int]] = [[] for _ in tokens]
    for piece, word in zip(_ordinary(tokenizer, encoding["input_ids"]), encoding.word_ids(), strict=True):
        pieces[word].append(piece)
    return pieces


def _ordinary(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The ids, special ones made unknown: SentencePiece's unigrams find "</s>" in a text whatever is asked for."""
    special, unknown = set(tokenizer.all_special_ids), tokenizer.unk_token_id
    return ids if special.isdisjoint(ids) else [unknown if i in special else i for i in ids]


def unknown_words(tokenizer: Tokenizer, pieces: Sequence[Sequence[int]]) -> list[int]:
    """Words of whose pieces at least half are [UNK]."""
    unknown = tokenizer.unk_token_id
    return [word for word, ids in enumerate(pieces) if unknown in ids and 2 * ids.count(unknown) >= len(ids)]


def encode_words(
    tokenizer: Tokenizer, tokens: Sequence[str], max_pieces: int, *, whole_post: bool = False
) -> WordPieces:
    """Word pieces of a tokenised post, at most ``max_pieces`` including [CLS] and [SEP].

    A word is kept whole or cut whole: half a word would be scored on a truncated meaning. ``whole_post``: no word is
    cut, for a post that :mod:`tmrjax.text.windows` divides; a word that is longer than a window is shortened to one.
    """
    if max_pieces < 3:
        raise ValueError(f"max_pieces must leave room for [CLS], one piece and [SEP], found {max_pieces}")
    pieces = pieces_of_words(tokenizer, tokens)
    input_ids, word_starts, words, cut, shortened, of = [tokenizer.cls_token_id], [], [], [], [], [-1]
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
        of.extend([word] * len(ids))
    input_ids.append(tokenizer.sep_token_id)
    empty = [word for word, ids in enumerate(pieces) if not ids]
    return WordPieces(input_ids, word_starts, words, cut, empty, unknown_words(tokenizer, pieces), shortened, [*of, -1])


def encode_phrases(tokenizer: Tokenizer, phrases: Sequence[str], max_pieces: int) -> tuple[list[int], int]:
    """[CLS] phrases [SEP] with at most ``max_pieces`` content pieces, and how many pieces were cut.

    Without any phrase the result is empty: the coarse grain is masked, not fed with an empty sentence.
    """
    content = _ordinary(tokenizer, tokenizer(" ".join(phrases), **_PLAIN)["input_ids"]) if phrases else []
    if not content:
        return [], 0
    kept = content[:max_pieces]
    return [tokenizer.cls_token_id, *kept, tokenizer.sep_token_id], len(content) - len(kept)

"""A raw text into words, as the words of the training data were made (§4.1: tags stand on words).

Scripts that write no blanks between words (Han, Hiragana, Katakana, Thai, Lao, Khmer, Myanmar) have no words that a
blank could find, so the data decide. Their tokens are single characters in most sets (``char tag`` per line), and a
model that was trained on those reads a whole run as one unknown word. :func:`splitting_of_tokens` finds out how the
training data were made; the answer is a field of the checkpoint (:class:`tmrjax.inputs.settings.TextSettings`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import regex

# spaces: blanks and punctuation separate words, whatever the script is.
# graphemes: the same, but inside of a run of such a script every grapheme cluster is a word.
# characters: every visible grapheme cluster is a word, in any script.
# segmented: the training data hold words of such a script that a program cut out; a raw text cannot be cut like that
#   here, so it is split as for "graphemes", and the predictor says so.
# unseen: the training data hold no such script; split as for "spaces", and the predictor says so.
SPLITTINGS = ("spaces", "graphemes", "characters", "segmented", "unseen")

_SPACELESS = (
    r"[[\p{L}\p{M}]&&[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}"
    r"\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}]]"
)


def _pattern(letter: str, url_end: str) -> regex.Pattern:
    # URLs, user names and hashtags stay whole; then words with inner apostrophes, dots or hyphens; then one grapheme
    # cluster, so that an emoji with its modifiers is one word.
    return regex.compile(
        rf"https?://{url_end}+|www\.{url_end}+|[@#]{letter}+|{letter}+(?:['’.\-&]{letter}+)*|\X", regex.VERSION1
    )


_BY_SPACES = _pattern(r"[\p{L}\p{M}\p{N}_]", r"\S")
_BY_GRAPHEMES = _pattern(rf"[[\p{{L}}\p{{M}}\p{{N}}_]--{_SPACELESS}]", rf"[\S--{_SPACELESS}]")
_PATTERNS = {
    "spaces": _BY_SPACES,
    "unseen": _BY_SPACES,
    "graphemes": _BY_GRAPHEMES,
    "segmented": _BY_GRAPHEMES,
    "characters": regex.compile(r"\X"),
}
_INVISIBLE = regex.compile(r"[\s\p{Cf}\p{Cc}\p{Mn}]*")
_RUN = regex.compile(rf"{_SPACELESS}{{2}}", regex.VERSION1)
_ANY_SPACELESS = regex.compile(_SPACELESS, regex.VERSION1)
_ALPHANUMERIC = regex.compile(r"[\p{L}\p{N}]")
_GRAPHEME = regex.compile(r"\X")


class Word(NamedTuple):
    """A word and the half-open interval of characters it covers: ``text[start:end] == word``."""

    word: str
    start: int
    end: int


def split_words(text: str, splitting: str = "spaces") -> list[Word]:
    """Words of a raw post with their characters; ``splitting`` is one of SPLITTINGS.

    White space and invisible characters (zero-width space, soft hyphen, byte order mark, ...) separate words and
    belong to none; an emoji with its modifiers is one word.

    >>> [word.word for word in split_words("去 London了", "graphemes")]
    ['去', 'London', '了']
    """
    return [
        Word(match.group(), match.start(), match.end())
        for match in _PATTERNS[splitting].finditer(text)
        if not _INVISIBLE.fullmatch(match.group())
    ]


def join_words(tokens: Sequence[str], joiner: str = " ") -> tuple[str, list[Word]]:
    """The text of given tokens with ``joiner`` between them, and the characters of each."""
    words, position = [], 0
    for token in tokens:
        words.append(Word(token, position, position + len(token)))
        position += len(token) + len(joiner)
    return joiner.join(tokens), words


def has_run(text: str) -> bool:
    """Whether two letters of a script without blanks stand side by side."""
    return _RUN.search(text) is not None


def splitting_of_tokens(posts: Iterable[Sequence[str]]) -> str:
    """How tokenised posts were split, one of SPLITTINGS.

    characters: at least 98 % of the tokens with a letter or digit are one grapheme cluster, whatever the script.
    Otherwise the tokens of scripts without blanks decide: graphemes where at least 90 % of them are one cluster,
    segmented where at least half of them stand beside another one, spaces where they stand alone, unseen without any.
    """
    alphanumeric = alphanumeric_single = spaceless = spaceless_single = beside = 0
    for tokens in posts:
        of_script = [_ANY_SPACELESS.search(token) is not None for token in tokens]
        for token, is_spaceless in zip(tokens, of_script, strict=True):
            single = _GRAPHEME.fullmatch(token) is not None
            if _ALPHANUMERIC.search(token):
                alphanumeric += 1
                alphanumeric_single += single
            spaceless += is_spaceless
            spaceless_single += is_spaceless and single
        pairs = [first and second for first, second in itertools.pairwise(of_script)]
        beside += sum(map(max, zip([False, *pairs], [*pairs, False], strict=True)))
    if alphanumeric and alphanumeric_single >= 0.98 * alphanumeric:
        return "characters"
    if not spaceless:
        return "unseen"
    if spaceless_single >= 0.9 * spaceless:
        return "graphemes"
    return "segmented" if beside >= 0.5 * spaceless else "spaces"

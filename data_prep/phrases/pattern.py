"""Noun phrases of a post over its own tokens, without a download (paper section 3.2: what regions are grounded by).

Parts of speech come from the rule-based tagger of TextBlob (after pattern.en), whose lexicon lies in the package; a
small grammar over them finds base noun phrases. Every phrase is a range of the post's tokens: it maps back to them, and
holds no word that the post does not have. What belongs to tweets is decided here:

* URLs (whole or taken apart), emoji, punctuation and the head of a retweet (`RT @user :`) end a phrase and belong to
  none.
* `@user` elsewhere and a hash tag (`#Word`, or `#` and `Word` apart) are nouns, each a phrase of its own.
* Determiners and pronouns are left out: of a phrase only a few word pieces are read.
* `of` joins two proper names (Festival of Voice), `&` likewise, and a possessive joins what it connects.

Lexicon and grammar are English. Other languages in Latin letters cannot be told from it here and give poor phrases; a
post in another script gives whole clauses, so :func:`in_another_script` says which posts these are.

Another parser (:mod:`data_prep.phrases.constituency`) offers the same spans and shares what concerns tweets
(:func:`special`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence

import regex

from tmrjax.records.schema import Span

MAXIMUM = 3  # phrases of a post: as many as it has regions

# Whole, or a piece of one that a tokenizer took apart (https : //t . co/abc).
_URL = re.compile(r"https?\b|www\.|^//|\bco/|\w\.(?:com|org|net|ly|gl|fm|tv|me|be|it|us|uk)/", re.IGNORECASE)
_LATIN = regex.compile(r"\p{Latin}")
# Of some script, but not of Latin; letters of no script in particular (𝓗, ª) tell nothing.
_OTHER_LETTERS = regex.compile(r"[\p{L}--\p{Latin}--\p{Common}--\p{Inherited}]", regex.V1)
SENTENCE_END = re.compile(r"[.!?…]+|:")
_APOSTROPHES = ("'", "’")
# One letter per token: N noun, M proper name, S a phrase of its own, A adjective, C number, D determiner, O of, U &,
# P possessive 's, Q an apostrophe whose s stands apart.
_PROPER = "M(?:[MC]|(?:O|U|OD)(?=M))*"
_NOUNS = f"(?:{_PROPER}|N)+(?:A+N+)?C?"
_PHRASE = re.compile(f"S|[AC]*{_NOUNS}(?:Q?P[AC]*{_NOUNS})*")
_LETTERS = {"POS": "P", "CD": "C", "DT": "D", "PDT": "D", "PRP$": "D"}


@functools.cache
def _tagger():
    from textblob import en  # reads a lexicon of 1 MB: only where phrases are asked for

    return en.parser


def phrase_spans(tokens: Sequence[str]) -> list[Span]:
    """Base noun phrases of a post as half-open token ranges, in order, none overlapping another.

    The same tokens give the same spans on every machine. A post without a noun gives an empty list.
    """
    letters = "".join(_letters(tokens))
    return [match.span() for match in _PHRASE.finditer(letters)]


def choose_phrases(tokens: Sequence[str], spans: Sequence[Span], maximum: int = MAXIMUM) -> tuple[str, ...]:
    """At most `maximum` phrases, longest first (in tokens, earlier first among equals), each said once.

    A phrase is `tokens[start:end]` joined by blanks. A phrase that differs from a chosen one only in case is left out.
    Raises ValueError for a span outside the tokens.
    """
    if maximum < 0:
        raise ValueError(f"maximum is {maximum}; expected 0 or more phrases")
    chosen: dict[str, str] = {}
    for start, end in sorted(spans, key=lambda span: (span[0] - span[1], span)):
        if not 0 <= start < end <= len(tokens):
            raise ValueError(f"the span {(start, end)} of {len(tokens)} tokens; expected 0 <= start < end <= tokens")
        phrase = " ".join(tokens[start:end])
        if len(chosen) < maximum:
            chosen.setdefault(phrase.casefold(), phrase)
    return tuple(chosen.values())


def special(tokens: Sequence[str]) -> list[str]:
    """What tweets hold beside words, one letter per token: x ends a phrase, S is one of its own, blank is ordinary.

    Of the tokens without a letter or digit only `&` and apostrophes are ordinary: names hold them.
    """
    letters = [" "] * len(tokens)
    head = _retweet_head(tokens)
    for index, token in enumerate(tokens):
        word = any(character.isalnum() for character in token)
        if index < head or _URL.search(token) or not (word or token == "&" or token in _APOSTROPHES):
            letters[index] = "x"
        elif word and (token[0] in "#@" or (index > 0 and tokens[index - 1] in ("#", "@"))):
            letters[index] = "S"
    return letters


def letters_by_script(tokens: Iterable[str]) -> tuple[int, int]:
    """How many letters of the tokens are Latin, and how many are of another script; those of URLs are not counted."""
    text = " ".join(token for token in tokens if not _URL.search(token))
    return len(_LATIN.findall(text)), len(_OTHER_LETTERS.findall(text))


def in_another_script(tokens: Iterable[str]) -> bool:
    """Whether most letters of a post are of another script than Latin: the English grammar has nothing to say of it."""
    latin, other = letters_by_script(tokens)
    return other > latin


def _retweet_head(tokens: Sequence[str]) -> int:
    """How many tokens `RT @user :` takes at the start."""
    if not tokens or tokens[0] != "RT":
        return 0
    end = 1
    while end < len(tokens) and (tokens[end].startswith("@") or tokens[end] == ":" or tokens[end - 1] == "@"):
        end += 1
    return end


# ------------------------------------------------------------------ one letter per token


def _letters(tokens: Sequence[str]) -> list[str]:
    letters = special(tokens)
    sentence: list[int] = []
    for index, token in enumerate(tokens):
        if letters[index] == "x" and (SENTENCE_END.fullmatch(token) or _URL.search(token) or token == "RT"):
            _tag_sentence(tokens, sentence, letters)
            sentence = []
        else:
            sentence.append(index)
    _tag_sentence(tokens, sentence, letters)
    for index, token in enumerate(tokens[1:], start=1):
        if tokens[index - 1] in _APOSTROPHES and token.lower() in ("s", "t", "re", "ve", "ll", "m", "d"):
            letters[index - 1 : index + 1] = "QP" if token.lower() == "s" else "xx"
            if token.lower() == "t":  # of isn ' t nothing is a noun
                letters[max(index - 2, 0)] = "x"
    return ["x" if letter == " " else letter for letter in letters]


def _tag_sentence(tokens: Sequence[str], sentence: Sequence[int], letters: list[str]) -> None:
    if not sentence:
        return
    shouted = 2 * sum(tokens[index].isupper() for index in sentence) > len(sentence)
    words = [_known_form(tokens[index], shouted) for index in sentence]
    capitals = sum(tokens[index][0].isupper() for index in sentence)
    before = "x"
    for index, (word, tag) in zip(sentence, _tagger().find_tags(words), strict=True):
        token = tokens[index]
        # A name may go on with any word (Circle Undone), but where most words have capitals they say nothing.
        goes_on = before == "M" and token.istitle() and 2 * capitals < len(sentence) and tag[:2] in ("VB", "JJ", "RB")
        country = token == "US" and not shouted  # the lexicon takes it for us
        if letters[index] != " ":
            letter = letters[index]
        elif token in _APOSTROPHES:
            letter = "x"
        elif goes_on or country or tag.startswith("NNP") or (tag.startswith("NN") and _is_capitalised(token)):
            letter = "M"
        elif tag.startswith("NN"):
            letter = "N"
        elif tag.startswith("JJ"):
            letter = "A"
        elif word in ("of", "&"):
            letter = "O" if word == "of" else "U"
        else:
            letter = _LETTERS.get(tag, "x")
        before = letters[index] = letter


def _is_capitalised(token: str) -> bool:
    return token[0].isupper() and not token.isupper()


def _known_form(token: str, shouted: bool) -> str:
    """The form under which the lexicon has a word: tweets shout, and write curly apostrophes."""
    word = token.replace("’", "'").lstrip("#@") or token
    lexicon = _tagger().lexicon
    lower = word.lower()
    if word in lexicon or lower not in lexicon:
        return word
    # Outside a shouted sentence The is no name, Festival may be one.
    function_word = word.istitle() and not lexicon[lower].startswith("NN")
    return lower if shouted or function_word else word

"""BERTweet's word pieces (Nguyen et al. 2020): a post's words made alike, then byte pairs.

User names become @USER and links HTTPURL, an emoji becomes its name in colons where the package ``emoji`` is installed
(BERTweet was trained on names; without the package an emoji is an unknown piece), contractions are cut (do n't), as in
the authors' normalisation. The cut into smaller tokens follows NLTK's ``TweetTokenizer`` (Potts et al., Apache 2.0).

Upstream has this tokenizer in Python only. Here two tokenizers of the ``tokenizers`` library make the pieces: byte-pair
merges find them (:func:`merges_backend`), a table gives their ids (:func:`vocabulary_backend`). They are two because
some merges lead through pieces that the vocabulary lacks, and a piece that it lacks is unknown.
"""

from __future__ import annotations

import functools
import html.entities
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import regex

from tmrjax.files import DataError

# --- a text made alike -----------------------------------------------------------------------------------------------

_BALANCED = r"\([^\s()]*?\([^\s()]+\)[^\s()]*?\)|\([^\s]+?\)"  # parentheses, one inside of another at most
_EYES, _NOSE, _MOUTH = r"[:;=8]", r"[\-o*']?", r"[)\](\[dDpP/:}{@|\\]"
# The first that fits at a place is the token.
_TOKENS = (
    # links: with a protocol or a path
    rf"(?:https?:(?:/{{1,3}}|[a-z0-9%])|[a-z0-9.\-]+[.](?:[a-z]{{2,13}})/)"
    rf"(?:[^\s()<>{{}}\[\]]+|{_BALANCED})+"
    rf"(?:{_BALANCED}|[^\s`!()\[\]{{}};:'\".,<>?«»“”‘’])",
    # bare domains, not those of mail addresses
    r"(?<!@)[a-z0-9]+(?:[.\-][a-z0-9]+)*[.](?:[a-z]{2,13})\b/?(?!@)",
    # telephone numbers
    r"(?:\+?[01][ *\-.)]*)?(?:[(]?\d{3}[ *\-.)]*)?\d{3}[ *\-.)]*\d{4}",
    # emoticons, either way round, and hearts
    rf"[<>]?{_EYES}{_NOSE}{_MOUTH}|{_MOUTH}{_NOSE}{_EYES}[<>]?|<3",
    r"<[^>\s]+>",  # HTML tags
    r"-+>|<-+",  # arrows
    r"@\w+",  # user names
    r"\#+\w+[\w'\-]*\w+",  # hashtags
    r"[\w.+-]+@[\w-]+\.(?:[\w-]\.?)+[\w-]",  # mail addresses
    r"[^\W\d_](?:[^\W\d_]|['\-_])+[^\W\d_]",  # words with inner apostrophes or dashes
    r"[+\-]?\d+[,/.:-]\d+[+\-]?",  # numbers with a sign inside
    r"\w+",
    r"\.(?:\s*\.)+",  # dots
    r"\S",
)
_TOKEN = regex.compile("|".join(f"(?:{pattern})" for pattern in _TOKENS), regex.IGNORECASE)
_REPEATED = regex.compile(r"([^a-zA-Z0-9])\1{3,}")
_ENTITY = regex.compile(r"&(#?(x?))([^&;\s]+);")
_PUNCTUATION = {"’": "'", "…": "..."}
# In this order; blanks matter.
_CONTRACTIONS = (
    ("cannot ", "can not "), ("n't ", " n't "), ("n 't ", " n't "), ("ca n't", "can't"), ("ai n't", "ain't"),
    ("'m ", " 'm "), ("'re ", " 're "), ("'s ", " 's "), ("'ll ", " 'll "), ("'d ", " 'd "), ("'ve ", " 've "),
    (" p . m .", "  p.m."), (" p . m ", " p.m "), (" a . m .", " a.m."), (" a . m ", " a.m "),
)  # fmt: skip


def _character(entity: regex.Match) -> str:
    """What an HTML entity stands for; nothing where it stands for nothing."""
    number, is_hexadecimal, name = entity.groups()
    if not number:
        code = html.entities.name2codepoint.get(name)
    else:
        try:
            code = int(name, 16 if is_hexadecimal else 10)
            if 0x80 <= code <= 0x9F:  # browsers read these as Windows-1252
                return bytes([code]).decode("cp1252")
        except ValueError:
            code = None
    try:
        return "" if code is None else chr(code)
    except (ValueError, OverflowError):
        return ""


@functools.cache
def _demojize() -> Callable[[str], str]:
    try:
        from emoji import demojize
    except ImportError:
        return str
    return demojize


def _normalise_token(token: str) -> str:
    if token.startswith("@"):
        return "@USER"
    if token.lower().startswith(("http", "www")):
        return "HTTPURL"
    return _demojize()(token) if len(token) == 1 else token


def normalise(text: str) -> list[str]:
    """The tokens of a post, or of a word, as BERTweet was trained on them.

    >>> normalise("@rosa don't miss https://t.co/x, it’s 5 p.m")
    ['@USER', 'do', "n't", 'miss', 'HTTPURL', ',', "it's", '5', 'p.m']
    """
    for mark, plain in _PUNCTUATION.items():
        text = text.replace(mark, plain)
    text = _REPEATED.sub(r"\1\1\1", _ENTITY.sub(_character, text))
    text = " ".join(map(_normalise_token, _TOKEN.findall(text)))
    for found, made in _CONTRACTIONS:
        text = text.replace(found, made)
    return text.split()


# --- pieces ----------------------------------------------------------------------------------------------------------

_END, _GOES_ON = "</w>", "@@"
_FIRST = ("<s>", "<pad>", "</s>", "<unk>")
_UNKNOWN = "<unk>"
_CACHED_WORDS, _LONGEST_CACHED = 1 << 17, 40


def read_vocabulary(file: Path) -> dict[str, int]:
    """vocab.txt: a piece and its count a line, behind the four special pieces; raises DataError for another form."""
    pieces = list(_FIRST)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        piece, blank, _ = line.strip().rpartition(" ")
        if not blank:
            raise DataError(f"{file}:{number}", repr(line), "a piece and its count", "Fetch the folder again.")
        pieces.append(piece)
    return {piece: index for index, piece in enumerate(pieces)}


def read_merges(file: Path) -> list[tuple[str, str]]:
    """bpe.codes: two parts and a count a line; raises DataError for another form."""
    merges = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if len(parts) != 3:
            raise DataError(f"{file}:{number}", repr(line), "two parts and their count", "Fetch the folder again.")
        merges.append((parts[0], parts[1]))
    return merges


def merges_backend(vocabulary: Iterable[str], merges: Sequence[tuple[str, str]]) -> Any:
    """Byte pairs over words: its tokens are pieces, the last one of a word with the ending ``</w>``."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    whole = [piece.removesuffix(_GOES_ON) if piece.endswith(_GOES_ON) else piece + _END for piece in vocabulary]
    parts = [part for pair in merges for part in (*pair, "".join(pair))]
    characters = {character for part in (*whole, *parts) for character in part.removesuffix(_END)}
    alphabet = itertools.chain.from_iterable((character, character + _END) for character in sorted(characters))
    tokens = dict.fromkeys([_UNKNOWN, *alphabet, *whole, *parts])
    model = models.BPE(
        {token: index for index, token in enumerate(tokens)},
        list(dict.fromkeys(merges)),
        unk_token=_UNKNOWN,
        end_of_word_suffix=_END,
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def vocabulary_backend(vocabulary: dict[str, int]) -> Any:
    """From pieces to ids, with ``<s>`` and ``</s>`` around a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.RobertaProcessing(
        ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), trim_offsets=False, add_prefix_space=False
    )
    return backend


def _as_written(token: str) -> str:
    """A token of :func:`merges_backend` as vocab.txt writes it."""
    if token == _UNKNOWN:
        return token
    return token.removesuffix(_END) if token.endswith(_END) else token + _GOES_ON


class TweetEncoding(dict):
    """What a call of :class:`TweetTokenizer` returns for one post."""

    def __init__(self, content: dict[str, Any], words: list[int | None]):
        super().__init__(content)
        self._words = words

    def word_ids(self) -> list[int | None]:
        """The word of each piece; None for special ones."""
        return self._words


class TweetTokenizer:
    """A fast tokenizer over pieces (``pieces``), behind the normalisation and the merges.

    Everything but the call is the inner tokenizer's.
    """

    def __init__(self, pieces: Any, merges: Any):
        self.pieces, self.merges = pieces, merges
        self._cache: dict[str, list[str]] = {}

    def __getattr__(self, name: str) -> Any:
        if name in ("pieces", "merges"):  # copy and pickle ask before __init__
            raise AttributeError(name)
        return getattr(self.pieces, name)

    def __len__(self) -> int:
        return len(self.pieces)

    def split(self, text: str) -> list[str]:
        """The pieces of a text or word: ``@@`` at the end of one says that the word goes on."""
        if text in self._cache:
            return self._cache[text]
        tokens = self.merges.encode(normalise(text), is_pretokenized=True, add_special_tokens=False).tokens
        pieces = list(map(_as_written, tokens))
        if len(text) <= _LONGEST_CACHED:
            if len(self._cache) >= _CACHED_WORDS:
                self._cache.clear()
            self._cache[text] = pieces
        return pieces

    def __call__(self, text: Any, *, is_split_into_words: bool = False, **keywords: Any) -> Any:
        """Encodes a text, a list of texts, or with ``is_split_into_words`` the words of one text.

        Raises TypeError for keywords that count in characters.
        """
        if keywords.get("return_offsets_mapping"):
            raise TypeError("a TweetTokenizer has no offsets of characters, only words: its pieces are of changed text")
        if not is_split_into_words:
            if not isinstance(text, str):
                texts = [self(item, **keywords) for item in text]
                return {name: [item[name] for item in texts] for name in texts[0]} if texts else {"input_ids": []}
            text = [text]
        split = [self.split(word) for word in text]
        owners = [index for index, pieces in enumerate(split) for _ in pieces]
        flat = list(itertools.chain.from_iterable(split))
        encoding = self.pieces(flat, is_split_into_words=True, **keywords)
        words = [None if word is None else owners[word] for word in encoding.word_ids()]
        return TweetEncoding(dict(encoding), words)

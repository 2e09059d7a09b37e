"""What can be taken out of the texts of a corpus, so that their style does not give their source away.

Captions end in a full stop and have no @, #, RT and links; posts do. A text-only model tells one from the other; these
cleaners remove the plainest marks (the picture's and the vocabulary's style stay).
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Sequence

import regex

_CLEANERS = {
    # the marker of a repeated post, with the user it came from
    "retweets": (regex.compile(r"^(?:\s*RT\b[\s_:]*(?:@\w+)?\s*:?)+", regex.IGNORECASE), ""),
    # also those that a length limit cut: "htt…", "https://t.c..."
    "urls": (regex.compile(r"(?:https?:\S*|www\.\S+|pic\.twitter\.com/\S+|\bhtt?p?s?(?=…|\.\.\.)\S*)"), ""),
    "mentions": (regex.compile(r"@\w+:?"), ""),
    "hashtags": (regex.compile(r"#(?=\w)"), ""),  # the sign; the word may be part of the sentence
    "full_stop": (regex.compile(r"\s*[.…]+\s*$"), ""),
}
CLEANERS = tuple(_CLEANERS)


def clean_text(text: str, cleaners: Sequence[str] = ()) -> str:
    """The text with HTML entities resolved, white space folded, and without what `cleaners` (of CLEANERS) name."""
    text = html.unescape(text)
    for name in CLEANERS:
        if name in cleaners:
            pattern, replacement = _CLEANERS[name]
            text = pattern.sub(replacement, text)
    return " ".join(text.split())


def text_digest(text: str) -> int:
    """63 bits that are equal for texts that differ only in case, white space and punctuation at their ends."""
    folded = " ".join(text.casefold().split()).strip(" .,;:!?…\"'")
    return int.from_bytes(hashlib.blake2b(folded.encode("utf-8", "surrogatepass"), digest_size=8).digest()) >> 1

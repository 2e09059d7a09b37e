"""How text becomes word pieces: settings that every checkpoint keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tmrjax.text.splitting import SPLITTINGS

PHRASES = ("pieces", "release_pieces", "release_words")


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """How text becomes word pieces: part of every checkpoint.

    Attributes:
        max_pieces: limit of T^w, with [CLS] and [SEP].
        max_phrase_pieces: limit of T^p, without them.
        piece_tags: tags on every word piece in the scheme of :mod:`tmrjax.methods.tmr_release` instead of on words.
        phrases: one of PHRASES, see :func:`tmrjax.inputs.phrases.phrase_ids_of`.
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

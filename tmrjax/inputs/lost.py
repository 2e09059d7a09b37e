"""What the encoder does not get of some posts: counted and said, never dropped in silence."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tmrjax.inputs.base import Example
from tmrjax.inputs.settings import TextSettings
from tmrjax.text.marking import MarkedPieces

logger = logging.getLogger(__name__)

UNKNOWN_SHARE, WRONG_VOCABULARY_SHARE = 0.05, 0.3


def count_words(examples: Sequence[Example]) -> dict[str, int]:
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


def say_what_is_lost(examples: Sequence[Example], settings: TextSettings, name: str) -> None:
    """Log what the encoder does not get of some posts: words behind the limit, without pieces, unknown, cut phrases."""
    counts = count_words(examples)
    cut = sum(bool(example.pieces.cut) for example in examples)
    marked = bool(examples) and isinstance(examples[0].pieces, MarkedPieces)
    if cut:
        logger.warning(
            "%s: %d words of %d posts lie outside of the limit of %d word pieces and are not read: %s",
            name, counts["unread"], cut, settings.max_pieces,
            "the window lies around both entities" if marked
            else "they are predicted as O and count as missed" if settings.piece_tags
            else "they are predicted as O and count as missed; data.windows=True reads them",
        )  # fmt: skip
    unknown = unknown_warning(counts["words"], counts["unknown"])
    if unknown:
        logger.warning("%s: %s", name, unknown)
    empty = sum(len(example.pieces.empty) for example in examples)
    if empty:
        logger.info("%s: %d words have no word piece (invisible characters): they are not read", name, empty)
    cut_phrases = sum(example.values.get("cut_phrase_pieces", 0) for example in examples)
    if cut_phrases:
        logger.info("%s: %d phrase pieces lie behind the limit of %d", name, cut_phrases, settings.max_phrase_pieces)
    if examples and not marked:
        shortened = sum(len(example.pieces.shortened) for example in examples)
        if shortened:
            logger.info("%s: %d words are longer than a window: their first pieces are read", name, shortened)
        long = sum(len(example.pieces.input_ids) > settings.max_pieces for example in examples)
        if long:
            logger.info(
                "%s: %d posts are longer than %d word pieces: they are read in windows that share up to %d",
                name, long, settings.max_pieces, settings.overlap,
            )  # fmt: skip

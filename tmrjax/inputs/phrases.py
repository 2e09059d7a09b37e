"""The phrases of a post as word pieces (T^p, §3.2)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from tmrjax.inputs.base import Example, Input, Reading, Spec
from tmrjax.inputs.settings import TextSettings
from tmrjax.records import Record
from tmrjax.text.pieces import Tokenizer, encode_phrases


@dataclasses.dataclass(frozen=True)
class Phrases(Input):
    """``phrase_ids``, ``phrase_mask`` [B, P]."""

    name: ClassVar[str] = "phrases"

    def check(self, records: Sequence[Record]) -> str | None:
        """Some record has phrases."""
        if any(record.phrases for record in records):
            return None
        return "no record has phrases: run data_prep/extract_phrases.py"

    def encode(self, record: Record, pieces: Any, reading: Reading) -> Mapping[str, Any]:
        """The ids, and ``cut_phrase_pieces``: how many pieces lie behind the limit."""
        ids, cut = phrase_ids_of(reading.tokenizer, record.phrases, reading.text)
        return {"phrase_ids": ids, "cut_phrase_pieces": cut}

    def spec(self, length: int, reading: Reading) -> Spec:
        """See the class."""
        size = reading.text.phrase_length
        return {"phrase_ids": ((size,), np.int32), "phrase_mask": ((size,), bool)}

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """The mask is True for what :func:`phrase_ids_of` returned."""
        ids = example.values["phrase_ids"]
        return {"phrase_ids": ids, "phrase_mask": [True] * len(ids)}


def phrase_ids_of(tokenizer: Tokenizer, phrases: Sequence[str], settings: TextSettings) -> tuple[list[int], int]:
    """The ids of a post's phrases, and how many pieces or words were cut.

    ``settings.phrases`` says how; the batch's phrase mask is True for what is returned here.

    * ``pieces``: [CLS], the first m pieces, [SEP]; nothing without phrases (:func:`tmrjax.text.pieces.encode_phrases`).
    * ``release_pieces``, the released NER code: the same with [CLS] [SEP] for a post without phrases. That code takes
      five positions, so m is 3. Its attention from regions to phrases reads the padding behind them too.
    * ``release_words``, the released RE code: the first m words (6), each looked up whole in the vocabulary, case and
      all, [UNK] where it is none (and for a post without phrases); no [CLS], no [SEP]; padded with 0 to m, the padding
      counted as valid.
    """
    limit = settings.max_phrase_pieces
    if settings.phrases == "release_words":
        words = " ".join(phrases).split(" ")
        ids = tokenizer.convert_tokens_to_ids(words[:limit])
        return [*ids, *[0] * (limit - len(ids))], max(len(words) - limit, 0)
    ids, cut = encode_phrases(tokenizer, phrases, limit)
    if not ids and settings.phrases == "release_pieces":
        ids = [tokenizer.cls_token_id, tokenizer.sep_token_id]
    return ids, cut

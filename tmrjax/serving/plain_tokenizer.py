"""The tokenizer of an exported folder on the tokenizers library alone, without transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer


class Encoded(dict):
    """ "input_ids", and :meth:`word_ids`."""

    def __init__(self, encoding: Any):
        super().__init__(input_ids=encoding.ids)
        self._words = encoding.word_ids

    def word_ids(self) -> list[int | None]:
        """The word of each piece."""
        return self._words


class PlainTokenizer:
    """What :class:`tmrjax.text.pieces.Tokenizer` asks for, of a tokenizer.json and the names of its special tokens.

    Raises ValueError for the JSON of no tokenizer.
    """

    def __init__(self, content: str, special: Mapping[str, str | None]):
        try:
            self.backend = Tokenizer.from_str(content)
        except Exception as error:  # the only type that tokenizers raises
            raise ValueError(f"tokenizer.json: damaged ({error}); export the model again") from None
        self.backend.no_truncation()
        self.backend.no_padding()
        self.backend.encode_special_tokens = True  # a post that holds the text of a special token gets no such token
        ids = {role: self.backend.token_to_id(token) for role, token in special.items() if token is not None}
        self.cls_token_id, self.sep_token_id, self.unk_token_id = (
            ids[f"{role}_token"] for role in ("cls", "sep", "unk")
        )
        self.all_special_ids = sorted(set(ids.values()))

    def __call__(self, text: str | Sequence[str], *, is_split_into_words: bool = False, **_: Any) -> Encoded:
        """The pieces of a text or of its words; special tokens are never added."""
        return Encoded(self.backend.encode(text, is_pretokenized=is_split_into_words, add_special_tokens=False))

    def convert_tokens_to_ids(self, tokens: Sequence[str]) -> list[int]:
        """The ids of word pieces; [UNK]'s for what is none."""
        found = (self.backend.token_to_id(token) for token in tokens)
        return [self.unk_token_id if index is None else index for index in found]

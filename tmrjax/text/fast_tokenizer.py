"""A tokenizer of the ``tokenizers`` library with its special tokens: what is used of a fast tokenizer of transformers.

transformers takes seconds to import, which the first answer of a prediction would wait for. The pieces are made by the
same library either way; tests hold this class to transformers' own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Encoding(dict):
    """What a call returns for one text: "input_ids", and the word of each piece."""

    def __init__(self, input_ids: list[int], words: list[int | None]):
        super().__init__(input_ids=input_ids)
        self._words = words

    def word_ids(self) -> list[int | None]:
        """The word of each piece; None for special ones."""
        return self._words


class FastTokenizer:
    """Texts to ids of pieces. ``cls_token``, ``cls_token_id`` and the same of the other ROLES are attributes.

    Attributes:
        backend_tokenizer: of the ``tokenizers`` library; it becomes this tokenizer's own. It neither cuts nor pads,
            whatever its file says, and special tokens that its vocabulary lacks are added behind the last one.
        all_special_ids: of the special tokens that there are.
    """

    def __init__(self, backend: Any, special: Mapping[str, str | None]):
        backend.no_truncation()
        backend.no_padding()
        there = list(dict.fromkeys(token for role in ROLES if (token := special.get(role)) is not None))
        marked = {added.content for added in backend.get_added_tokens_decoder().values()}
        backend.add_special_tokens([token for token in there if token not in marked])
        self.backend_tokenizer = backend
        for role in ROLES:
            token = special.get(role)
            setattr(self, role, token)
            setattr(self, f"{role}_id", None if token is None else backend.token_to_id(token))
        self.all_special_ids = [backend.token_to_id(token) for token in there]

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        is_split_into_words: bool = False,
        add_special_tokens: bool = True,
        split_special_tokens: bool = False,
        truncation: bool = False,
        verbose: bool = False,
    ) -> Mapping[str, Any]:
        """Encodes a text, or with ``is_split_into_words`` the words of one text; of a list of texts "input_ids" alone.

        ``split_special_tokens``: a special token's own text is read as text. ``verbose`` is transformers', about
        which there is nothing to say here. Raises ValueError for ``truncation``: what is cut is counted elsewhere.
        """
        del verbose
        if truncation:
            raise ValueError("this tokenizer does not cut texts; cut the ids")
        backend = self.backend_tokenizer
        if backend.encode_special_tokens != split_special_tokens:
            backend.encode_special_tokens = split_special_tokens
        if is_split_into_words or isinstance(text, str):
            found = backend.encode(text, is_pretokenized=is_split_into_words, add_special_tokens=add_special_tokens)
            return Encoding(found.ids, found.word_ids)
        return {"input_ids": [one.ids for one in backend.encode_batch(text, add_special_tokens=add_special_tokens)]}

    def convert_tokens_to_ids(self, tokens: str | Sequence[str]) -> Any:
        """The id of a piece, or those of several; a piece that is not there has the unknown one's."""
        if isinstance(tokens, str):
            found = self.backend_tokenizer.token_to_id(tokens)
            return self.unk_token_id if found is None else found
        return [self.convert_tokens_to_ids(token) for token in tokens]

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """The pieces of ids."""
        return [self.backend_tokenizer.id_to_token(int(index)) for index in ids]

    def add_tokens(self, tokens: Sequence[Any]) -> int:
        """Adds ``tokenizers.AddedToken``s behind the last id; returns how many were new."""
        return self.backend_tokenizer.add_tokens(list(tokens))

"""The word-piece tokenizer of a BERT folder, and the same tokenizer inside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmrjax.files import DataError

_SPECIAL_TOKENS = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_tokenizer(folder: Path):
    """The fast WordPiece tokenizer of a Hugging Face folder; its vocab.txt suffices."""
    from transformers import BertTokenizerFast

    folder = Path(folder)
    if not (folder / "vocab.txt").is_file() and not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder}: no vocab.txt and no tokenizer.json; is it a Hugging Face BERT folder?")
    return BertTokenizerFast.from_pretrained(str(folder))


def tokenizer_to_json(tokenizer) -> dict[str, Any]:
    """A fast tokenizer as JSON."""
    special = {name: getattr(tokenizer, name) for name in _SPECIAL_TOKENS}
    return {"tokenizer": tokenizer.backend_tokenizer.to_str(), "special_tokens": special}


def tokenizer_from_json(saved: Mapping[str, Any]):
    """The tokenizer of :func:`tokenizer_to_json`, without any folder.

    Only the five special tokens get through; other keyword arguments of transformers could name files or classes.
    Raises :class:`tmrjax.files.DataError` for what is no such JSON.
    """
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    def fail(found: str, expected: str) -> DataError:
        return DataError("the tokenizer of a checkpoint", found, expected, "Copy the checkpoint again.")

    if not isinstance(saved, Mapping) or saved.keys() != {"tokenizer", "special_tokens"}:
        raise fail("another object", "the keys tokenizer, special_tokens")
    text, special = saved["tokenizer"], saved["special_tokens"]
    if not isinstance(text, str) or not isinstance(special, Mapping):
        raise fail("other types", "a string and an object")
    foreign = [name for name in special if name not in _SPECIAL_TOKENS]
    if foreign or not all(isinstance(token, str | None) for token in special.values()):
        found = f"the special tokens {', '.join(map(repr, foreign))}"[:200] if foreign else "a special token of no text"
        raise fail(found, f"texts for some of {', '.join(_SPECIAL_TOKENS)}")
    try:
        backend = Backend.from_str(text)
    except Exception as error:  # the only type that tokenizers raises
        raise fail(f"a damaged tokenizer ({error})", "the JSON of a fast tokenizer") from None
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)

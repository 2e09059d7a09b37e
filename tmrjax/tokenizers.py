"""The word-piece tokenizer of a BERT folder, and the same tokenizer inside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    """The tokenizer of :func:`tokenizer_to_json`, without any folder."""
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(saved["tokenizer"]), **saved["special_tokens"])

"""The tokenizer of an encoder's folder, and the same tokenizer inside a checkpoint.

All are fast tokenizers, of the libraries' own three kinds: WordPiece (BERT, ELECTRA, DistilBERT), pairs of bytes
(RoBERTa) and SentencePiece's unigrams (XLM-R, DeBERTa-v2 and -v3). A folder's WordPiece is read by transformers; every
other one, and each inside of a checkpoint, is a :class:`tmrjax.text.fast_tokenizer.FastTokenizer`. BERTweet's is
:class:`tmrjax.text.tweets.TweetTokenizer`. Words are read one by one: a word that begins a text has the same pieces as
one in the middle, with the sign of a blank before it where a kind has one (Ġ, ▁).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tmrjax.files import DataError
from tmrjax.text.fast_tokenizer import ROLES, FastTokenizer
from tmrjax.text.tweets import TweetTokenizer, merges_backend, read_merges, read_vocabulary, vocabulary_backend

# Where a folder does not say them: BERT's and DeBERTa's, or RoBERTa's; those that the vocabulary has.
_USUAL = {
    "unk_token": ("[UNK]", "<unk>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
# The class that a folder names, without "Fast" → the files that are read where there is no tokenizer.json.
_FILES = {
    "BertTokenizer": ("vocab.txt",),
    "ElectraTokenizer": ("vocab.txt",),
    "DistilBertTokenizer": ("vocab.txt",),
    "RobertaTokenizer": ("vocab.json", "merges.txt"),
    "BertweetTokenizer": ("vocab.txt", "bpe.codes"),
    "XLMRobertaTokenizer": ("sentencepiece.bpe.model",),
    "CamembertTokenizer": ("sentencepiece.bpe.model",),
    "DebertaV2Tokenizer": ("spm.model",),
}
# Folders that name no class, by what lies there.
_GUESSES = ("BertweetTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer", "DebertaV2Tokenizer", "BertTokenizer")


def load_tokenizer(folder: Path):
    """The tokenizer of a Hugging Face folder: of its tokenizer.json, else of its vocabulary's files.

    A BERT's vocab.txt suffices. SentencePiece models are converted by transformers, which needs the packages
    sentencepiece and protobuf; a tokenizer.json needs neither.

    Raises:
        FileNotFoundError: no files of a tokenizer.
        ValueError: the folder names a tokenizer that has no fast version here, or its conversion lacks a package.
        DataError: a damaged file.
    """
    folder = Path(folder)
    settings = {**_read_json(folder / "special_tokens_map.json"), **_read_json(folder / "tokenizer_config.json")}
    named = settings.get("tokenizer_class") or _read_json(folder / "config.json").get("tokenizer_class")
    if (folder / "tokenizer.json").is_file():
        backend = _parse((folder / "tokenizer.json").read_text(encoding="utf-8"), str(folder / "tokenizer.json"))
        if json.loads(backend.to_str())["model"]["type"] == "WordPiece":
            return _load_wordpiece(folder, named)
        return _wrap(_read_words(backend), settings, folder)
    kind = str(named).removesuffix("Fast") if named else None
    if kind not in _FILES:
        if kind not in (None, "PreTrainedTokenizer"):
            raise ValueError(
                f"{folder}: its tokenizer {named} has no fast version here; supported are {', '.join(_FILES)}, and any "
                "with a tokenizer.json"
            )
        there = [kind for kind in _GUESSES if all((folder / name).is_file() for name in _FILES[kind])]
        kind = there[0] if there else "BertTokenizer"
    missing = [name for name in _FILES[kind] if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: no {' and no '.join(missing)} and no tokenizer.json; is it a Hugging Face BERT folder, or that "
            "of another text encoder?"
        )
    files = [folder / name for name in _FILES[kind]]
    if kind == "BertweetTokenizer":
        vocabulary = read_vocabulary(files[0])
        if "<mask>" not in vocabulary:  # added behind the others
            vocabulary["<mask>"] = len(vocabulary)
        return TweetTokenizer(
            _wrap(vocabulary_backend(vocabulary), settings, folder), merges_backend(vocabulary, read_merges(files[1]))
        )
    if kind == "RobertaTokenizer":
        return _wrap(_byte_pairs(*files), settings, folder)
    if len(files) == 1 and files[0].suffix == ".model":
        return _wrap(_read_words(_convert_sentencepiece(f"{kind}Fast", folder)), settings, folder)
    return _load_wordpiece(folder, named)


def _load_wordpiece(folder: Path, named: str | None):
    import transformers

    # All are BERT's; transformers warns of a folder that is loaded through another class than it names.
    kind = str(named).removesuffix("Fast")
    name = kind if _FILES.get(kind) == ("vocab.txt",) else "BertTokenizer"
    return getattr(transformers, f"{name}Fast", transformers.BertTokenizerFast).from_pretrained(str(folder))


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(str(file), f"no valid JSON ({error})", "a JSON object", "Fetch the folder again.") from None
    if not isinstance(content, dict):
        raise DataError(str(file), type(content).__name__, "a JSON object", "Fetch the folder again.")
    return content


def _parse(text: str, where: str):
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_str(text)
    except Exception as error:  # the only type that tokenizers raises
        raise DataError(
            where, f"a damaged tokenizer ({error})", "the JSON of a fast tokenizer", "Copy it again."
        ) from None


def _read_words(backend):
    """The backend with the sign of a blank before every word, wherever it stands; no pieces for invisible words."""
    content = json.loads(backend.to_str())
    parts = [content["pre_tokenizer"] or {}]
    parts += parts[0].get("pretokenizers", [])
    for part in parts:
        if part.get("type") == "ByteLevel":
            part["add_prefix_space"] = True
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "always"
            strip = {"type": "Strip", "strip_left": True, "strip_right": True}
            steps = [step for step in (content["normalizer"], strip) if step]
            content["normalizer"] = {"type": "Sequence", "normalizers": steps}
    return _parse(json.dumps(content), "a tokenizer")


def _byte_pairs(vocabulary: Path, merges: Path):
    """RoBERTa's, of its two files."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    try:
        backend = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
    except Exception as error:  # the only type that tokenizers raises
        raise DataError(
            f"{vocabulary} and {merges.name}", f"a damaged vocabulary ({error})", "pairs of bytes", "Fetch it again."
        ) from None
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    ends = [(token, backend.token_to_id(token)) for token in ("</s>", "<s>")]
    if all(index is not None for _, index in ends):
        backend.post_processor = processors.RobertaProcessing(*ends, trim_offsets=True, add_prefix_space=True)
    return backend


def _convert_sentencepiece(name: str, folder: Path):
    import transformers

    try:
        for package in ("sentencepiece", "google.protobuf"):
            importlib.import_module(package)
    except ImportError as error:
        raise ValueError(
            f"{folder}: its SentencePiece model must be converted, for which transformers needs the packages "
            "sentencepiece and protobuf: pip install them, or put the tokenizer.json of the same model beside it"
        ) from error
    try:
        return getattr(transformers, name).from_pretrained(str(folder)).backend_tokenizer
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(str(folder), f"a damaged model ({error})"[:300], "SentencePiece's", "Fetch it again.") from None


def _wrap(backend, settings: Mapping[str, Any], folder: Path):
    """The tokenizer around a backend, with the special tokens that the folder names, or the usual."""
    special = {}
    for role, usual in _USUAL.items():
        found = settings.get(role)
        found = found.get("content") if isinstance(found, Mapping) else found
        candidates = [token for token in (found, *usual) if isinstance(token, str)]
        special[role] = next((token for token in candidates if backend.token_to_id(token) is not None), None)
    missing = [role for role in ("unk_token", "sep_token", "cls_token") if special[role] is None]
    if missing:
        raise ValueError(
            f"{folder}: its vocabulary has no {', '.join(missing)}; special_tokens_map.json must say what they are"
        )
    return FastTokenizer(backend, special)


# --- inside a checkpoint ---------------------------------------------------------------------------------------------


def tokenizer_to_json(tokenizer) -> dict[str, Any]:
    """A tokenizer as JSON: "tokenizer" and "special_tokens", and "merges" for BERTweet's."""
    special = {name: getattr(tokenizer, name) for name in ROLES}
    saved = {"tokenizer": tokenizer.backend_tokenizer.to_str(), "special_tokens": special}
    return saved | ({"merges": tokenizer.merges.to_str()} if isinstance(tokenizer, TweetTokenizer) else {})


def tokenizer_from_json(saved: Mapping[str, Any]):
    """The tokenizer of :func:`tokenizer_to_json`, without any folder.

    Only the five special tokens get through.
    Raises :class:`tmrjax.files.DataError` for what is no such JSON.
    """
    where = "the tokenizer of a checkpoint"

    def fail(found: str, expected: str) -> DataError:
        return DataError(where, found, expected, "Copy the checkpoint again.")

    keys = {"tokenizer", "special_tokens"}
    if not isinstance(saved, Mapping) or saved.keys() - {"merges"} != keys:
        raise fail("another object", "the keys tokenizer, special_tokens")
    texts, special = [saved["tokenizer"], *([saved["merges"]] if "merges" in saved else [])], saved["special_tokens"]
    if not all(isinstance(text, str) for text in texts) or not isinstance(special, Mapping):
        raise fail("other types", "strings and an object")
    foreign = [name for name in special if name not in ROLES]
    if foreign or not all(isinstance(token, str | None) for token in special.values()):
        found = f"the special tokens {', '.join(map(repr, foreign))}"[:200] if foreign else "a special token of no text"
        raise fail(found, f"texts for some of {', '.join(ROLES)}")
    backend, *merges = (_parse(text, where) for text in texts)
    tokenizer = FastTokenizer(backend, special)
    return TweetTokenizer(tokenizer, *merges) if merges else tokenizer

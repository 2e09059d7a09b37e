"""A trained model as one folder to hand over: weights, tokenizer, preprocessing, labels, and a card that tells of it.

    model.safetensors        every array, by its path in the parameters (``params.bert.layer_0...``)
    config.json              task, method, sizes, encoders, data hashes, versions, figures on dev; SHA-256 of the others
    tokenizer.json           as the tokenizers library reads it; special_tokens_map.json; merges.json (BERTweet)
    preprocessing.json       how text is split and cut, how pictures become pixels
    labels.json              entity types or relations, in order
    README.md                the model card, with metadata for the Hugging Face hub

Nothing in it is pickled, and no path of the machine that trained it is kept. In float32 predictions are equal to the
last bit. ``bfloat16`` halves the file: matrices are rounded, vectors are not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.flax import save as safetensors_bytes

from tmrjax import __version__
from tmrjax.convert.state_dicts import WEIGHTS, read_state_dict
from tmrjax.files import DataError, parse_json, read_bytes, sha256, write_atomic
from tmrjax.training.checkpoints import CheckpointError

FORMAT = 1
CONFIG, CARD = "config.json", "README.md"
DTYPES = ("float32", "bfloat16")
# Parts of a checkpoint's JSON -> the file that has them.
_PARTS = {"labels": "labels.json", "preprocessing": "preprocessing.json"}
_TOKENIZER = {"tokenizer": "tokenizer.json", "special_tokens": "special_tokens_map.json", "merges": "merges.json"}
FILES = (CONFIG, WEIGHTS, CARD, *_PARTS.values(), *_TOKENIZER.values())
"""What is fetched of a hub's model."""


def is_folder(path: Path) -> bool:
    """Whether a folder is one of these; a training run has no weights beside its config.json."""
    return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()


def write_folder(
    folder: Path, variables: Mapping[str, Any], meta: Mapping[str, Any], card: str, *, dtype: str = "float32"
) -> None:
    """Write a model: its variables, its checkpoint's JSON and the text of its card. The config comes last.

    Raises ValueError for another ``dtype`` or where a folder holds something else.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
    if folder.is_dir() and not is_folder(folder) and any(folder.iterdir()):
        raise ValueError(f"{folder}: holds other files; name a new folder, or one that was exported before")
    folder.mkdir(parents=True, exist_ok=True)
    contents = {WEIGHTS: safetensors_bytes(flat(variables, dtype)), CARD: card.encode()}
    rest = {key: value for key, value in meta.items() if key not in ("labels", "text", "pictures", "tokenizer")}
    contents[_PARTS["labels"]] = _json(meta["labels"])
    contents[_PARTS["preprocessing"]] = _json({"text": meta["text"], "pictures": meta["pictures"]})
    for key, content in (meta["tokenizer"] or {}).items():
        contents[_TOKENIZER[key]] = content.encode() if isinstance(content, str) else _json(content)
    about = {"library_name": "tmrjax", "folder_format": FORMAT, "version": __version__, "dtype": dtype}
    about |= {"files": {name: sha256(content) for name, content in contents.items()}, **without_paths(rest)}
    (folder / CONFIG).unlink(missing_ok=True)  # a folder that is half written has none
    for name, content in contents.items():
        write_atomic(folder / name, content)
    write_atomic(folder / CONFIG, _json(about))


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables and checkpoint JSON of a folder, every file checked against its SHA-256 but the card, which is to be
    edited.

    Raises CheckpointError: a file lacks or is another one, or the folder is of another library or version.
    """
    try:
        about = parse_json(read_bytes(folder / CONFIG), str(folder / CONFIG))
    except DataError as error:
        raise CheckpointError(f"{folder / CONFIG}: damaged ({error.found}); copy the folder again") from error
    if not isinstance(about, dict) or about.get("library_name") != "tmrjax":
        raise CheckpointError(f"{folder}: no model of tmrjax, its {CONFIG} does not say so; did export.py write it?")
    if about.get("folder_format") != FORMAT:
        raise CheckpointError(
            f"{folder}: folder format {about.get('folder_format')!r}, but this version reads {FORMAT}: take the "
            f"version of tmrjax that wrote it ({about.get('version')}), or export the model again"
        )
    hashes = about.get("files")
    if not isinstance(hashes, dict) or not {WEIGHTS, *_PARTS.values()} <= hashes.keys() <= set(FILES):
        raise CheckpointError(f"{folder / CONFIG}: damaged (its list of files); copy the folder again")
    names = hashes.keys() - {CARD}
    for name in names:
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder / name}: missing; copy the folder again")
        with (folder / name).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != hashes[name]:
            raise CheckpointError(
                f"{folder / name}: its SHA-256 is {found}, but {CONFIG} says {hashes[name]}; copy the folder again"
            )
    ours = ("library_name", "folder_format", "version", "files", "dtype")
    meta = {key: value for key, value in about.items() if key not in ours}
    meta["labels"] = json.loads(read_bytes(folder / _PARTS["labels"]))
    meta |= json.loads(read_bytes(folder / _PARTS["preprocessing"]))
    meta["tokenizer"] = None
    if _TOKENIZER["tokenizer"] in names:
        texts = {key: read_bytes(folder / name).decode() for key, name in _TOKENIZER.items() if name in names}
        meta["tokenizer"] = texts | {"special_tokens": json.loads(texts["special_tokens"])}
    return nested(read_state_dict(folder / WEIGHTS)), meta


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def flat(variables: Mapping[str, Any], dtype: str = "float32") -> dict[str, jax.Array]:
    """Arrays by their path, joined by dots."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
        names = [key.key for key in path]
        if any("." in name for name in names):
            raise ValueError(f"the parameter {'/'.join(names)} has a dot in its name and cannot be exported")
        array = jnp.asarray(leaf)
        matrix = array.ndim > 1 and array.dtype == jnp.float32
        found[".".join(names)] = array.astype(jnp.bfloat16) if dtype == "bfloat16" and matrix else array
    return found


def nested(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The inverse of :func:`flat`."""
    found: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, array in arrays.items():
        *path, last = name.split(".")
        place = found
        for part in path:
            place = place.setdefault(part, {})
        place[last] = array
    return found


def without_paths(value: Any) -> Any:
    """Absolute paths shortened to their last part: nobody else has these folders, and they tell of the machine."""
    if isinstance(value, Mapping):
        return {key: without_paths(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths(part) for part in value]
    return os.path.basename(value.rstrip(os.sep)) if isinstance(value, str) and os.path.isabs(value) else value

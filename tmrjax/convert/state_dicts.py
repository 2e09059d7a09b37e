"""Weights and configs off a disk: safetensors, whole or in shards, and config.json. Nothing here needs torch."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the weights of a Hugging Face folder, or of one .safetensors file, without torch.

    Args:
      path: a folder with model.safetensors, or with model.safetensors.index.json and its shards; or a file.

    Returns:
      Name → array; float16 and bfloat16 become float32, other types stay as they are.

    Raises:
      FileNotFoundError: the path, a shard, or weights in a form that is read here are not there; says what is.
      ValueError: a file is damaged, or an index and its shards disagree.
    """
    path = Path(path)
    if path.is_file():
        if path.suffix != ".safetensors":
            raise ValueError(f"{path}: not a .safetensors file; {_HOW_TO_CONVERT}")
        return _read_safetensors(path)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder or file of weights")
    if (path / WEIGHTS).is_file():
        return _read_safetensors(path / WEIGHTS)
    if (path / INDEX).is_file():
        return read_shards(path / INDEX)
    present = sorted(entry.name for entry in path.iterdir())
    listing = ", ".join(present) if present else "nothing"
    pickled = any(name.endswith((".bin", ".pth", ".pt", ".ckpt")) for name in present)
    raise FileNotFoundError(
        f"{path}: no weights, neither {WEIGHTS} nor {INDEX}; the folder holds {listing}. "
        + (_HOW_TO_CONVERT if pickled else _NOT_FETCHED)
    )


_HOW_TO_CONVERT = (
    "Pickled PyTorch weights (.bin, .pth) are not read; write them as safetensors once, where torch is installed: "
    "python data_prep/convert_weights.py FOLDER"
)
_NOT_FETCHED = (
    "Pickled weights of a model of the hub are not fetched; if it has no others: "
    "python data_prep/convert_weights.py OWNER/NAME --out=FOLDER"
)


def read_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads config.json of a folder (or the file itself).

    Raises FileNotFoundError if it is not there, ValueError if it is no JSON object.
    """
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; an encoder folder needs its config.json")
    config = _read_json(file)
    if not isinstance(config, dict):
        raise ValueError(f"{file}: expected a JSON object, found {type(config).__name__}")
    return config


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from error


def _read_safetensors(file: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(file, framework="numpy") as tensors:
            return {name: _widen(tensors.get_tensor(name)) for name in tensors.keys()}  # noqa: SIM118 (no iterator)
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or not a safetensors file ({error}); fetch it again") from error


def _widen(array: np.ndarray) -> np.ndarray:
    is_narrow = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if is_narrow else array


def read_shards(index: Path, read: Callable[[Path], dict[str, Any]] = _read_safetensors) -> dict[str, Any]:
    """The tensors of all shards that an index names, each shard read by ``read``.

    Raises FileNotFoundError for a shard that is not there; ValueError for an index of another form, for a shard outside
    of the index's folder, and where the index and a shard disagree about which tensors it holds.
    """
    content = _read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f'{index}: expected {{"weight_map": {{name: file}}}}')
    state_dict: dict[str, Any] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{index}: shard {shard!r} is not a file name in the same folder")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index.parent / shard}: no such shard, though {index.name} names it; fetch it")
        found = read(index.parent / shard)
        wanted = {name for name, place in places.items() if place == shard}
        if wanted != found.keys():
            difference = ", ".join(sorted(wanted ^ found.keys()))
            raise ValueError(f"{index.parent / shard}: {index.name} and this shard disagree about {difference}")
        state_dict.update(found)
    return state_dict

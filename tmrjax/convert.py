"""Weights of others into ours: state dicts of Hugging Face, torchvision and timm as tables of name pairs.

A conversion is a list of ``Entry`` (their name, our path, a transpose) and a list of their names that are dropped
knowingly. ``fill`` applies it and accounts for every name: whatever is missing, left over or of another shape is
raised, all of it in one error. Nothing here needs torch.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open

from tmrjax.encoders.bert import BertConfig, BertEncoder
from tmrjax.encoders.resnet import ResNetConfig, ResNetEncoder

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Entry(NamedTuple):
    """One tensor: ``ours``, a path such as "params/stem/kernel", is ``theirs`` with its axes in the order ``axes``."""

    theirs: str
    ours: str
    axes: tuple[int, ...] | None = None


LINEAR = (1, 0)  # torch.nn.Linear has [out, in]
CONVOLUTION = (2, 3, 1, 0)  # torch.nn.Conv2d has [out, in, height, width]

# Names that hold nothing for the encoders: full matches.
BERT_DROPPED = (r"cls\..*", r"pooler\..*", r"(.*\.)?position_ids", r"(.*\.)?token_type_ids")
RESNET_DROPPED = (r"fc\..*", r"classifier\..*", r".*\.num_batches_tracked")


# --- reading ----------------------------------------------------------------------------------------------------------


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
        return _read_shards(path / INDEX)
    present = sorted(entry.name for entry in path.iterdir())
    listing = ", ".join(present) if present else "nothing"
    advice = f" {_HOW_TO_CONVERT}" if any(name.endswith((".bin", ".pth", ".pt", ".ckpt")) for name in present) else ""
    raise FileNotFoundError(f"{path}: no weights, neither {WEIGHTS} nor {INDEX}; the folder holds {listing}.{advice}")


_HOW_TO_CONVERT = (
    "Pickled PyTorch weights are not read; write them as safetensors once, where torch and transformers are installed: "
    "AutoModel.from_pretrained(FOLDER).save_pretrained(FOLDER), "
    'or safetensors.torch.save_file(state_dict, "model.safetensors")'
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


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    content = _read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise ValueError(f'{index}: expected {{"weight_map": {{name: file}}}}')
    state_dict: dict[str, np.ndarray] = {}
    for shard in sorted(set(places.values())):
        if Path(shard).name != shard:
            raise ValueError(f"{index}: shard {shard!r} is not a file name in the same folder")
        if not (index.parent / shard).is_file():
            raise FileNotFoundError(f"{index.parent / shard}: no such shard, though {index.name} names it; fetch it")
        found = _read_safetensors(index.parent / shard)
        wanted = {name for name, place in places.items() if place == shard}
        if wanted != found.keys():
            difference = ", ".join(sorted(wanted ^ found.keys()))
            raise ValueError(f"{index.parent / shard}: {index.name} and this shard disagree about {difference}")
        state_dict.update(found)
    return state_dict


# --- applying a table -------------------------------------------------------------------------------------------------


def fill(
    state_dict: Mapping[str, np.ndarray],
    table: Iterable[Entry],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dropped: Sequence[str] = (),
    what: str = "state dict",
) -> dict[str, Any]:
    """Arranges a state dict as a tree of float32 arrays.

    Args:
      state_dict: name → array.
      table: the pairs of names.
      shapes: our path → our shape, of every array of the tree; ``shapes_of`` gives them for a module.
      dropped: regular expressions for names that are left out knowingly (full matches).
      what: names the source in the error.

    Raises:
      ValueError: lists every missing, extra and misshaped name, the latter with the shape found and the one expected,
        both as the source writes them.
    """
    table = list(table)
    ours = [entry.ours for entry in table]
    if sorted(ours) != sorted(shapes):  # a fault of the table, not of the weights
        raise AssertionError(f"the table does not cover the model once: {sorted(set(ours) ^ set(shapes))}")
    faults, flat = [], {}
    for entry in table:
        expected = _source_shape(shapes[entry.ours], entry.axes)
        if entry.theirs not in state_dict:
            faults.append(f"missing: {entry.theirs} {expected}")
            continue
        array = np.asarray(state_dict[entry.theirs])
        if array.shape != expected:
            faults.append(f"misshaped: {entry.theirs} is {array.shape}, expected {expected}")
        elif not jnp.issubdtype(array.dtype, jnp.floating):
            faults.append(f"not floating: {entry.theirs} is {array.dtype} (quantised weights are not supported)")
        else:
            array = array if entry.axes is None else array.transpose(entry.axes)
            flat[entry.ours] = np.ascontiguousarray(array, dtype=np.float32)
    known = {entry.theirs for entry in table}
    drop = re.compile("|".join(f"(?:{pattern})" for pattern in dropped) or r"(?!)")
    for name in sorted(set(state_dict) - known):
        if not drop.fullmatch(name):
            faults.append(f"extra: {name} {np.shape(state_dict[name])}")
    if faults:
        lines = "\n  ".join(faults)
        raise ValueError(f"{what}: {len(faults)} of its names do not fit the config:\n  {lines}")
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _source_shape(shape: tuple[int, ...], axes: tuple[int, ...] | None) -> tuple[int, ...]:
    if axes is None:
        return shape
    source = [0] * len(shape)
    for ours, theirs in enumerate(axes):
        source[theirs] = shape[ours]
    return tuple(source)


def shapes_of(module: nn.Module, *arguments: Any, **keywords: Any) -> dict[str, tuple[int, ...]]:
    """Path → shape of every variable that ``module`` makes for these arguments; nothing is computed."""
    variables = jax.eval_shape(lambda key: module.init(key, *arguments, **keywords), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flax.traverse_util.flatten_dict(variables, sep="/").items()}


def without_prefix(state_dict: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The same arrays, ``prefix`` taken off the names that have it.

    Raises ValueError where two names become one.
    """
    renamed = {name.removeprefix(prefix): array for name, array in state_dict.items()}
    if len(renamed) != len(state_dict):
        doubled = sorted(name for name in state_dict if prefix + name in state_dict)
        raise ValueError(f"state dict: names that stand there with and without prefix {prefix!r}: {', '.join(doubled)}")
    return renamed


# --- BERT -------------------------------------------------------------------------------------------------------------


def bert_table(config: BertConfig) -> list[Entry]:
    """Hugging Face's ``BertModel`` (without its prefix and pooler) beside ``BertEncoder``."""
    table = [
        Entry(f"embeddings.{name}_embeddings.weight", f"params/embeddings/{name}/embedding")
        for name in ("word", "position", "token_type")
    ]
    table += _layer_norm("embeddings.LayerNorm", "params/embeddings/norm")
    for index in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layer.{index}", f"params/layer_{index}"
        for name in ("query", "key", "value"):
            table += _linear(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
        table += _linear(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        table += _layer_norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm")
        table += _linear(f"{theirs}.intermediate.dense", f"{ours}/intermediate")
        table += _linear(f"{theirs}.output.dense", f"{ours}/output")
        table += _layer_norm(f"{theirs}.output.LayerNorm", f"{ours}/output_norm")
    return table


def _linear(theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}.weight", f"{ours}/kernel", LINEAR), Entry(f"{theirs}.bias", f"{ours}/bias")]


def _layer_norm(theirs: str, ours: str) -> list[Entry]:
    return [Entry(f"{theirs}.weight", f"{ours}/scale"), Entry(f"{theirs}.bias", f"{ours}/bias")]


def bert_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of the variables of ``BertEncoder``."""
    token = jnp.zeros((1, 1), jnp.int32)
    return shapes_of(BertEncoder(config), token, token, train=False)


def bert_params(state_dict: Mapping[str, np.ndarray], config: BertConfig) -> dict[str, Any]:
    """The parameters of ``BertEncoder(config)`` out of a Hugging Face state dict.

    Names are read with or without the prefix ``bert.``, layer norms as ``weight``, ``bias`` or, as in the oldest files,
    ``gamma``, ``beta``. The pooler, the pre-training heads ``cls.*`` and the buffers ``position_ids`` and
    ``token_type_ids`` are left out knowingly.

    Raises ValueError that lists every missing, extra and misshaped name.
    """
    old_names = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    renamed = {}
    for name, array in without_prefix(state_dict, "bert.").items():
        for old, new in old_names.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new  # noqa: PLW2901 (at most one of the two fits)
        if name in renamed:
            raise ValueError(f"BERT state dict: {name} stands there twice, under its old name and its new one")
        renamed[name] = array
    return fill(renamed, bert_table(config), bert_shapes(config), dropped=BERT_DROPPED, what="BERT state dict")[
        "params"
    ]


# --- ResNet -----------------------------------------------------------------------------------------------------------


def resnet_table(config: ResNetConfig, *, names: str) -> list[Entry]:
    """A ResNet's names beside ``ResNetEncoder``'s; ``names``: "huggingface" or "torchvision" (timm)."""
    convolutions = 3 if config.layer_type == "bottleneck" else 2
    hugging_face = names == "huggingface"

    def conv_norm(convolution: str, norm: str, ours: str) -> list[Entry]:
        return [
            Entry(f"{convolution}.weight", f"params/{ours}/kernel", CONVOLUTION),
            Entry(f"{norm}.weight", f"params/{ours}/scale"),
            Entry(f"{norm}.bias", f"params/{ours}/bias"),
            Entry(f"{norm}.running_mean", f"batch_stats/{ours}/mean"),
            Entry(f"{norm}.running_var", f"batch_stats/{ours}/var"),
        ]

    def pair(theirs: str, ours: str) -> list[Entry]:
        return conv_norm(f"{theirs}.convolution", f"{theirs}.normalization", ours)

    table = pair("embedder.embedder", "stem") if hugging_face else conv_norm("conv1", "bn1", "stem")
    channels = config.embedding_size
    for stage, (features, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        for block in range(depth):
            ours = f"stage_{stage}_block_{block}"
            theirs = f"encoder.stages.{stage}.layers.{block}" if hugging_face else f"layer{stage + 1}.{block}"
            for index in range(convolutions):
                name = f"{ours}/conv_{index + 1}"
                if hugging_face:
                    table += pair(f"{theirs}.layer.{index}", name)
                else:
                    table += conv_norm(f"{theirs}.conv{index + 1}", f"{theirs}.bn{index + 1}", name)
            if block == 0 and (stage > 0 or channels != features):
                if hugging_face:
                    table += pair(f"{theirs}.shortcut", f"{ours}/shortcut")
                else:
                    table += conv_norm(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
        channels = features
    return table


def resnet_shapes(config: ResNetConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of the variables of ``ResNetEncoder``."""
    pixels = jnp.zeros((1, config.stride, config.stride, config.num_channels))
    return shapes_of(ResNetEncoder(config), pixels, train=False)


def resnet_params(state_dict: Mapping[str, np.ndarray], config: ResNetConfig) -> dict[str, Any]:
    """The variables of ``ResNetEncoder(config)``: ``{"params": ..., "batch_stats": ...}``.

    Hugging Face's names (with or without the prefix ``resnet.``) and torchvision's and timm's are told apart by what
    stands there. The classifier (``fc.*``, ``classifier.*``) and ``num_batches_tracked`` are left out knowingly.

    Raises ValueError that lists every missing, extra and misshaped name.
    """
    state_dict = without_prefix(state_dict, "resnet.")
    tables = [resnet_table(config, names=names) for names in ("huggingface", "torchvision")]
    table = max(tables, key=lambda table: sum(entry.theirs in state_dict for entry in table))
    return fill(state_dict, table, resnet_shapes(config), dropped=RESNET_DROPPED, what="ResNet state dict")

"""What the converters of released checkpoints share: sizes out of shapes, tables of name pairs.

A converter of a method is a module of this folder with a function ``read(state_dict, *, task, num_attention_heads,
**sizes)`` that returns a :class:`Released`; :func:`tmrjax.convert.method_from_release` finds it by the method's name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.bert import BERT_DROPPED, bert_table
from tmrjax.convert.resnet import RESNET_DROPPED, resnet_table
from tmrjax.convert.tables import Entry, linear
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.methods.base import Method

# Names of torch.nn.LSTM's arrays and ours, with the order of axes.
_LSTM_WEIGHTS = {
    "weight_ih": ("input_kernel", (1, 0)),
    "weight_hh": ("recurrent_kernel", (1, 0)),
    "bias_ih": ("input_bias", None),
    "bias_hh": ("recurrent_bias", None),
}


class Released(NamedTuple):
    """What a converter makes of a state dict.

    method: with ``literal=True`` and the sizes found. table: pairs of names, ours with their collection
    ("params/emission/kernel"). dropped: regular expressions of names that the method does not use. batch: one small row
    with every key that the method reads, to trace it with.
    """

    method: Method
    table: Sequence[Entry]
    dropped: Sequence[str]
    batch: Mapping[str, Any]


def crf_entries(theirs: str, ours: str) -> list[Entry]:
    """A CRF of pytorch-crf: its transitions are from → to, like ours."""
    return [
        Entry(f"{theirs}.{name}", f"{ours}/{name}") for name in ("transitions", "start_transitions", "end_transitions")
    ]


def linear_entries(layers: Mapping[str, str]) -> list[Entry]:
    """Linear layers with biases, their name -> ours below the parameters."""
    return [entry for theirs, ours in layers.items() for entry in linear(theirs, f"params/{ours}")]


def lstm_entries(theirs: str, ours: str, num_layers: int = 1) -> list[Entry]:
    """A bidirectional LSTM of PyTorch."""
    return [
        Entry(f"{theirs}.{name}_l{layer}{suffix}", f"{ours}/layer_{layer}/{direction}/{own}", axes)
        for layer in range(num_layers)
        for direction, suffix in (("forward", ""), ("backward", "_reverse"))
        for name, (own, axes) in _LSTM_WEIGHTS.items()
    ]


def bert_entries(config: BertConfig, prefix: str, ours: str = "bert") -> tuple[list[Entry], list[str]]:
    """(table, dropped names) of a BERT under ``prefix``."""
    table = below(bert_table(config), prefix, ours)
    return table, [re.escape(prefix) + pattern for pattern in BERT_DROPPED]


def resnet_entries(config: ResNetConfig, prefix: str) -> tuple[list[Entry], list[str]]:
    """(table, dropped names) of a ResNet with torchvision's names under ``prefix``, the picture encoder."""
    table = below(resnet_table(config, names="torchvision"), prefix, "picture_encoder/resnet")
    return table, [re.escape(prefix) + pattern for pattern in RESNET_DROPPED]


def text_batch(length: int, rows: int = 1) -> dict[str, Any]:
    """Keys of either task that every method over word pieces reads."""
    return {
        "input_ids": jnp.zeros((rows, length), jnp.int32),
        "attention_mask": jnp.ones((rows, length), bool),
        "word_starts": jnp.zeros((rows, length - 2), jnp.int32),
        "word_mask": jnp.ones((rows, length - 2), bool),
        "head_start": jnp.zeros(rows, jnp.int32),
        "tail_start": jnp.zeros(rows, jnp.int32),
    }


def bert_config_from_shapes(
    state_dict: Mapping[str, np.ndarray], prefix: str, num_attention_heads: int | None = None
) -> BertConfig:
    """Sizes of a BERT under ``prefix``; heads are not in the shapes: hidden / 64, as in every released BERT."""

    def shape(name: str) -> tuple[int, ...]:
        if prefix + name not in state_dict:
            raise ValueError(f"released state dict: {prefix}{name} is missing, from which BERT's size is read")
        return np.shape(state_dict[prefix + name])

    vocabulary, hidden = shape("embeddings.word_embeddings.weight")
    if num_attention_heads is None and hidden % 64:
        raise ValueError(f"hidden size {hidden} is no multiple of 64: give num_attention_heads")
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=count(state_dict, rf"{re.escape(prefix)}encoder\.layer\.(\d+)\."),
        num_attention_heads=num_attention_heads or hidden // 64,
        intermediate_size=shape("encoder.layer.0.intermediate.dense.weight")[0],
        max_position_embeddings=shape("embeddings.position_embeddings.weight")[0],
        type_vocab_size=shape("embeddings.token_type_embeddings.weight")[0],
    )


def resnet_config_from_shapes(state_dict: Mapping[str, np.ndarray], prefix: str) -> ResNetConfig | None:
    """Sizes of a ResNet with timm's names under ``prefix``; None where there is none."""
    if not any(name.startswith(prefix) for name in state_dict):
        return None
    start = re.escape(prefix)
    bottleneck = f"{prefix}layer1.0.conv3.weight" in state_dict
    stages = count(state_dict, rf"{start}layer(\d+)\.", first=1)
    last = "conv3" if bottleneck else "conv2"
    try:
        return ResNetConfig(
            embedding_size=state_dict[f"{prefix}conv1.weight"].shape[0],
            hidden_sizes=tuple(state_dict[f"{prefix}layer{i}.0.{last}.weight"].shape[0] for i in range(1, stages + 1)),
            depths=tuple(count(state_dict, rf"{start}layer{i}\.(\d+)\.") for i in range(1, stages + 1)),
            layer_type="bottleneck" if bottleneck else "basic",
        )
    except KeyError as missing:
        raise ValueError(f"released state dict: {missing} is missing, from which the ResNet's size is read") from None


def count(state_dict: Mapping[str, np.ndarray], pattern: str, first: int = 0) -> int:
    """How many numbers ``pattern`` finds at the start of names; raises ValueError where they are no row."""
    found = {int(match.group(1)) for name in state_dict if (match := re.match(pattern, name))}
    if found != set(range(first, first + len(found))) or not found:
        raise ValueError(f"released state dict: numbers {sorted(found)} of {pattern!r} are no row from {first} on")
    return len(found)


def below(table: list[Entry], theirs: str, ours: str) -> list[Entry]:
    """The same pairs with ``theirs`` before their names and ``ours`` after the collection of our paths."""
    result = []
    for entry in table:
        collection, path = entry.ours.split("/", 1)
        result.append(Entry(theirs + entry.theirs, f"{collection}/{ours}/{path}", entry.axes))
    return result


def rows(state_dict: Mapping[str, np.ndarray], name: str) -> int:
    """Rows of an array; raises ValueError where the name is missing."""
    if name not in state_dict:
        raise ValueError(f"released state dict: {name} is missing, from which the model's size is read")
    return len(state_dict[name])

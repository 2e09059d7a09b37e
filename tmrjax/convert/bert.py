"""BERT and ResNet under the names of Hugging Face, torchvision and timm."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.tables import CONVOLUTION, LINEAR, Entry, fill, shapes_of, without_prefix
from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder
from tmrjax.encoders.text.bert import BertConfig, BertEncoder

# Names that hold nothing for the encoders: full matches.
BERT_DROPPED = (r"cls\..*", r"pooler\..*", r"(.*\.)?position_ids", r"(.*\.)?token_type_ids")
RESNET_DROPPED = (r"fc\..*", r"classifier\..*", r".*\.num_batches_tracked")


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

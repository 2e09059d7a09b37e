"""From a config.json to an encoder: which class builds a ``model_type``."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tmrjax.encoders.base import PictureConfig, TextConfig
from tmrjax.encoders.picture.clip import CLIPVisionConfig, CLIPVisionEncoder
from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder
from tmrjax.encoders.picture.swin import SwinConfig, SwinEncoder
from tmrjax.encoders.picture.vit import ViTConfig, ViTEncoder
from tmrjax.encoders.text.bert import BertConfig, BertEncoder
from tmrjax.encoders.text.deberta import DebertaConfig, DebertaEncoder
from tmrjax.encoders.text.distilbert import DistilBertConfig, DistilBertEncoder
from tmrjax.encoders.text.electra import ElectraConfig, ElectraEncoder
from tmrjax.encoders.text.roberta import MODEL_TYPES as ROBERTA_TYPES
from tmrjax.encoders.text.roberta import RobertaConfig, RobertaEncoder

TEXT_CONFIGS = {
    "bert": BertConfig,
    **dict.fromkeys(ROBERTA_TYPES, RobertaConfig),
    "electra": ElectraConfig,
    "distilbert": DistilBertConfig,
    "deberta-v2": DebertaConfig,
}
TEXT_ENCODERS = {
    BertConfig: BertEncoder,
    RobertaConfig: RobertaEncoder,
    ElectraConfig: ElectraEncoder,
    DistilBertConfig: DistilBertEncoder,
    DebertaConfig: DebertaEncoder,
}
PICTURE_CONFIGS = {
    "resnet": ResNetConfig,
    "vit": ViTConfig,
    "clip": CLIPVisionConfig,
    "clip_vision_model": CLIPVisionConfig,
    "swin": SwinConfig,
}
PICTURE_ENCODERS = {
    ResNetConfig: ResNetEncoder,
    ViTConfig: ViTEncoder,
    CLIPVisionConfig: CLIPVisionEncoder,
    SwinConfig: SwinEncoder,
}


def picture_config(mapping: Mapping[str, Any]) -> PictureConfig:
    """The config of a picture encoder out of a config.json (timm's, which has an ``architecture``, for ResNets).

    Raises ValueError, with the names of those that are built, for another ``model_type``.
    """
    kind = mapping.get("model_type", "resnet" if "architecture" in mapping else None)
    if kind not in PICTURE_CONFIGS:
        supported = ", ".join(PICTURE_CONFIGS)
        raise ValueError(
            f"config.json: model_type {kind!r} is no picture encoder built here; supported are {supported}"
        )
    return PICTURE_CONFIGS[kind].from_dict(mapping)


def picture_encoder(
    config: PictureConfig,
    *,
    dtype: jnp.dtype = jnp.float32,
    batch_norm: str = "frozen",
    remat: bool = False,
    name: str | None = None,
) -> nn.Module:
    """The module of a config. ``batch_norm`` is a ResNet's; the others have no batch statistics."""
    settings = {"batch_norm": batch_norm} if isinstance(config, ResNetConfig) else {}
    return PICTURE_ENCODERS[type(config)](config, dtype=dtype, remat=remat, name=name, **settings)


def text_config(mapping: Mapping[str, Any]) -> TextConfig:
    """The config of a text encoder out of a config.json; the oldest files, without a ``model_type``, are BERT's.

    Raises ValueError, with the names of those that are built, for another ``model_type``.
    """
    kind = mapping.get("model_type", "bert")
    if kind not in TEXT_CONFIGS:
        supported = ", ".join(TEXT_CONFIGS)
        raise ValueError(f"config.json: model_type {kind!r} is no text encoder built here; supported are {supported}")
    return TEXT_CONFIGS[kind].from_dict(mapping)


def text_encoder(
    config: TextConfig, *, dtype: jnp.dtype = jnp.float32, remat: bool = False, name: str | None = None
) -> nn.Module:
    """The module of a config. ``remat``: each layer is computed again in the backward pass, which saves its memory."""
    return TEXT_ENCODERS[type(config)](config, dtype=dtype, remat=remat, name=name)


def parameter_name(config: TextConfig | PictureConfig) -> str:
    """What a method calls an encoder among its parameters: its model type, such as "bert" or "deberta_v2"."""
    return config.to_dict()["model_type"].replace("-", "_")


def grow_vocabulary(
    params: Mapping[str, Any], config: TextConfig, rows: int, seed: int
) -> tuple[dict[str, Any], TextConfig]:
    """A text encoder whose word table has at least ``rows`` rows: for the special tokens that a tokenizer was given.

    Args:
        params: of the encoder that ``config`` describes.
        config: the encoder's.
        rows: how many the tokenizer needs, ``len(tokenizer)``. A table that is long enough stays as it is: many have
            more rows than their tokenizer has tokens.
        seed: of the new rows, drawn as the table is initialised, from N(0, 0.02²).

    Returns:
        params and config; ``vocab_size`` says what the table has now.
    """
    table = np.asarray(params["embeddings"]["word"]["embedding"])
    if rows <= config.vocab_size:
        return dict(params), config
    shape = (rows - config.vocab_size, table.shape[1])
    new = np.asarray(nn.initializers.normal(0.02)(jax.random.key(seed), shape, jnp.float32))
    embeddings = {**params["embeddings"], "word": {"embedding": np.concatenate([table, new.astype(table.dtype)])}}
    return {**params, "embeddings": embeddings}, dataclasses.replace(config, vocab_size=rows)

"""From a config.json to an encoder: which class builds a ``model_type``."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from tmrjax.encoders.base import PictureConfig, TextConfig
from tmrjax.encoders.picture.clip import CLIPVisionConfig, CLIPVisionEncoder
from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder
from tmrjax.encoders.picture.swin import SwinConfig, SwinEncoder
from tmrjax.encoders.picture.vit import ViTConfig, ViTEncoder
from tmrjax.encoders.text.bert import BertConfig, BertEncoder

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
    """The config of a text encoder."""
    return BertConfig.from_dict(mapping)


def text_encoder(config: TextConfig, *, dtype: jnp.dtype = jnp.float32, remat: bool = False, name: str | None = None):
    """The module of a config."""
    del remat
    return BertEncoder(config, dtype, name=name)

"""ViT, CLIP's vision tower and Swin under Hugging Face's names; the variables of every picture encoder."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.resnet import resnet_params, resnet_shapes
from tmrjax.convert.tables import CONVOLUTION, LINEAR, Entry, fill, layer_norm, linear, shapes_of, without_prefix
from tmrjax.encoders.base import PictureConfig
from tmrjax.encoders.open import picture_encoder
from tmrjax.encoders.picture.clip import CLIPVisionConfig
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.picture.swin import SwinConfig
from tmrjax.encoders.picture.transformer import PictureTransformerConfig
from tmrjax.encoders.picture.vit import ViTConfig

# Names that hold nothing for the encoders: full matches.
VIT_DROPPED = (r"pooler\..*", r"classifier\..*", r"embeddings\.mask_token", r"decoder\..*")
CLIP_DROPPED = (
    r"text_model\..*",
    r"(text|visual)_projection\.weight",
    r"logit_scale",
    r"embeddings\.position_ids",
    r"classifier\..*",
)
SWIN_DROPPED = (*VIT_DROPPED, r".*\.relative_position_index")


def vit_table(config: ViTConfig) -> list[Entry]:
    """Hugging Face's ``ViTModel`` (without its prefix and pooler) beside ``ViTEncoder``."""
    table = [
        Entry("embeddings.cls_token", "params/class_token"),
        Entry("embeddings.position_embeddings", "params/positions"),
        *_patches("embeddings.patch_embeddings.projection"),
    ]
    for index in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layer.{index}", f"params/layer_{index}"
        for name in ("query", "key", "value"):
            table += linear(f"{theirs}.attention.attention.{name}", f"{ours}/attention/{name}")
        table += linear(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        table += linear(f"{theirs}.intermediate.dense", f"{ours}/intermediate")
        table += linear(f"{theirs}.output.dense", f"{ours}/output")
        table += layer_norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm")
        table += layer_norm(f"{theirs}.layernorm_after", f"{ours}/output_norm")
    return table + layer_norm("layernorm", "params/norm")


def clip_table(config: CLIPVisionConfig) -> list[Entry]:
    """Hugging Face's ``CLIPVisionModel`` (without its prefix) beside ``CLIPVisionEncoder``."""
    table = [
        Entry("embeddings.class_embedding", "params/class_token"),
        Entry("embeddings.position_embedding.weight", "params/positions"),
        Entry("embeddings.patch_embedding.weight", "params/patch_embeddings/kernel", CONVOLUTION),
        *layer_norm("pre_layrnorm", "params/pre_norm"),  # so it is spelled there
    ]
    for index in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layers.{index}", f"params/layer_{index}"
        for their_name, name in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "output")):
            table += linear(f"{theirs}.self_attn.{their_name}_proj", f"{ours}/attention/{name}")
        table += linear(f"{theirs}.mlp.fc1", f"{ours}/intermediate") + linear(f"{theirs}.mlp.fc2", f"{ours}/output")
        table += layer_norm(f"{theirs}.layer_norm1", f"{ours}/attention_norm")
        table += layer_norm(f"{theirs}.layer_norm2", f"{ours}/output_norm")
    return table + layer_norm("post_layernorm", "params/norm")


def swin_table(config: SwinConfig) -> list[Entry]:
    """Hugging Face's ``SwinModel`` (without its prefix) beside ``SwinEncoder``."""
    table = [
        *_patches("embeddings.patch_embeddings.projection"),
        *layer_norm("embeddings.norm", "params/patch_norm"),
    ]
    for stage, depth in enumerate(config.depths):
        for block in range(depth):
            theirs, ours = f"encoder.layers.{stage}.blocks.{block}", f"params/stage_{stage}_block_{block}"
            for name in ("query", "key", "value"):
                table += linear(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
            bias = f"{theirs}.attention.self.relative_position_bias_table"
            table.append(Entry(bias, f"{ours}/attention/position_bias"))
            table += linear(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
            table += linear(f"{theirs}.intermediate.dense", f"{ours}/intermediate")
            table += linear(f"{theirs}.output.dense", f"{ours}/output")
            table += layer_norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm")
            table += layer_norm(f"{theirs}.layernorm_after", f"{ours}/output_norm")
        if stage < len(config.depths) - 1:
            theirs, ours = f"encoder.layers.{stage}.downsample", f"params/merge_{stage}"
            table.append(Entry(f"{theirs}.reduction.weight", f"{ours}/reduction/kernel", LINEAR))
            table += layer_norm(f"{theirs}.norm", f"{ours}/norm")
    return table + layer_norm("layernorm", "params/norm")


def _patches(theirs: str) -> list[Entry]:
    return [
        Entry(f"{theirs}.weight", "params/patch_embeddings/kernel", CONVOLUTION),
        Entry(f"{theirs}.bias", "params/patch_embeddings/bias"),
    ]


def picture_shapes(config: PictureConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of the variables of ``picture_encoder(config)``."""
    if isinstance(config, ResNetConfig):
        return resnet_shapes(config)
    if isinstance(config, SwinConfig):
        side = config.patch_size * config.window_size * 2 ** (len(config.depths) - 1)
    else:
        side = config.image_size
    return shapes_of(picture_encoder(config), jnp.zeros((1, side, side, config.num_channels)), train=False)


def picture_variables(state_dict: Mapping[str, np.ndarray], config: PictureConfig) -> dict[str, Any]:
    """The variables of ``picture_encoder(config)``: ``{"params": ..., "batch_stats": ...}``, the latter empty but for
    ResNets.

    Names are read with or without the prefix of a model with a head (``vit.``, ``swin.``, ``vision_model.``, for
    ResNets see :func:`resnet_params`). Heads, poolers, buffers and CLIP's text tower are left out knowingly.

    Raises ValueError that lists every missing, extra and misshaped name.
    """
    if isinstance(config, ResNetConfig):
        return resnet_params(state_dict, config)
    prefix, table, dropped, what = _SOURCES[type(config)]
    state_dict = without_prefix(state_dict, prefix)
    if isinstance(config, PictureTransformerConfig):
        # ViT's file has axes of length 1 before the class token and the positions.
        for name in ("embeddings.cls_token", "embeddings.position_embeddings"):
            if name in state_dict and np.ndim(state_dict[name]) == 3 and len(state_dict[name]) == 1:
                array = np.asarray(state_dict[name])[0]
                state_dict[name] = array[0] if name.endswith("cls_token") else array
    filled = fill(state_dict, table(config), picture_shapes(config), dropped=dropped, what=f"{what} state dict")
    return {"batch_stats": {}, **filled}


_SOURCES = {
    ViTConfig: ("vit.", vit_table, VIT_DROPPED, "ViT"),
    CLIPVisionConfig: ("vision_model.", clip_table, CLIP_DROPPED, "CLIP vision"),
    SwinConfig: ("swin.", swin_table, SWIN_DROPPED, "Swin"),
}

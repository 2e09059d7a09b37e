"""ViLT under the names of Hugging Face, and the authors' divergence estimator (MDE) under those of ViLT's own code."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.tables import CONVOLUTION, Entry, fill, layer_norm, linear, shapes_of, without_prefix
from tmrjax.divergence import DivergenceEstimator
from tmrjax.encoders.joint.vilt import ViltConfig, ViltEncoder

# Names that hold nothing for the encoder: full matches.
VILT_DROPPED = (
    r"mlm_score\..*",
    r"classifier\..*",
    r"rank_output\..*",
    r"(.*\.)?position_ids",
    r"(.*\.)?token_type_ids",
)
MDE_DROPPED = (r"(mlm|itm|mpp)_score\..*", r"rank_output\..*", r"(.*\.)?position_ids", r"(.*\.)?token_type_ids")

# ViLT's code builds its blocks with this ε, but its text embeddings with BERT's.
RELEASED_EPSILON, RELEASED_TEXT_EPSILON = 1e-6, 1e-12


def _text_embeddings(theirs: str, ours: str) -> list[Entry]:
    table = [
        Entry(f"{theirs}.{name}_embeddings.weight", f"{ours}/{name}/embedding")
        for name in ("word", "position", "token_type")
    ]
    return table + layer_norm(f"{theirs}.LayerNorm", f"{ours}/norm")


def vilt_table(config: ViltConfig) -> list[Entry]:
    """Hugging Face's ``ViltModel`` (without its prefix) beside ``ViltEncoder``."""
    table = _text_embeddings("embeddings.text_embeddings", "params/text_embeddings")
    table += [
        Entry("embeddings.token_type_embeddings.weight", "params/modality/embedding"),
        Entry("embeddings.cls_token", "params/patch_embeddings/class_token"),
        Entry("embeddings.position_embeddings", "params/patch_embeddings/positions"),
        Entry("embeddings.patch_embeddings.projection.weight", "params/patch_embeddings/kernel", CONVOLUTION),
        Entry("embeddings.patch_embeddings.projection.bias", "params/patch_embeddings/bias"),
    ]
    for index in range(config.num_hidden_layers):
        theirs, ours = f"encoder.layer.{index}", f"params/layer_{index}"
        table += layer_norm(f"{theirs}.layernorm_before", f"{ours}/attention_norm")
        for name in ("query", "key", "value"):
            table += linear(f"{theirs}.attention.attention.{name}", f"{ours}/attention/{name}")
        table += linear(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        table += layer_norm(f"{theirs}.layernorm_after", f"{ours}/output_norm")
        table += linear(f"{theirs}.intermediate.dense", f"{ours}/intermediate")
        table += linear(f"{theirs}.output.dense", f"{ours}/output")
    return table + layer_norm("layernorm", "params/norm") + linear("pooler.dense", "params/pooler")


def mde_table(config: ViltConfig) -> list[Entry]:
    """The released estimator's names beside ``DivergenceEstimator``'s."""
    table = _text_embeddings("text_embeddings", "params/vilt/text_embeddings")
    table += [
        Entry("token_type_embeddings.weight", "params/vilt/modality/embedding"),
        Entry("transformer.cls_token", "params/vilt/patch_embeddings/class_token"),
        Entry("transformer.pos_embed", "params/vilt/patch_embeddings/positions"),
        Entry("transformer.patch_embed.proj.weight", "params/vilt/patch_embeddings/kernel", CONVOLUTION),
        Entry("transformer.patch_embed.proj.bias", "params/vilt/patch_embeddings/bias"),
    ]
    for index in range(config.num_hidden_layers):
        theirs, ours = f"transformer.blocks.{index}", f"params/vilt/layer_{index}"
        table += layer_norm(f"{theirs}.norm1", f"{ours}/attention_norm")
        for part, name in enumerate(("query", "key", "value")):
            table += linear(f"{theirs}.attn.qkv", f"{ours}/attention/{name}", (part, 3))
        table += linear(f"{theirs}.attn.proj", f"{ours}/attention/output")
        table += layer_norm(f"{theirs}.norm2", f"{ours}/output_norm")
        table += linear(f"{theirs}.mlp.fc1", f"{ours}/intermediate")
        table += linear(f"{theirs}.mlp.fc2", f"{ours}/output")
    table += layer_norm("transformer.norm", "params/vilt/norm") + linear("pooler.dense", "params/vilt/pooler")
    table += linear("interaction_classifier.0", "params/head/hidden")
    table += layer_norm("interaction_classifier.1", "params/head/norm")
    return table + linear("interaction_classifier.3", "params/head/output")


def _smallest_batch(config: ViltConfig) -> dict[str, Any]:
    """One piece and one patch, to trace a model with."""
    side = config.patch_size
    return {
        "input_ids": jnp.zeros((1, 1), jnp.int32),
        "attention_mask": jnp.ones((1, 1), bool),
        "pixel_values": jnp.zeros((1, side, side, config.num_channels)),
        "pixel_mask": jnp.ones((1, side, side), bool),
    }


def vilt_shapes(config: ViltConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of the variables of ``ViltEncoder``."""
    return shapes_of(ViltEncoder(config), *_smallest_batch(config).values(), train=False)


def vilt_params(state_dict: Mapping[str, np.ndarray], config: ViltConfig) -> dict[str, Any]:
    """The parameters of ``ViltEncoder(config)`` out of a Hugging Face state dict (dandelin/vilt-b32-mlm's layout).

    Names are read with or without the prefix ``vilt.``. Heads (``mlm_score.*``, ``classifier.*``,
    ``rank_output.*``) and buffers are left out knowingly.

    Raises ValueError that lists every missing, extra and misshaped name.
    """
    state_dict = without_prefix(state_dict, "vilt.")
    shapes = vilt_shapes(config)
    return fill(state_dict, vilt_table(config), shapes, dropped=VILT_DROPPED, what="ViLT state dict")["params"]


def vilt_config_from_shapes(state_dict: Mapping[str, np.ndarray], num_attention_heads: int | None) -> ViltConfig:
    """Sizes of a released estimator; heads are not in the shapes: hidden / 64 unless given."""

    def shape(name: str, length: int) -> tuple[int, ...]:
        found = np.shape(state_dict[name]) if name in state_dict else None
        if found is None or len(found) != length:
            state = "is missing" if found is None else f"has shape {found} and not {length} axes"
            raise ValueError(f"released MDE state dict: {name} {state}, from which the model's size is read")
        return found

    vocabulary, hidden = shape("text_embeddings.word_embeddings.weight", 2)
    if num_attention_heads is None and hidden % 64:
        raise ValueError(f"hidden size {hidden} is no multiple of 64: give num_attention_heads")
    _, channels, patch, _ = shape("transformer.patch_embed.proj.weight", 4)
    places = shape("transformer.pos_embed", 3)[1] - 1
    grid = round(places**0.5)
    if grid**2 != places:
        raise ValueError(f"transformer.pos_embed has {places + 1} rows, which is no square grid of patches and one")
    blocks = {int(match[1]) for name in state_dict if (match := re.match(r"transformer\.blocks\.(\d+)\.", name))}
    if blocks != set(range(len(blocks))) or not blocks:
        raise ValueError(f"released MDE state dict: its blocks {sorted(blocks)} are no row from 0 on")
    return ViltConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=len(blocks),
        num_attention_heads=num_attention_heads or hidden // 64,
        intermediate_size=shape("transformer.blocks.0.mlp.fc1.weight", 2)[0],
        max_position_embeddings=shape("text_embeddings.position_embeddings.weight", 2)[0],
        type_vocab_size=shape("text_embeddings.token_type_embeddings.weight", 2)[0],
        layer_norm_eps=RELEASED_EPSILON,
        text_layer_norm_eps=RELEASED_TEXT_EPSILON,
        image_size=grid * patch,
        patch_size=patch,
        num_channels=channels,
    )


def mde_from_release(
    state_dict: Mapping[str, np.ndarray], *, num_attention_heads: int | None = None
) -> tuple[DivergenceEstimator, dict[str, Any]]:
    """The released divergence estimator: ``model.apply(variables, batch, train=False) -> logits, pooled``.

    Args:
        state_dict: name → array, as ``torch.load`` or safetensors give it, under ViLT's own names with
            ``interaction_classifier.{0,1,3}`` as the head; query, key and value are fused in ``attn.qkv``.
        num_attention_heads: hidden / 64 unless given.

    Returns:
        a model of the sizes found, its norms with ViLT's ε, and its variables.

    Raises:
        ValueError: lists every missing, extra and misshaped name.
    """
    config = vilt_config_from_shapes(state_dict, num_attention_heads)
    model = DivergenceEstimator(config)
    shapes = shapes_of(model, _smallest_batch(config), train=False)
    return model, fill(state_dict, mde_table(config), shapes, dropped=MDE_DROPPED, what="released MDE state dict")

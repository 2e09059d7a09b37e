"""Released checkpoints of MKGformer (zjunlp/MKGformer, MNER and MRE) for both tasks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.bert import bert_table
from tmrjax.convert.pictures import clip_table
from tmrjax.convert.released.base import (
    Released,
    below,
    bert_config_from_shapes,
    count,
    crf_entries,
    linear_entries,
    rows,
    text_batch,
)
from tmrjax.convert.tables import Entry
from tmrjax.encoders.picture.clip import CLIPVisionConfig
from tmrjax.methods import find_method
from tmrjax.records.schema import NUM_REGIONS

# Starts of names of a BERT and of a CLIP vision tower -> theirs.
TEXT_NAMES = {"embeddings.": "model.text_embeddings.", "encoder.layer.": "model.encoder.text_layer."}
PICTURE_NAMES = {
    "embeddings.": "model.vision_embeddings.",
    "encoder.layers.": "model.encoder.vision_layers.",
    "pre_layrnorm": "model.vision_pre_layrnorm",
    "post_layernorm": "model.vision_post_layernorm",
}
DROPPED = (r"model\.(vision|text)_embeddings\.(\w+_)?position_ids", r"model\.text_pooler\.dense\.(weight|bias)")
POSITIONS = {"aux": "region_positions", "rcnn": "small_region_positions"}
HEADS = {"ner": ("fc", "emission"), "re": ("classifier", "classifier")}


def read(
    state_dict: Mapping[str, np.ndarray], *, task: str, num_attention_heads: int | None = None, fusion_layers: int = 4
) -> Released:
    """See :func:`tmrjax.convert.method_from_release`. ``fusion_layers``: how many of the last layers fuse.

    A batch has to be as long as the released code pads it (128 for entities, 80 for relations): padding takes part.
    """
    names = {_renamed(name, {new: old for old, new in TEXT_NAMES.items()}): name for name in state_dict}
    bert = bert_config_from_shapes({ours: state_dict[name] for ours, name in names.items()}, "", num_attention_heads)
    clip = _clip_config(state_dict, bert.num_attention_heads)
    positions = {name: f"model.vision_embeddings.{name}_position_embedding.weight" for name in POSITIONS}
    size = clip.patch_size * math.isqrt(rows(state_dict, positions["aux"]) // NUM_REGIONS)
    theirs, ours = HEADS[task]
    method = find_method("mkgformer", task)(
        num_labels=rows(state_dict, f"{theirs}.weight"), text=bert, picture=clip, literal=True, region_size=size,
        fusion_layers=fusion_layers,
    )  # fmt: skip
    table = [entry._replace(theirs=_renamed(entry.theirs, TEXT_NAMES)) for entry in below(bert_table(bert), "", "bert")]
    towers = below(clip_table(clip), "", "clip_vision_model")
    table += [entry._replace(theirs=_renamed(entry.theirs, PICTURE_NAMES)) for entry in towers]
    table += [Entry(positions[name], f"params/{path}/positions") for name, path in POSITIONS.items()]
    depth = bert.num_hidden_layers
    first = depth - min(fusion_layers, depth - 1)
    layer = "model.encoder.text_layer.{}.intermediate.fusion_dense"
    layers = {layer.format(index): f"fusion_{index}" for index in range(first, depth)}
    table += linear_entries(layers | {theirs: ours})
    if task == "ner":
        table += crf_entries("crf", "params/crf")
    unused = [re.escape(layer.format(index)) + r"\.(weight|bias)" for index in range(first)]
    batch = text_batch(8) | {
        "crops": jnp.zeros((1, NUM_REGIONS, size, size, 3)),
        "small_crops": jnp.zeros((1, NUM_REGIONS, size // 2, size // 2, 3)),
    }
    return Released(method, table, [*DROPPED, *unused], batch)


def _renamed(name: str, starts: Mapping[str, str]) -> str:
    for start, other in starts.items():
        if name.startswith(start):
            return other + name.removeprefix(start)
    return name


def _clip_config(state_dict: Mapping[str, np.ndarray], num_attention_heads: int) -> CLIPVisionConfig:
    """Sizes of the vision tower; both towers have the same heads."""
    patches, layer = "model.vision_embeddings.patch_embedding.weight", "model.encoder.vision_layers"
    width, patch = rows(state_dict, patches), state_dict[patches].shape[-1]
    grid = math.isqrt(rows(state_dict, "model.vision_embeddings.position_embedding.weight") - 1)
    return CLIPVisionConfig(
        hidden_size=width,
        num_hidden_layers=count(state_dict, re.escape(layer) + r"\.(\d+)\."),
        num_attention_heads=num_attention_heads,
        intermediate_size=rows(state_dict, f"{layer}.0.mlp.fc1.weight"),
        image_size=grid * patch,
        patch_size=patch,
    )

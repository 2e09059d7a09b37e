"""The authors' released NER and RE checkpoints as a ``release`` model (:mod:`tmrjax.methods.tmr_release`) and its
variables.

Sizes are read from the shapes of the arrays: the released state dict comes without a config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.bert import BERT_DROPPED, bert_table
from tmrjax.convert.released.base import (
    below,
    bert_config_from_shapes,
    crf_entries,
    resnet_config_from_shapes,
    rows,
)
from tmrjax.convert.resnet import RESNET_DROPPED, resnet_table
from tmrjax.convert.tables import LINEAR, Entry, fill, shapes_of
from tmrjax.methods.tmr_release import EXTENDED_SIZE
from tmrjax.models import TMRForNER, TMRForRE
from tmrjax.records.schema import NUM_REGIONS

RESNET_PREFIX = "model_resnet50."  # whatever its depth is: the released NER model keeps a ResNet-101 under this name

RE_PREFIX = "sentence_encoder."

# Their linear layers beside ours: those of u in both tasks, then what reads it.
FUSION_LAYERS = {
    "linear_pic": "release_fusion/visual_projection",
    **{
        f"linear_{letter}_{grain}": f"release_fusion/{role}_{grain}"
        for letter, role in (("q", "query"), ("k", "key"), ("v", "value"))
        for grain in ("fine", "coarse")
    },
    "linear_extend_pic": "release_fusion/extend",
}
NER_LAYERS = FUSION_LAYERS | {"combine_linear": "release_fusion/combination", "fc": "emission"}
RE_LAYERS = {
    **{RE_PREFIX + theirs: ours for theirs, ours in FUSION_LAYERS.items()},
    f"{RE_PREFIX}linear_phrases": "release_fusion/phrase_projection",
    f"{RE_PREFIX}linear_final": "release_fusion/combination",
    "fc": "classifier",
}
# Layers that the released RE code makes and never calls.
RE_UNUSED = (r"linear\.(weight|bias)", rf"{re.escape(RE_PREFIX)}(linear|linear_weights)\.(weight|bias)")


def ner_from_release(
    state_dict: Mapping[str, np.ndarray], *, num_attention_heads: int | None = None
) -> tuple[TMRForNER, dict[str, Any]]:
    """The released NER model: ``model.apply(variables, batch, train=False)``.

    Args:
        state_dict: name → array, as ``torch.load`` or safetensors give it; without ``model_resnet50.*`` the model
            takes feature maps only.
        num_attention_heads: of BERT; hidden / 64 unless given.

    Returns:
        a ``release`` model of the sizes found, and its variables.

    Raises:
        ValueError: lists every missing, extra and misshaped name.
    """
    bert = bert_config_from_shapes(state_dict, "bert.", num_attention_heads)
    resnet = resnet_config_from_shapes(state_dict, RESNET_PREFIX)
    length, rest = divmod(rows(state_dict, "linear_extend_pic.weight"), EXTENDED_SIZE)
    if rest:
        raise ValueError(
            f"linear_extend_pic.weight has {len(state_dict['linear_extend_pic.weight'])} rows, which is no multiple of "
            f"{EXTENDED_SIZE}"
        )
    model = TMRForNER(
        bert=bert, num_tags=rows(state_dict, "fc.weight"), resnet=resnet, variant="release", release_length=length
    )
    return model, _fill_release(
        model, state_dict, NER_LAYERS, crf_entries("crf", "params/crf"), length=length, what="released NER state dict"
    )


def re_from_release(
    state_dict: Mapping[str, np.ndarray], *, num_attention_heads: int | None = None
) -> tuple[TMRForRE, dict[str, Any]]:
    """The released RE model: ``model.apply(variables, batch, train=False)``.

    Args:
        state_dict: name → array; without ``sentence_encoder.model_resnet50.*`` the model takes feature maps only.
            ``linear``, ``sentence_encoder.linear`` and ``sentence_encoder.linear_weights`` are dropped: unused there.
        num_attention_heads: of BERT; hidden / 64 unless given.

    Returns:
        a ``release`` model of the sizes found, and its variables.

    Raises:
        ValueError: lists every missing, extra and misshaped name.
    """
    bert = bert_config_from_shapes(state_dict, f"{RE_PREFIX}bert.", num_attention_heads)
    resnet = resnet_config_from_shapes(state_dict, RE_PREFIX + RESNET_PREFIX)
    model = TMRForRE(bert=bert, num_relations=rows(state_dict, "fc.weight"), resnet=resnet, variant="release")
    what = "released RE state dict"
    return model, _fill_release(model, state_dict, RE_LAYERS, [], prefix=RE_PREFIX, dropped=RE_UNUSED, what=what)


def _fill_release(
    model: TMRForNER | TMRForRE,
    state_dict: Mapping[str, np.ndarray],
    layers: Mapping[str, str],
    table: list[Entry],
    *,
    what: str,
    prefix: str = "",
    length: int = 8,
    dropped: tuple[str, ...] = (),
) -> dict[str, Any]:
    """The variables: ``table`` and the linear ``layers``, with BERT and ResNet under ``prefix``."""
    table = [*table, *below(bert_table(model.bert), f"{prefix}bert.", "bert")]
    for theirs, ours in layers.items():
        table += [
            Entry(f"{theirs}.weight", f"params/{ours}/kernel", LINEAR),
            Entry(f"{theirs}.bias", f"params/{ours}/bias"),
        ]
    dropped = [*dropped, *(rf"{re.escape(prefix)}bert\.{pattern}" for pattern in BERT_DROPPED)]
    if model.resnet is not None:
        start = prefix + RESNET_PREFIX
        table += below(resnet_table(model.resnet, names="torchvision"), start, "picture_encoder/resnet")
        dropped += [re.escape(start) + pattern for pattern in RESNET_DROPPED]
    projection = f"{prefix}linear_pic.weight"
    rows(state_dict, projection)
    shapes = shapes_of(model, _smallest_batch(model, length, state_dict[projection].shape[1]), train=False)
    return fill(state_dict, table, shapes, dropped=dropped, what=what)


def _smallest_batch(model: TMRForNER | TMRForRE, length: int, feature_size: int) -> dict[str, Any]:
    """One row with every key of either task, to trace the model with."""
    batch: dict[str, Any] = {
        "input_ids": jnp.zeros((1, length), jnp.int32),
        "attention_mask": jnp.ones((1, length), bool),
        "head_start": jnp.zeros(1, jnp.int32),
        "tail_start": jnp.zeros(1, jnp.int32),
        "phrase_ids": jnp.zeros((1, 2), jnp.int32),
        "phrase_mask": jnp.ones((1, 2), bool),
    }
    for prefix in model.method().pictures.prefixes:
        if model.resnet is None:
            batch[f"{prefix}image_features"] = jnp.zeros((1, 1, feature_size))
            batch[f"{prefix}region_features"] = jnp.zeros((1, NUM_REGIONS, 1, feature_size))
        else:
            batch[f"{prefix}image"] = jnp.zeros((1, 32, 32, 3))
            batch[f"{prefix}regions"] = jnp.zeros((1, NUM_REGIONS, 32, 32, 3))
        batch[f"{prefix}image_mask"] = jnp.ones(1, bool)
        batch[f"{prefix}region_mask"] = jnp.ones((1, NUM_REGIONS), bool)
        batch[f"{prefix}scores"] = jnp.ones((1, 2))
    return batch

"""UMT's released checkpoints (jefferyYu/UMT, class MTCCMBertForMMTokenClassificationCRF): pytorch_model.bin, and
pytorch_encoder.bin, whose names begin with ``resnet.``, in one state dict or without the latter.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.bert import block_table
from tmrjax.convert.released.base import (
    Released,
    bert_config_from_shapes,
    bert_entries,
    crf_entries,
    linear_entries,
    resnet_config_from_shapes,
    resnet_entries,
    rows,
    text_batch,
)
from tmrjax.convert.tables import Entry, linear
from tmrjax.methods.umt import EntityUMT

LAYERS = {
    "self_attention": "span_layer",
    "self_attention_v2": "text_layer",
    "txt2img_attention": "picture_from_words",
    "img2txt_attention": "picture_layer",
    "txt2txt_attention": "words_from_picture",
}
LINEAR_LAYERS = {
    "vismap2text": "visual_projection",
    "vismap2text_v2": "visual_projection_v2",
    "gate": "gate",
    "classifier": "emission",
    "aux_classifier": "span_emission",
}


def layer_entries(theirs: str, ours: str) -> list[Entry]:
    """One layer of BERT's form."""
    table = block_table(theirs, ours)
    for name in ("query", "key", "value"):
        table += linear(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
    return table


def read(state_dict: Mapping[str, np.ndarray], *, task: str, num_attention_heads: int | None = None) -> Released:
    """See :func:`tmrjax.convert.method_from_release`; only for entities."""
    if task != "ner":
        raise ValueError(f"UMT was released for entities (task 'ner'), not for {task!r}")
    bert = bert_config_from_shapes(state_dict, "bert.", num_attention_heads)
    resnet = resnet_config_from_shapes(state_dict, "resnet.")
    table, dropped = bert_entries(bert, "bert.")
    batch = text_batch(4)
    batch["image_mask"] = jnp.ones(1, bool)
    rows(state_dict, "vismap2text.weight")
    if resnet is None:
        batch["image_features"] = jnp.zeros((1, 1, state_dict["vismap2text.weight"].shape[1]))
    else:
        more, unused = resnet_entries(resnet, "resnet.")
        table, dropped = table + more, dropped + unused
        batch["image"] = jnp.zeros((1, 32, 32, 3))
    for theirs, ours in LAYERS.items():
        table += layer_entries(f"{theirs}.layer.0", f"params/{ours}")
    table += linear_entries(LINEAR_LAYERS)
    table += crf_entries("crf", "params/crf") + crf_entries("aux_crf", "params/span_crf")
    method = EntityUMT(num_labels=rows(state_dict, "classifier.weight"), text=bert, picture=resnet, literal=True)
    return Released(method, table, dropped, batch)

"""UMGF's released checkpoints (TransformersWsz/UMGF), with or without ``resnet.*``."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.released.base import (
    Released,
    bert_config_from_shapes,
    bert_entries,
    count,
    crf_entries,
    linear_entries,
    resnet_config_from_shapes,
    resnet_entries,
    rows,
    text_batch,
)
from tmrjax.convert.tables import layer_norm
from tmrjax.methods.umgf import EntityUMGF

CROPS = 4

# Linear layers of layer l, {l} in their names.
LINEAR_LAYERS = {
    **{f"mhatt_x.{{l}}.linears.{i}": f"word_{name}" for i, name in enumerate(("query", "key", "value", "output"))},
    "mhatt_o.{l}.linears.0": "object_query",
    "mhatt_o.{l}.linears.1": "object_key",
    "mhatt_x2o.{l}": "word_gate",
    "mhatt_o2x.{l}": "object_gate",
    "ffn_x.{l}.w_1": "word_ffn_inner",
    "ffn_x.{l}.w_2": "word_ffn_output",
    "ffn_o.{l}.w_1": "object_ffn_inner",
    "ffn_o.{l}.w_2": "object_ffn_output",
}
NORMS = {
    "res4mes_x.{l}.norm": "word_attention_norm",
    "res4mes_o.{l}.norm": "object_attention_norm",
    "xgate.{l}.norm": "word_gate_norm",
    "ogate.{l}.norm": "object_gate_norm",
    "res4ffn_x.{l}.norm": "word_ffn_norm",
    "res4ffn_o.{l}.norm": "object_ffn_norm",
}
# What the last layer has and no output reads.
UNREAD = ("object_gate", "object_ffn_inner", "object_ffn_output", "object_gate_norm", "object_ffn_norm")
# Linear layers outside of the graph's.
OUTER = {
    "trans_txt": "text_projection",
    "trans_obj.0": "object_inner",
    "trans_obj.3": "object_projection",
    "hidden2tag": "emission",
}


def read(
    state_dict: Mapping[str, np.ndarray],
    *,
    task: str,
    num_attention_heads: int | None = None,
    num_heads: int = 8,
) -> Released:
    """See :func:`tmrjax.convert.method_from_release`; only for entities.

    ``num_heads`` of the graph's layers. Without ``resnet.fc`` the pooled vectors of a batch are those behind it.
    """
    if task != "ner":
        raise ValueError(f"UMGF was released for entities (task 'ner'), not for {task!r}")
    bert = bert_config_from_shapes(state_dict, "bert.", num_attention_heads)
    has_layer = "resnet.fc.weight" in state_dict
    whole = {name: array for name, array in state_dict.items() if not name.startswith("resnet.fc.")}
    resnet = resnet_config_from_shapes(whole, "resnet.")
    table, dropped = bert_entries(bert, "bert.")
    batch = text_batch(4)
    batch["region_mask"] = jnp.ones((1, CROPS), bool)
    rows(state_dict, "trans_obj.0.weight")
    if resnet is None:
        batch["region_pooled"] = jnp.zeros((1, CROPS, np.shape(state_dict["trans_obj.0.weight"])[1]))
    else:
        more, unused = resnet_entries(resnet, "resnet.")
        table, dropped = table + more, dropped + unused
        batch["regions"] = jnp.zeros((1, CROPS, 32, 32, 3))
    depth = count(state_dict, r"mhatt_x\.(\d+)\.")
    for number in range(depth):
        for names, entries in ((LINEAR_LAYERS, _linear), (NORMS, _norm)):
            for theirs, ours in names.items():
                if number == depth - 1 and ours in UNREAD:
                    dropped.append(theirs.format(l=number).replace(".", r"\.") + r"\.(weight|bias)")
                else:
                    table += entries(theirs.format(l=number), f"layer_{number}/{ours}")
    table += linear_entries(OUTER | ({"resnet.fc": "pooled_layer"} if has_layer else {}))
    table += crf_entries("crf", "params/crf")
    method = EntityUMGF(
        num_labels=rows(state_dict, "hidden2tag.weight"), text=bert, picture=resnet, literal=True,
        size=rows(state_dict, "trans_txt.weight"), inner_size=rows(state_dict, "ffn_x.0.w_1.weight"),
        num_heads=num_heads, num_layers=depth, pooled_layer=has_layer,
    )  # fmt: skip
    return Released(method, table, dropped, batch)


def _linear(theirs: str, ours: str) -> list:
    return linear_entries({theirs: ours})


def _norm(theirs: str, ours: str) -> list:
    return layer_norm(theirs, f"params/{ours}")

"""OCSGA's released class, an NCRF++ tagger with a modular co-attention network (github.com/softhuafei)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tmrjax.convert.released.base import Released, count, linear_entries, lstm_entries, rows
from tmrjax.convert.tables import Entry
from tmrjax.methods.ocsga import OCSGA

_ATTENTION = {"linear_q": "query", "linear_k": "key", "linear_v": "value", "linear_merge": "merge"}
_FEED_FORWARD = {"ffn.mlp.fc.linear": "intermediate", "ffn.mlp.linear": "output"}
# Attentions and norms of a layer over the text, and of one over objects, by their names there.
_TEXT = {"mhatt": "self_attention"}, {"norm1": "self_norm", "norm2": "output_norm"}
_OBJECTS = (
    {"mhatt1": "self_attention", "mhatt2": "guided_attention"},
    {"norm1": "self_norm", "norm2": "guided_norm", "norm3": "output_norm"},
)


def read(
    state_dict: Mapping[str, np.ndarray], *, task: str, num_attention_heads: int | None = None, num_heads: int = 2
) -> Released:
    """See :mod:`tmrjax.convert.released.base`.

    The number of heads is not in the shapes: the released config has 2, ``num_heads`` or ``num_attention_heads`` say
    otherwise. The method's K is that of the emissions:
    padding first, the tags, START and STOP last.
    """
    if task != "ner":
        raise ValueError(f"OCSGA was released for 'ner', not for {task!r}")
    for name in ("word_embeddings", "char_embeddings", "object_embeddings", "hidden2tag", "obj_feat_linear"):
        rows(state_dict, f"{name}.weight")
    widths = {name: np.shape(state_dict[f"{name}_embeddings.weight"]) for name in ("word", "char", "object")}
    num_layers = count(state_dict, r"mca\.enc_list\.(\d+)\.")
    method = OCSGA(
        num_labels=rows(state_dict, "hidden2tag.weight"),
        num_words=widths["word"][0],
        num_characters=widths["char"][0],
        num_objects=widths["object"][0],
        word_size=widths["word"][1],
        object_width=widths["object"][1],
        character_size=widths["char"][1],
        character_features=rows(state_dict, "char_lstm.weight_hh_l0") // 4,
        hidden_size=rows(state_dict, "obj_feat_linear.weight"),
        num_heads=num_attention_heads or num_heads,
        num_layers=num_layers,
        literal=True,
        bordered=True,
    )
    batch = {
        "input_ids": np.zeros((1, 2), np.int32),
        "attention_mask": np.ones((1, 2), bool),
        "character_ids": np.zeros((1, 2, 3), np.int32),
        "object_ids": np.zeros((1, method.max_objects), np.int32),
    }
    return Released(method, _table(num_layers), (r"cat_bn\.num_batches_tracked",), batch)


def _table(num_layers: int) -> list[Entry]:
    table = [
        Entry("word_embeddings.weight", "params/word_embeddings/embedding"),
        Entry("char_embeddings.weight", "params/characters_lstm/embedding"),
        Entry("object_embeddings.weight", "params/object_embeddings/embedding"),
        *lstm_entries("char_lstm", "params/characters_lstm/lstm"),
        *lstm_entries("word_lstm", "params/lstm"),
        *linear_entries({"obj_feat_linear": "object_projection", "hidden2tag": "emission"}),
        Entry("cat_bn.weight", "params/batch_norm/scale"),
        Entry("cat_bn.bias", "params/batch_norm/bias"),
        Entry("cat_bn.running_mean", "batch_stats/batch_norm/mean"),
        Entry("cat_bn.running_var", "batch_stats/batch_norm/var"),
        Entry("crf.transitions", "params/crf/transitions"),
    ]
    for number in range(num_layers):
        table += _layer(f"mca.enc_list.{number}", f"text_layer_{number}", *_TEXT)
    for number in range(num_layers - 1):
        table += _layer(f"mca.dec_list.{number}", f"object_layer_{number}", *_OBJECTS)
    return table + _layer("mca.dec_last", "last_layer", *_OBJECTS)


def _layer(theirs: str, ours: str, attentions: Mapping[str, str], norms: Mapping[str, str]) -> list[Entry]:
    linears = {f"{theirs}.{name}": f"{ours}/{own}" for name, own in _FEED_FORWARD.items()}
    for name, own in attentions.items():
        linears |= {f"{theirs}.{name}.{part}": f"{ours}/{own}/{role}" for part, role in _ATTENTION.items()}
    table = linear_entries(linears)
    for name, own in norms.items():
        table.append(Entry(f"{theirs}.{name}.a_2", f"params/{ours}/{own}/scale"))
        table.append(Entry(f"{theirs}.{name}.b_2", f"params/{ours}/{own}/bias"))
    return table

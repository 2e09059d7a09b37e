"""RpBERT's released class (Multimodal-NER/RpBERT, MyModel): ``bert.*``, ``proj``, ``aux_head``, ``rnn``, ``head``,
``crf``, with or without ``resnet.*``.
"""

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
    lstm_entries,
    resnet_config_from_shapes,
    resnet_entries,
    rows,
    text_batch,
)
from tmrjax.methods.rpbert import RpBERT

LINEAR_LAYERS = {"proj": "visual_projection", "aux_head": "relation_classifier", "head": "emission"}


def read(state_dict: Mapping[str, np.ndarray], *, task: str, num_attention_heads: int | None = None) -> Released:
    """See :func:`tmrjax.convert.method_from_release`; only for entities.

    Word vectors come in the batch, as ``word_vectors`` [B, W, F]: F is found from the width that ``rnn`` reads.
    """
    if task != "ner":
        raise ValueError(f"RpBERT was released for entities (task 'ner'), not for {task!r}")
    for name in ("proj.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0"):
        rows(state_dict, name)
    bert = bert_config_from_shapes(state_dict, "bert.", num_attention_heads)
    resnet = resnet_config_from_shapes(state_dict, "resnet.")
    table, dropped = bert_entries(bert, "bert.")
    vectors = np.shape(state_dict["rnn.weight_ih_l0"])[1] - bert.hidden_size
    batch = text_batch(4) | {"image_mask": jnp.ones(1, bool), "word_vectors": jnp.zeros((1, 2, vectors))}
    if resnet is None:
        batch["image_features"] = jnp.zeros((1, 1, np.shape(state_dict["proj.weight"])[1]))
    else:
        more, unused = resnet_entries(resnet, "resnet.")
        table, dropped = table + more, dropped + unused
        batch["image"] = jnp.zeros((1, 32, 32, 3))
    layers = count(state_dict, r"rnn\.weight_ih_l(\d+)$")
    table += linear_entries(LINEAR_LAYERS) + lstm_entries("rnn", "params/recurrent", layers)
    table += crf_entries("crf", "params/crf")
    method = RpBERT(
        num_labels=rows(state_dict, "head.weight"), text=bert, picture=resnet, word_size=vectors, literal=True,
        recurrent_size=rows(state_dict, "rnn.weight_hh_l0") // 4, recurrent_layers=layers,
    )  # fmt: skip
    return Released(method, table, dropped, batch)

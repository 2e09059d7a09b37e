"""A VisualBERT with a head, under the names of Hugging Face's class: ``visual_bert.*``, then ``classifier`` and ``crf``
for entities or ``fc`` for relations. Checkpoints of pre-training have no heads: give them some, at random.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.released.base import (
    Released,
    bert_config_from_shapes,
    bert_entries,
    crf_entries,
    linear_entries,
    rows,
    text_batch,
)
from tmrjax.convert.tables import Entry
from tmrjax.methods import find_method

PREFIX = "visual_bert."
# The rows of both visual tables that are read.
POSITION, TOKEN_TYPE = 0, 1


def read(
    state_dict: Mapping[str, np.ndarray],
    *,
    task: str,
    num_attention_heads: int | None = None,
    visual: str = "objects",
) -> Released:
    """See :func:`tmrjax.convert.method_from_release`; ``visual`` says what the batch has of pictures."""
    kind = find_method("visualbert", task)
    bert = bert_config_from_shapes(state_dict, PREFIX, num_attention_heads)
    table, dropped = bert_entries(bert, PREFIX)
    start = f"{PREFIX}embeddings.visual_"
    rows(state_dict, f"{start}projection.weight")
    size = np.shape(state_dict[f"{start}projection.weight"])[1]
    table += linear_entries({f"{start}projection": "visual_projection"})
    for name, row in (("position", POSITION), ("token_type", TOKEN_TYPE)):
        theirs = f"{start}{name}_embeddings.weight"
        table.append(Entry(theirs, f"params/visual_{name}", None, (row, rows(state_dict, theirs))))
    if task == "ner":
        head, literal = "classifier", {"literal": True}
        table += linear_entries({"classifier": "emission"}) + crf_entries("crf", "params/crf")
    else:
        head, literal = "fc", {}
        table += linear_entries({"fc": "classifier"})
    method = kind(num_labels=rows(state_dict, f"{head}.weight"), text=bert, visual=visual, **literal)
    return Released(method, table, dropped, text_batch(4) | _pictures(visual, size))


def _pictures(visual: str, size: int) -> dict:
    if visual == "objects":
        return {"object_features": jnp.zeros((1, 2, size)), "object_mask": jnp.ones((1, 2), bool)}
    if visual == "grid":
        return {"image_features": jnp.zeros((1, 2, size)), "image_mask": jnp.ones(1, bool)}
    return {
        "image_pooled": jnp.zeros((1, size)),
        "region_pooled": jnp.zeros((1, 3, size)),
        "image_mask": jnp.ones(1, bool),
        "region_mask": jnp.ones((1, 3), bool),
    }

"""Released checkpoints of MEGA (thecharm/Mega), which are for relations."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.released.base import (
    Released,
    bert_config_from_shapes,
    bert_entries,
    linear_entries,
    rows,
    text_batch,
)
from tmrjax.methods import find_method

PREFIX = "sentence_encoder."
LAYERS = {
    "linear_hidden": "text_projection",
    "linear_pic": "object_projection",
    "linear_q": "query",
    "linear_k": "key",
    "linear_v": "value",
    "linear_final1": "alignment",
    "linear_final": "combination",
}
# Layers that the released code makes and never calls.
UNUSED = r"(sentence_encoder\.)?linear(_merge)?\.(weight|bias)"


def read(state_dict: Mapping[str, np.ndarray], *, task: str, num_attention_heads: int | None = None) -> Released:
    """See :func:`tmrjax.convert.method_from_release`.

    A batch has to be as long as the released code pads it (128), and ``alignment`` in the order of its [T, O].

    Raises ValueError for entities, for which nothing was released.
    """
    if task != "re":
        raise ValueError(f"MEGA was released for relations alone, not for {task!r}")
    bert = bert_config_from_shapes(state_dict, f"{PREFIX}bert.", num_attention_heads)
    rows(state_dict, f"{PREFIX}linear_pic.weight")
    width = state_dict[f"{PREFIX}linear_pic.weight"].shape[1]
    method = find_method("mega", task)(num_labels=rows(state_dict, "fc.weight"), text=bert, literal=True)
    table, dropped = bert_entries(bert, f"{PREFIX}bert.")
    table += linear_entries({PREFIX + theirs: ours for theirs, ours in LAYERS.items()} | {"fc": "classifier"})
    batch = text_batch(8) | {
        "object_features": jnp.zeros((1, method.object_limit, width)),
        "object_mask": jnp.ones((1, method.object_limit), bool),
        "alignment": jnp.zeros((1, 8, method.object_limit)),
    }
    return Released(method, table, [*dropped, UNUSED], batch)

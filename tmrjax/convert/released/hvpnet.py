"""Released checkpoints of HVPNeT (zjunlp/HVPNeT) for both tasks."""

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
    resnet_config_from_shapes,
    resnet_entries,
    rows,
    text_batch,
)
from tmrjax.methods import find_method
from tmrjax.records.schema import NUM_REGIONS

RESNET_PREFIX = "image_model.resnet."
HEADS = {"ner": ("fc", "emission"), "re": ("classifier", "classifier")}


def read(state_dict: Mapping[str, np.ndarray], *, task: str, num_attention_heads: int | None = None) -> Released:
    """See :func:`tmrjax.convert.method_from_release`. The batch has all pictures, missing ones as zeros in pixels."""
    bert = bert_config_from_shapes(state_dict, "bert.", num_attention_heads)
    resnet = resnet_config_from_shapes(state_dict, RESNET_PREFIX)
    theirs, ours = HEADS[task]
    hidden = "encoder_conv.0.weight"
    prefix_size = rows(state_dict, hidden)
    method = find_method("hvpnet", task)(
        num_labels=rows(state_dict, f"{theirs}.weight"), text=bert, picture=resnet, literal=True,
        prefix_size=prefix_size,
    )  # fmt: skip
    table, dropped = bert_entries(bert, "bert.")
    layers = {"encoder_conv.0": "visual_prefix/hidden", "encoder_conv.2": "visual_prefix/output", theirs: ours}
    layers |= {f"gates.{index}": f"visual_prefix/gate_{index}" for index in range(bert.num_hidden_layers)}
    table += linear_entries(layers)
    if task == "ner":
        table += crf_entries("crf", "params/crf")
    batch = text_batch(8) | {"image_mask": jnp.ones(1, bool), "region_mask": jnp.ones((1, NUM_REGIONS), bool)}
    if resnet is None:
        # Only the sum of the stages' channels is in the shapes of the prefix.
        channels = state_dict[hidden].shape[1]
        batch["image_stages"] = (jnp.zeros((1, 2, 2, channels)),)
        batch["region_stages"] = (jnp.zeros((1, NUM_REGIONS, 2, 2, channels)),)
    else:
        found, unused = resnet_entries(resnet, RESNET_PREFIX)
        table, dropped = table + found, dropped + unused
        side = 2 * resnet.stride
        batch["image"], batch["regions"] = jnp.zeros((1, side, side, 3)), jnp.zeros((1, NUM_REGIONS, side, side, 3))
    return Released(method, table, dropped, batch)

"""The multimodal divergence estimator (§3.4): how much does a picture weaken, complement or strengthen a text?

A ViLT reads text and picture in one sequence; a head classifies its pooled state. Its probabilities
α = softmax(head(pooled)) are the scores of Eq. 4, its pooled state is what the contrast of Eq. 6 acts on.

A batch of B pairs has ``input_ids`` and ``attention_mask`` [B, T], ``pixel_values`` [B, H, W, 3] and ``pixel_mask`` [B,
H, W]; a loss also reads ``labels``, ``sources`` and ``row_mask`` [B]
(:func:`tmrjax.divergence.pipeline.collate_pairs`).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tmrjax.encoders.activations import gelu
from tmrjax.encoders.joint.vilt import ViltConfig, ViltEncoder
from tmrjax.encoders.layers import LayerNorm, dense
from tmrjax.records.schema import SCORE_CLASSES

Batch = Mapping[str, Any]

VARIANTS = ("both", "text", "picture")

_HEAD_EPSILON = 1e-5  # torch.nn.LayerNorm's default, which the released head has


class DivergenceHead(nn.Module):
    """Linear D → 2D, layer norm, GELU, linear → 3 logits, in float32."""

    @nn.compact
    def __call__(self, pooled: jax.Array) -> jax.Array:
        """[B,D] → [B,3]."""
        hidden = dense(2 * pooled.shape[-1], jnp.float32, "hidden")(pooled)
        hidden = gelu(LayerNorm(_HEAD_EPSILON, jnp.float32, name="norm")(hidden))
        return dense(len(SCORE_CLASSES), jnp.float32, "output")(hidden)


class DivergenceEstimator(nn.Module):
    """Text and picture → logits over (weaken, complement, strengthen).

    Attributes:
        vilt: sizes of the encoder.
        variant: "both"; "text" and "picture" are the baselines that see one side only: the first needs no
            ``pixel_*`` in its batch, the second reads of the text its first piece, [CLS], alone.
        dtype: computation type of the encoder, float32 or bfloat16.
        remat: gradient checkpointing, block by block.
        detach_head: the head sees a stop-gradient of the pooled state, so that the encoder learns from a contrast
            alone; tmrjax.divergence.loss sets it, predictions are the same.
    """

    vilt: ViltConfig
    variant: str = "both"
    dtype: jnp.dtype = jnp.float32
    remat: bool = False
    detach_head: bool = False

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r}; expected one of {', '.join(VARIANTS)}")
        super().__post_init__()

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Logits [B,3] and the pooled state [B,D].

        ``batch``: ``input_ids`` and ``attention_mask`` [B,T], ``pixel_values`` [B,H,W,3], ``pixel_mask`` [B,H,W], as
        :class:`tmrjax.encoders.joint.vilt.ViltEncoder` takes them; uint8 pixels are scaled to [−1, 1] here.
        Dropout takes the RNG collection "dropout".
        """
        ids, text_mask = batch["input_ids"], batch["attention_mask"]
        pixels, pixel_mask = None, None
        if self.variant != "text":
            pixels, pixel_mask = batch["pixel_values"], batch["pixel_mask"]
            if pixels.dtype == jnp.uint8:
                pixels = pixels.astype(jnp.float32) / 127.5 - 1
        if self.variant == "picture":
            ids, text_mask = ids[:, :1], text_mask[:, :1]
        encoder = ViltEncoder(self.vilt, self.dtype, self.remat, name="vilt")
        pooled, _ = encoder(ids, text_mask, pixels, pixel_mask, train=train)
        logits = DivergenceHead(name="head")(jax.lax.stop_gradient(pooled) if self.detach_head else pooled)
        return logits, pooled


def model_to_dict(model: DivergenceEstimator) -> dict[str, Any]:
    """The fields of a model as JSON."""
    return {
        "vilt": model.vilt.to_dict(),
        "variant": model.variant,
        "dtype": jnp.dtype(model.dtype).name,
        "remat": model.remat,
    }


def model_from_dict(fields: Mapping[str, Any]) -> DivergenceEstimator:
    """The model of :func:`model_to_dict`."""
    vilt = fields["vilt"]
    vilt = vilt if isinstance(vilt, ViltConfig) else ViltConfig.from_dict(vilt)
    return DivergenceEstimator(**{**fields, "vilt": vilt, "dtype": jnp.dtype(fields["dtype"])})


@functools.partial(jax.jit, static_argnums=0)
def _scores(model: DivergenceEstimator, variables: Mapping[str, Any], batch: Batch) -> jax.Array:
    return jax.nn.softmax(model.apply(variables, batch, train=False)[0])


def score(model: DivergenceEstimator, variables: Mapping[str, Any], batch: Batch) -> jax.Array:
    """α = softmax(head(pooled)), [B,3] in the order weaken, complement, strengthen.

    Compiled once per shape of batch.
    """
    keys = ("input_ids", "attention_mask", "pixel_values", "pixel_mask")
    return _scores(model, variables, {name: batch[name] for name in keys if name in batch})


def normalise_as_released(scores: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
    """The scores of the released code: p = (weaken, complement, strengthen) [...,3] → (0, weak, strong) [...,3].

    weak = p₁ / (p₁ + p₂) and strong = p₂ / (p₁ + p₂): what complements and what strengthens, as shares of each other.
    Weaken is unknown afterwards and 0, as prepared data store it (``renormalised_scores`` in dataset.json).

    Raises ValueError where p₁ + p₂ is 0.
    """
    total = scores[..., 1:].sum(-1, keepdims=True)
    if not (np.asarray(total) > 0).all():
        raise ValueError("cannot divide by complement + strengthen: it is 0 (or not a number) in some of these scores")
    return scores * np.asarray([0, 1, 1], np.float32) / total

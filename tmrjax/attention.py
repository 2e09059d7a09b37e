"""Attention between pictures and text: Eq. 1, and the multi-head attention of Eq. 7.

Softmax and its logits are float32 whatever the inputs are, and products of float32 states are asked for in full
precision: by default a GPU rounds their factors to TF32 (10 bits), a TPU to bfloat16. The dense layers around them
follow JAX's default; ``jax.default_matmul_precision("highest")`` asks for full precision everywhere. A mask is True
where valid; a query that has nothing to attend to yields zeros, never a uniform mean over padding.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

# Far below any logit of a trained model, yet finite: a row without a valid key stays free of NaN in its gradient.
_MASKED = -1e30

# The products are small beside the encoders': 49 × T and 2 × T logits a post.
PRECISION = jax.lax.Precision.HIGHEST


def masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax over the last axis where ``mask`` is True; zeros elsewhere, and in rows without any valid entry.

    logits [..., S], mask broadcastable to it -> float32 [..., S].
    """
    logits = jnp.where(mask, logits.astype(jnp.float32), _MASKED)
    return jnp.where(mask, jax.nn.softmax(logits, axis=-1), 0.0)


def attention_logits(subscripts: str, queries: jax.Array, keys: jax.Array) -> jax.Array:
    """q kᵀ / √D by ``einsum`` over the last axis D of both, in float32."""
    products = jnp.einsum(subscripts, queries, keys, precision=PRECISION, preferred_element_type=jnp.float32)
    return products / jnp.sqrt(queries.shape[-1])


def cross_modal_attention(visual: jax.Array, text: jax.Array, text_mask: jax.Array, weight: jax.Array) -> jax.Array:
    """Text seen by each visual state: Eq. 1 without its final sum, ``A T`` with A = softmax((V W) Tᵀ / √D + log M).

    Args:
        visual: V [B, Q, D], patches or regions.
        text: T [B, S, D], word pieces of the sentence or of the phrases; [CLS] and [SEP] are keys as well where the
            mask holds them, as it does in this project's batches (the paper does not say).
        text_mask: M [B, S], True where valid; a post without valid text yields zeros.
        weight: W_d [D, D].

    Returns:
        [B, Q, D] in the dtype of ``text``.

    Raises:
        ValueError: shapes do not fit together.
    """
    batch, _, size = visual.shape
    if text.shape[0] != batch or text.shape[2] != size or text_mask.shape != text.shape[:2]:
        raise ValueError(
            f"visual {visual.shape}, text {text.shape} and text_mask {text_mask.shape} must be [B, Q, D], [B, S, D] "
            "and [B, S]"
        )
    if weight.shape != (size, size):
        raise ValueError(f"weight has shape {weight.shape}, but visual states {visual.shape} need {(size, size)}")
    # Content behind the mask may be anything, even NaN: 0 · NaN would let it through.
    text = jnp.where(text_mask[..., None], text, 0)
    queries = jnp.matmul(visual, weight.astype(visual.dtype), precision=PRECISION)
    logits = attention_logits("bqd,bsd->bqs", queries, text)
    weights = masked_softmax(logits, text_mask[:, None, :])
    return jnp.einsum("bqs,bsd->bqd", weights.astype(text.dtype), text, precision=PRECISION)


class MultiHeadAttention(nn.Module):
    """MultiHead(Q, K, V) of Eq. 7 with a mask over the keys.

    softmax(q_h k_hᵀ / √(D/H) + log M) v_h for each of H heads, concatenated and projected. A query without a valid
    key yields exactly zero, so that a post without pictures keeps its text states.
    """

    num_heads: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, queries: jax.Array, keys: jax.Array, key_mask: jax.Array) -> jax.Array:
        """Queries [B, T, D], keys [B, S, D], key_mask [B, S] -> [B, T, D]."""
        size = queries.shape[-1]
        if size % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide the hidden size {size}")
        heads = (self.num_heads, size // self.num_heads)

        def project(name, states):
            return nn.DenseGeneral(heads, dtype=self.dtype, name=name)(states)

        query, key, value = project("query", queries), project("key", keys), project("value", keys)
        weights = masked_softmax(attention_logits("bthd,bshd->bhts", query, key), key_mask[:, None, None, :])
        attended = jnp.einsum("bhts,bshd->bthd", weights.astype(value.dtype), value, precision=PRECISION)
        output = nn.DenseGeneral(size, axis=(-2, -1), dtype=self.dtype, name="output")(attended)
        return jnp.where(key_mask.any(-1)[:, None, None], output, 0)

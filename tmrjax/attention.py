"""Softmax attention: ``attend`` for the whole project, Eq. 1 and the multi-head attention of Eq. 7.

Softmax and its logits are float32 whatever the inputs are. The fusion of text and pictures asks for products of float32
states in full precision: by default a GPU rounds their factors to TF32 (10 bits), a TPU to bfloat16. The dense layers
around them and the encoders follow JAX's default; ``jax.default_matmul_precision("highest")`` asks for full precision
everywhere. A mask is True where valid.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Finite and not -inf: a row without a valid key stays free of NaN, in its value and in its gradient.
_MASKED = float(jnp.finfo(jnp.float32).min)

# The products of the fusion are small beside the encoders': 49 × T and 2 × T logits a post.
PRECISION = jax.lax.Precision.HIGHEST


def masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax over the last axis where ``mask`` is True; zeros elsewhere, and in rows without any valid entry.

    logits [..., S], mask broadcastable to it -> float32 [..., S].
    """
    logits = jnp.where(mask, logits.astype(jnp.float32), _MASKED)
    return jnp.where(mask, jax.nn.softmax(logits, axis=-1), 0.0)


def attend(*arguments, **options) -> jax.Array:
    """The result of :func:`attend_with_weights` alone: a fused kernel, which has no weights, can take its place."""
    return attend_with_weights(*arguments, **options)[0]


def attend_with_weights(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
    precision: jax.lax.Precision | None = None,
    zero_without_keys: bool = True,
) -> tuple[jax.Array, jax.Array]:
    """softmax(scale · q kᵀ + bias + log mask) v for each of H heads, and that softmax.

    Prefix keys are keys: the caller concatenates them with the others.

    Args:
        queries: [B, Q, H, D], or [B, Q, D] for one head; then keys, values, bias and result have no head axis either.
        keys: [B, S, H, D].
        values: [B, S, H, E].
        mask: [B, S], True where a key is valid; None is all. What stands at other keys has no influence on the result
            or on a gradient, even NaN.
        bias: added to the scaled logits, broadcastable to [B, H, Q, S].
        scale: of the products; None is 1 / √D.
        dropout: applied to the softmax's weights [B, H, Q, S]; None where there is none.
        precision: of both products; None is JAX's default.
        zero_without_keys: a query without any valid key yields zeros. False: the mean of all values, valid or not.

    Returns:
        [B, Q, H, E] and the weights [B, H, Q, S], 0 behind the mask, both in the dtype of ``values``; logits and
        softmax are float32.

    Raises:
        ValueError: shapes do not fit together.
    """
    (batch, length), size = keys.shape[:2], keys.shape[-1]
    if queries.shape != (batch, queries.shape[1], *keys.shape[2:]) or values.shape[:-1] != keys.shape[:-1]:
        raise ValueError(
            f"queries {queries.shape}, keys {keys.shape} and values {values.shape} must be [B, Q, H, D], [B, S, H, D] "
            "and [B, S, H, E]"
        )
    # An axis of one head would make XLA sum in another order.
    h = "h" if keys.ndim == 4 else ""
    if mask is not None:
        if mask.shape != (batch, length):
            raise ValueError(f"mask has shape {mask.shape}, but keys {keys.shape} need {(batch, length)}")
        mask = mask.astype(bool)
        # 0 · NaN would let content behind the mask through, in the values as in the keys' gradient.
        kept = mask if zero_without_keys else mask | ~mask.any(-1, keepdims=True)
        kept = kept.reshape(*kept.shape, *[1] * (keys.ndim - 2))
        is_one, keys = values is keys, jnp.where(kept, keys, 0)
        values = keys if is_one else jnp.where(kept, values, 0)
        mask = mask.reshape(batch, *[1] * (keys.ndim - 2), length)
    logits = jnp.einsum(
        f"bq{h}d,bk{h}d->b{h}qk", queries, keys, precision=precision, preferred_element_type=jnp.float32
    )
    logits = logits * (np.float32(1) / np.sqrt(np.float32(size)) if scale is None else scale)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if mask is None:
        weights = jax.nn.softmax(logits, axis=-1)
    elif zero_without_keys:
        weights = masked_softmax(logits, mask)
    else:
        weights = jax.nn.softmax(jnp.where(mask, logits, _MASKED), axis=-1)
    weights = weights.astype(values.dtype)
    if dropout is not None:
        weights = dropout(weights)
    return jnp.einsum(f"b{h}qk,bk{h}d->bq{h}d", weights, values, precision=precision), weights


def cross_modal_attention(visual: jax.Array, text: jax.Array, text_mask: jax.Array, weight: jax.Array) -> jax.Array:
    """The result of :func:`cross_modal_attention_with_weights` alone."""
    return cross_modal_attention_with_weights(visual, text, text_mask, weight)[0]


def cross_modal_attention_with_weights(
    visual: jax.Array, text: jax.Array, text_mask: jax.Array, weight: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Text seen by each visual state: Eq. 1 without its final sum, ``A T`` with A = softmax((V W) Tᵀ / √D + log M).

    Args:
        visual: V [B, Q, D], patches or regions.
        text: T [B, S, D], word pieces of the sentence or of the phrases; [CLS] and [SEP] are keys as well where the
            mask holds them, as it does in this project's batches (the paper does not say).
        text_mask: M [B, S], True where valid; a post without valid text yields zeros.
        weight: W_d [D, D].

    Returns:
        A T [B, Q, D] and A [B, Q, S], both in the dtype of ``text``.

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
    queries = jnp.matmul(visual, weight.astype(visual.dtype), precision=PRECISION)
    return attend_with_weights(queries, text, text, text_mask, precision=PRECISION)


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
        attended = attend(query, key, value, key_mask, precision=PRECISION)
        output = nn.DenseGeneral(size, axis=(-2, -1), dtype=self.dtype, name="output")(attended)
        return jnp.where(key_mask.any(-1)[:, None, None], output, 0)

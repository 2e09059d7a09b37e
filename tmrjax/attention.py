"""Softmax attention: ``attend`` for the whole project, Eq. 1 and the multi-head attention of Eq. 7.

Softmax and its logits are float32 whatever the inputs are. On an NVIDIA GPU :func:`attend` takes cuDNN's flash
attention where :func:`flash_allowed` says so, which never writes the Q × S weights to memory. The fusion of text and
pictures asks for products of float32 states in full precision: by default a GPU rounds their factors to TF32 (10 bits),
a TPU to bfloat16. The dense layers around them and the encoders follow JAX's default;
``jax.default_matmul_precision("highest")``, or JAX_DEFAULT_MATMUL_PRECISION=highest in the environment, asks for full
precision everywhere. A mask is True where valid.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Finite and not -inf: a row without a valid key stays free of NaN, in its value and in its gradient.
_MASKED = float(jnp.finfo(jnp.float32).min)

# The products of the fusion are small beside the encoders': 49 × T and 2 × T logits a post.
PRECISION = jax.lax.Precision.HIGHEST

# What cuDNN's flash attention takes on every card that has it: Ampere and later.
FLASH_PLATFORM = "cuda"
FLASH_CAPABILITY = 8.0
FLASH_TYPES = (jnp.bfloat16, jnp.float16)
FLASH_HEAD_SIZE = 128


def masked_softmax(logits: jax.Array, mask: jax.Array) -> jax.Array:
    """softmax over the last axis where ``mask`` is True; zeros elsewhere, and in rows without any valid entry.

    logits [..., S], mask broadcastable to it -> float32 [..., S].
    """
    logits = jnp.where(mask, logits.astype(jnp.float32), _MASKED)
    return jnp.where(mask, jax.nn.softmax(logits, axis=-1), 0.0)


def attend(
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
) -> jax.Array:
    """softmax(scale · q kᵀ + bias + log mask) v for each of H heads.

    Prefix keys are keys: the caller concatenates them with the others. The mask may have holes and rows without any
    valid key. All this is the same in cuDNN's flash attention, which a program for an NVIDIA GPU holds instead where
    :func:`flash_allowed`. Dropout of the weights is not: where it is on, in training with the 0.1 of BERT's config.json
    for one, XLA computes the attention on every device. `attention_probs_dropout_prob` of 0 there gives the fused
    kernel to training too; in prediction nothing is dropped.

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
        [B, Q, H, E] in the dtype of ``values``; logits and softmax are float32.

    Raises:
        ValueError: shapes do not fit together.
    """
    keys, values, mask = _readable(queries, keys, values, mask, zero_without_keys)
    scale = np.float32(1) / np.sqrt(np.float32(keys.shape[-1])) if scale is None else scale

    def by_xla(queries, keys, values, mask):
        return _attend(queries, keys, values, mask, bias, scale, dropout, precision, zero_without_keys)[0]

    def by_cudnn(queries, keys, values, mask):
        return _flash(queries, keys, values, mask, scale, zero_without_keys)

    if flash_allowed(queries, keys, values, bias=bias, dropout=dropout, precision=precision) and flash_present():
        branches = {FLASH_PLATFORM: by_cudnn, "default": by_xla}
        return jax.lax.platform_dependent(queries, keys, values, mask, **branches)
    return by_xla(queries, keys, values, mask)


def attend_with_weights(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array | None = None,
    *,
    precision: jax.lax.Precision | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The result of :func:`attend`, and its softmax [B, H, Q, S], 0 behind the mask, which a fused kernel has not."""
    keys, values, mask = _readable(queries, keys, values, mask, True)
    scale = np.float32(1) / np.sqrt(np.float32(keys.shape[-1]))
    return _attend(queries, keys, values, mask, None, scale, None, precision, True)


def _readable(queries, keys, values, mask, zero_without_keys: bool) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Keys and values with zeros behind the mask, and the mask as bool; raises ValueError where shapes do not fit."""
    batch, length = keys.shape[:2]
    if queries.shape != (batch, queries.shape[1], *keys.shape[2:]) or values.shape[:-1] != keys.shape[:-1]:
        raise ValueError(
            f"queries {queries.shape}, keys {keys.shape} and values {values.shape} must be [B, Q, H, D], [B, S, H, D] "
            "and [B, S, H, E]"
        )
    if mask is not None:
        if mask.shape != (batch, length):
            raise ValueError(f"mask has shape {mask.shape}, but keys {keys.shape} need {(batch, length)}")
        mask = mask.astype(bool)
        # 0 · NaN would let content behind the mask through, in the values as in the keys' gradient.
        kept = mask if zero_without_keys else mask | ~mask.any(-1, keepdims=True)
        kept = kept.reshape(*kept.shape, *[1] * (keys.ndim - 2))
        is_one, keys = values is keys, jnp.where(kept, keys, 0)
        values = keys if is_one else jnp.where(kept, values, 0)
    return keys, values, mask


def _attend(
    queries, keys, values, mask, bias, scale, dropout, precision, zero_without_keys
) -> tuple[jax.Array, jax.Array]:
    """The formula of :func:`attend` and its softmax, for XLA; behind the mask keys and values are 0."""
    # An axis of one head would make XLA sum in another order.
    h = "h" if keys.ndim == 4 else ""
    if mask is not None:
        mask = mask.reshape(mask.shape[0], *[1] * (keys.ndim - 2), keys.shape[1])
    logits = jnp.einsum(
        f"bq{h}d,bk{h}d->b{h}qk", queries, keys, precision=precision, preferred_element_type=jnp.float32
    )
    logits = logits * scale
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


def flash_allowed(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    *,
    bias: jax.Array | None = None,
    dropout: Callable[[jax.Array], jax.Array] | None = None,
    precision: jax.lax.Precision | None = None,
) -> bool:
    """Whether cuDNN's flash attention computes what :func:`attend` is asked for; shapes and types alone decide.

    It does where all three arrays are bfloat16 or all float16, have an axis of heads, and a head's size is the same in
    queries, keys and values, a multiple of 8 and at most 128. Any lengths, any mask. Not with a bias, which it would
    round to the arrays' type, nor with dropout of the weights, nor where a precision is asked for.
    """
    arrays = queries, keys, values
    size = queries.shape[-1]
    return (
        bias is None
        and dropout is None
        and precision is None
        and any(all(array.dtype == dtype for array in arrays) for dtype in FLASH_TYPES)
        and all(len(array.shape) == 4 and array.shape[-1] == size for array in arrays)
        and size % 8 == 0
        and size <= FLASH_HEAD_SIZE
    )


@functools.cache
def flash_present() -> bool:
    """Whether a GPU of this process can run cuDNN's flash attention. Without cuDNN it cannot even be traced."""
    devices = [device for device in jax.devices() if device.platform == "gpu"]
    if not devices or any(float(getattr(device, "compute_capability", 0)) < FLASH_CAPABILITY for device in devices):
        return False
    states = jax.ShapeDtypeStruct((1, 2, 1, 8), jnp.bfloat16)
    try:
        jax.eval_shape(functools.partial(_kernel, scale=1.0), states, states, states, None)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _kernel(queries, keys, values, mask, *, scale: float) -> jax.Array:
    """cuDNN's flash attention, ``mask`` [B, 1, Q, S]."""
    return jax.nn.dot_product_attention(queries, keys, values, mask=mask, scale=scale, implementation="cudnn")


def _flash(queries, keys, values, mask, scale, zero_without_keys) -> jax.Array:
    """The formula of :func:`attend` by a fused kernel; behind the mask keys and values are 0."""
    if mask is None:
        return _kernel(queries, keys, values, None, scale=scale)
    # The kernel knows a mask as a bias, and a bias in training for even lengths only: one more query, one more key.
    (batch, length), rows = mask.shape, queries.shape[1]
    there = mask.any(-1)[:, None, None, None]
    # A query of zeros weighs all keys alike: so does a row without any valid key.
    queries = _to_even(jnp.where(there, queries, 0))
    valid = jnp.pad(mask | ~mask.any(-1, keepdims=True), ((0, 0), (0, length % 2)))
    valid = jnp.broadcast_to(valid[:, None, None], (batch, 1, queries.shape[1], valid.shape[1]))
    attended = _kernel(queries, _to_even(keys), _to_even(values), valid, scale=scale)[:, :rows]
    return jnp.where(there, attended, 0) if zero_without_keys else attended


def _to_even(states: jax.Array) -> jax.Array:
    """[B, S, H, D] with a row of zeros behind the others where S is odd."""
    return jnp.pad(states, ((0, 0), (0, states.shape[1] % 2), (0, 0), (0, 0)))


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

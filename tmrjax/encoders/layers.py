"""Layers that BERT and ViLT share: layer norm, self-attention over flattened rows, text embeddings.

Parameters are float32 whatever ``dtype`` the layers compute in; norms, attention scores and softmax are float32 inside.
Products of float32 arrays follow JAX's default precision, which is TF32 on a GPU;
``jax.default_matmul_precision("highest")`` asks for more.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from tmrjax.encoders.dropout import Dropout


def dense(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    """A linear layer, initialised as BERT is: weights from N(0, 0.02²), biases 0."""
    return nn.Dense(features, dtype=dtype, name=name, kernel_init=nn.initializers.normal(0.02))


class LayerNorm(nn.Module):
    """(x − mean) / √(var + ε) · scale + bias over the last axis, computed in float32, returned as ``dtype``."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Any shape → the same shape."""
        scale = self.param("scale", nn.initializers.ones_init(), x.shape[-1:])
        bias = self.param("bias", nn.initializers.zeros_init(), x.shape[-1:])
        x = x.astype(jnp.float32)
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        var = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return (x * lax.rsqrt(var + self.epsilon) * scale + bias).astype(self.dtype)


class TextEmbeddings(nn.Module):
    """Sum of word, position and token-type embeddings, normalised: [B,T] → [B,T,D]. ``config``: a BERT's or ViLT's."""

    config: Any
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, input_ids: Array, token_type_ids: Array | None, *, train: bool) -> Array:
        """``token_type_ids`` None is type 0 everywhere."""
        config = self.config

        def table(name: str, rows: int) -> nn.Embed:
            # Summed in float32 whatever the dtype of the rest: it costs nothing and three roundings are spared.
            return nn.Embed(rows, config.hidden_size, name=name, embedding_init=nn.initializers.normal(0.02))

        word = table("word", config.vocab_size)(input_ids)
        position = table("position", config.max_position_embeddings).embedding[: input_ids.shape[1]]
        token_type = table("token_type", config.type_vocab_size)
        kinds = token_type.embedding[0] if token_type_ids is None else token_type(token_type_ids)
        total = word + position + kinds
        normalised = LayerNorm(self.epsilon, self.dtype, name="norm")(total)
        return Dropout(config.hidden_dropout_prob)(normalised, deterministic=not train)


class SelfAttention(nn.Module):
    """Multi-head self-attention with its output projection: [B·T,D], keys valid where ``attention_mask`` → [B·T,D]."""

    num_heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: Array, attention_mask: Array, *, train: bool) -> Array:
        """``attention_mask`` [B,T] tells the rows of a text apart."""
        batch, length = attention_mask.shape
        width, heads = hidden.shape[-1], self.num_heads

        def project(name: str) -> Array:
            return dense(width, self.dtype, name)(hidden).reshape(batch, length, heads, width // heads)

        query, key, value = project("query"), project("key"), project("value")
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        scores = scores * (width // heads) ** -0.5
        # A finite minimum and not -inf: a row without any valid key (an absent phrase) becomes uniform, not NaN.
        scores = jnp.where(attention_mask[:, None, None, :], scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(self.dtype)
        weights = Dropout(self.dropout)(weights, deterministic=not train)
        context = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch * length, width)
        return dense(width, self.dtype, "output")(context)

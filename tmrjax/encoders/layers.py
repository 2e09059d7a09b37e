"""Layers that transformers share: layer norm, self-attention over flattened rows, text embeddings, BERT's block.

Parameters are float32 whatever ``dtype`` the layers compute in; norms, attention scores and softmax are float32 inside.
Products of float32 arrays follow JAX's default precision, which is TF32 on a GPU;
``jax.default_matmul_precision("highest")`` asks for more.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from tmrjax.attention import attend
from tmrjax.encoders.activations import ACTIVATIONS
from tmrjax.encoders.base import Fusion, Prefix
from tmrjax.encoders.dropout import Dropout


def dense(features: int, dtype: jnp.dtype, name: str | None) -> nn.Dense:
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
    """Sum of word, position and token-type embeddings, normalised: [B,T] → [B,T,E].

    Attributes:
      config: a :class:`tmrjax.encoders.config.TransformerConfig`; a ``type_vocab_size`` of 0 has no token types.
      epsilon: of the norm.
      dtype: of the result.
    """

    config: Any
    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        input_ids: Array | None,
        token_type_ids: Array | None,
        *,
        train: bool,
        word_embeddings: Array | None = None,
        positions: Array | None = None,
        bare: bool = False,
    ) -> Array:
        """``token_type_ids`` None is type 0 everywhere, ``positions`` [B,T] None is 0, 1, ….

        ``word_embeddings`` [B,T,E] takes the place of the word table's rows. ``bare``: where one of the other two is
        None, nothing of its table is added.
        """
        config = self.config
        word = embed_words(config, input_ids, word_embeddings)
        table = embedding_table("position", config.max_position_embeddings, config.embedding_width)
        total = word
        if not bare or positions is not None:
            total = total + (table.embedding[: word.shape[1]] if positions is None else table(positions))
        if config.type_vocab_size and not (bare and token_type_ids is None):
            token_type = embedding_table("token_type", config.type_vocab_size, config.embedding_width)
            total = total + (token_type.embedding[0] if token_type_ids is None else token_type(token_type_ids))
        normalised = LayerNorm(self.epsilon, self.dtype, name="norm")(total)
        return Dropout(config.hidden_dropout_prob)(normalised, deterministic=not train)


def embedding_table(name: str, rows: int, width: int) -> nn.Embed:
    """A table of embeddings, initialised as BERT's are: from N(0, 0.02²)."""
    # Summed in float32 whatever the dtype of the rest: it costs nothing and three roundings are spared.
    return nn.Embed(rows, width, name=name, embedding_init=nn.initializers.normal(0.02))


def embed_words(config: Any, input_ids: Array | None, word_embeddings: Array | None) -> Array:
    """Rows of the table "word" [B,T,E], or the embeddings that take their place, in float32."""
    table = embedding_table("word", config.vocab_size, config.embedding_width)
    if word_embeddings is None:
        return table(input_ids)
    _ = table.embedding  # the parameter exists whatever the first call is
    return word_embeddings.astype(jnp.float32)


class SelfAttention(nn.Module):
    """Multi-head self-attention with its output projection: [B·T,D], keys valid where ``attention_mask`` → [B·T,D]."""

    num_heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, hidden: Array, attention_mask: Array, *, train: bool, prefix: Prefix | None = None, parts: bool = False
    ) -> Array | tuple[Array, Array, Prefix]:
        """``attention_mask`` [B,T] tells the rows of a text apart; the keys of ``prefix`` stand before those of it.

        ``parts``: also the heads side by side before the projection [B,T,D], and the text's own keys and values.
        """
        width, heads = hidden.shape[-1], self.num_heads

        def project(name: str) -> Array:
            return dense(width, self.dtype, name)(hidden).reshape(*attention_mask.shape, heads, width // heads)

        query, key, value = project("query"), project("key"), project("value")
        own = Prefix(key, value, attention_mask)
        key, value, mask = with_prefix(prefix, key, value, attention_mask)
        # A row without any valid key (an absent phrase) attends to all keys alike.
        attended = attend(
            query, key, value, mask, dropout=weight_dropout(self.dropout, train=train), zero_without_keys=False
        )
        output = dense(width, self.dtype, "output")(attended.reshape(hidden.shape))
        return (output, attended.reshape(*attention_mask.shape, width), own) if parts else output


def weight_dropout(rate: float, *, train: bool) -> Callable[[Array], Array] | None:
    """Dropout of an attention's weights, made inside of its compact method; None where it is off."""
    return functools.partial(Dropout(rate), deterministic=False) if train and rate else None


def with_prefix(prefix: Prefix | None, keys: Array, values: Array, attention_mask: Array) -> tuple[Array, Array, Array]:
    """Keys and values [B,P+T,H,D/H] and their mask [B,P+T], those of the prefix first.

    Raises ValueError where the prefix has other rows, heads or sizes than the text.
    """
    if prefix is None:
        return keys, values, attention_mask
    batch, _, *heads = keys.shape
    expected = (batch, prefix.keys.shape[1], *heads)
    mask = jnp.ones(expected[:2], bool) if prefix.mask is None else prefix.mask.astype(bool)
    if prefix.keys.shape != expected or prefix.values.shape != expected or mask.shape != expected[:2]:
        raise ValueError(
            f"prefix keys {prefix.keys.shape}, values {prefix.values.shape} and mask {mask.shape} must be "
            f"[{batch}, P, {heads[0]}, {heads[1]}] twice and [{batch}, P]"
        )
    keys = jnp.concatenate([prefix.keys.astype(keys.dtype), keys], axis=1)
    values = jnp.concatenate([prefix.values.astype(values.dtype), values], axis=1)
    return keys, values, jnp.concatenate([mask, attention_mask], axis=1)


class PostNormLayer(nn.Module):
    """The transformer block of BERT: attention and feed-forward, a residual and a norm behind each; [B·T,D] → [B·T,D].

    A subclass with another attention overrides ``attention``.
    """

    config: Any
    dtype: jnp.dtype

    # ``train`` by position: nn.remat has no static keywords.
    @nn.compact
    def __call__(
        self,
        hidden: Array,
        attention_mask: Array,
        prefix: Prefix | None,
        shared: Array | None,
        train: bool,
        fusion: Fusion | None = None,
    ) -> Array | tuple[Array, Prefix]:
        """``shared``: what the encoder gives to all of its layers, if anything.

        ``fusion``: what joins the feed-forward network; with it the layer also hands out its own keys and values.
        """
        config = self.config

        def add_and_normalise(change: Array, residual: Array, name: str) -> Array:
            change = Dropout(config.hidden_dropout_prob)(change, deterministic=not train)
            return LayerNorm(config.layer_norm_eps, self.dtype, name=name)(change + residual)

        if fusion is None:
            attended = self.attention(hidden, attention_mask, prefix, shared, train)
        else:
            attended, context, own = self.attention(hidden, attention_mask, prefix, shared, train, parts=True)
        hidden = add_and_normalise(attended, hidden, "attention_norm")
        inner = dense(config.intermediate_size, self.dtype, "intermediate")(hidden)
        if fusion is not None and fusion.states is not None:
            inner = inner + _joining(context, fusion).reshape(inner.shape)
        inner = ACTIVATIONS[config.hidden_act](inner)
        hidden = add_and_normalise(dense(config.hidden_size, self.dtype, "output")(inner), hidden, "output_norm")
        return hidden if fusion is None else (hidden, own)

    def attention(self, hidden, attention_mask, prefix, shared, train, parts=False) -> Array:
        """The attention with its output projection; part of the compact method above."""
        del shared
        config = self.config
        module = SelfAttention(
            config.num_attention_heads, config.attention_probs_dropout_prob, self.dtype, name="attention"
        )
        return module(hidden, attention_mask, train=train, prefix=prefix, parts=parts)


def _joining(context: Array, fusion: Fusion) -> Array:
    """What :class:`tmrjax.encoders.base.Fusion` says, [B,T,I]."""
    states = fusion.states.astype(context.dtype)
    attended = attend(context, states, states, fusion.mask, scale=fusion.scale)
    joining = attended @ fusion.kernel.astype(context.dtype) + fusion.bias.astype(context.dtype)
    return joining if fusion.mask is None else jnp.where(fusion.mask.any(-1)[:, None, None], joining, 0)

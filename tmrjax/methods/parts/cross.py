"""BERT's layer with queries from one sequence, keys and values from another (Tsai et al., ACL 2019, as UMT has it).

    H = LN(x + dropout(MultiHead(x, y, y))),   Layer(x; y) = LN(H + dropout(FFN(H)))

The residual is x. With y = x it is a layer of BERT.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from tmrjax.attention import attend
from tmrjax.encoders.layers import PostNormLayer, dense, weight_dropout


class CrossAttention(nn.Module):
    """softmax(q_h k_hᵀ / √(D/H) + log mask) v_h for each of H heads, joined and projected.

    A row without any valid key gives the output projection's bias; :class:`CrossLayer` takes care of it.
    """

    num_heads: int
    dropout: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, states: Array, others: Array, mask: Array, *, train: bool) -> Array:
        """``states`` [B, T, D], ``others`` [B, S, D], ``mask`` [B, S] -> [B, T, D]."""
        width, heads = states.shape[-1], self.num_heads

        def project(name: str, rows: Array) -> Array:
            return dense(width, self.dtype, name)(rows).reshape(*rows.shape[:2], heads, width // heads)

        query, key, value = project("query", states), project("key", others), project("value", others)
        attended = attend(query, key, value, mask, dropout=weight_dropout(self.dropout, train=train))
        return dense(width, self.dtype, "output")(attended.reshape(states.shape))


class CrossLayer(PostNormLayer):
    """Layer(x; y): [B, T, D] -> [B, T, D]; ``config`` has the sizes of a text encoder.

    Where a row of y has no valid key, attention adds nothing to x there. Without y (None) it adds nothing anywhere,
    and the layer has no parameters of an attention.
    """

    def __call__(self, states: Array, others: Array | None, mask: Array | None, *, train: bool) -> Array:
        """x, y [B, S, D] and its mask [B, S], True where valid."""
        mask = jnp.zeros(states.shape[:2], bool) if others is None else mask.astype(bool)
        flat = states.reshape(-1, states.shape[-1])
        return super().__call__(flat, mask, None, others, train).reshape(states.shape)

    def attention(self, hidden, attention_mask, prefix, shared, train) -> Array:
        """What attention adds; ``shared`` is y."""
        del prefix
        if shared is None:
            return jnp.zeros_like(hidden)
        config, rows = self.config, (shared.shape[0], -1, hidden.shape[-1])
        module = CrossAttention(
            config.num_attention_heads, config.attention_probs_dropout_prob, self.dtype, name="attention"
        )
        attended = module(hidden.reshape(rows), shared, attention_mask, train=train)
        return jnp.where(attention_mask.any(-1)[:, None, None], attended, 0).reshape(hidden.shape)

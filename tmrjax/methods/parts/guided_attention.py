"""Self-attention and guided attention as OCSGA takes them from the modular co-attention network (Yu et al., CVPR 2019).

Layer norm there divides by the standard deviation of n − 1 degrees of freedom with ε added to it, which no layer of the
encoders does.
"""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from tmrjax.attention import attend
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import weight_dropout

_EPSILON = 1e-6


class DeviationNorm(nn.Module):
    """scale · (x − mean) / (std + 10⁻⁶) + bias over the last axis of n entries, std with n − 1, in float32."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Any shape → the same shape and dtype."""
        size, dtype, x = x.shape[-1], x.dtype, x.astype(jnp.float32)
        scale = self.param("scale", nn.initializers.ones_init(), (size,))
        bias = self.param("bias", nn.initializers.zeros_init(), (size,))
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.sum(centred**2, axis=-1, keepdims=True) / (size - 1)
        # Entries that are all one say nothing: what dropout leaves of attention to a single object, before biases are
        # learned. Their slope would be 1/ε, a million, and such a step would end training of what stands before.
        varied = variance > 0
        deviation = jnp.sqrt(jnp.where(varied, variance, 1)) + _EPSILON
        return (scale * jnp.where(varied, centred / deviation, 0) + bias).astype(dtype)


class Attention(nn.Module):
    """softmax(q kᵀ / √(D/H) + log mask) v for each of H heads, merged by a linear layer.

    Attributes:
        num_heads: H.
        dropout: on the weights.
        zero_without_keys: see :func:`tmrjax.attention.attend`.
    """

    num_heads: int
    dropout: float
    zero_without_keys: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, queries: Array, keys: Array, mask: Array, *, train: bool) -> Array:
        """queries [B, Q, D], keys that are values too [B, S, D], mask [B, S] -> [B, Q, D]."""
        size = queries.shape[-1]
        if size % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide the hidden size {size}")

        def project(x: Array, name: str) -> Array:
            split = (*x.shape[:2], self.num_heads, size // self.num_heads)
            return nn.Dense(size, dtype=self.dtype, name=name)(x).reshape(split)

        attended = attend(
            project(queries, "query"), project(keys, "key"), project(keys, "value"), mask,
            dropout=weight_dropout(self.dropout, train=train), zero_without_keys=self.zero_without_keys,
        )  # fmt: skip
        return nn.Dense(size, dtype=self.dtype, name="merge")(attended.reshape(queries.shape))


class GuidedLayer(nn.Module):
    """One layer over x: attention to itself, to a guide where there is one, a feed-forward layer; a norm after each.

        x := norm_1(x + Att(x, x))      x := norm_2(x + Att(x, guide))      x := norm_3(x + W_2 relu(W_1 x))

    ``last``: norm_2(Att(queries, x)) and norm_3(feed-forward) without residuals; the guide asks, and the result has its
    shape.

    Attributes:
        num_heads, zero_without_keys: of the attention.
        dropout: on weights, inside of the feed-forward layer and before each norm.
        last: see above.
    """

    num_heads: int
    dropout: float
    zero_without_keys: bool
    dtype: jnp.dtype
    last: bool = False

    @nn.compact
    def __call__(
        self, x: Array, mask: Array, guide: Array | None = None, guide_mask: Array | None = None, *, train: bool
    ) -> Array:
        """x [B, S, D] with its mask [B, S]; guide [B, Q, D] with its own -> [B, S, D], or [B, Q, D] of the last."""

        def attention(name: str) -> Attention:
            return Attention(self.num_heads, self.dropout, self.zero_without_keys, self.dtype, name=name)

        def norm(change: Array, residual: Array | None, name: str) -> Array:
            change = Dropout(self.dropout)(change, deterministic=not train)
            return DeviationNorm(name=name)(change if residual is None else residual + change)

        x = norm(attention("self_attention")(x, x, mask, train=train), x, "self_norm")
        if guide is not None:
            attend_to = attention("guided_attention")
            if self.last:
                x = norm(attend_to(guide, x, mask, train=train), None, "guided_norm")
            else:
                x = norm(attend_to(x, guide, guide_mask, train=train), x, "guided_norm")
        inner = nn.relu(nn.Dense(4 * x.shape[-1], dtype=self.dtype, name="intermediate")(x))
        inner = Dropout(self.dropout)(inner, deterministic=not train)
        change = nn.Dense(x.shape[-1], dtype=self.dtype, name="output")(inner)
        return norm(change, None if self.last else x, "output_norm")

"""One layer of UMGF's graph of words and objects: attention within each side, gates between the two.

x [T, m] are words, o [O, m] objects; addnorm(u, s) = LN(u + dropout(s)); M [T, O] has 1 where both are there.

    x' = addnorm(x, MultiHead(x, x, x)),  o' = addnorm(o, softmax(Q Kᵀ / √d) o)    Q, K of o by head, o cut into heads
    α_tn = σ([x'_t; o'_n] W_x + b_x),  x'' = addnorm(x', Σ_n M_tn α_tn ⊙ o'_n)
    β_nt = σ([x'_t; o'_n] W_o + b_o),  o'' = addnorm(o', Σ_t M_tn β_nt ⊙ x'_t)
    x = addnorm(x'', FFN(x'')),  o = addnorm(o'', FFN(o''))    FFN: a linear layer, ReLU, a linear layer
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tmrjax.attention import attend
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import LayerNorm, weight_dropout

EPSILON = 1e-5


def linear(features: int, dtype: jnp.dtype, name: str) -> nn.Dense:
    """A linear layer, its weights drawn as Glorot and Bengio (2010) do, uniformly."""
    return nn.Dense(features, dtype=dtype, name=name, kernel_init=nn.initializers.glorot_uniform())


class Gate(nn.Module):
    """σ([x_t; o_n] W + b) for every pair: x [B, T, m], o [B, O, m] -> [B, T, O, m]."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, words: Array, objects: Array) -> Array:
        """The product with W is made for words and for objects, not for pairs."""
        size = words.shape[-1]
        kernel = self.param("kernel", nn.initializers.glorot_uniform(), (2 * size, size)).astype(self.dtype)
        bias = self.param("bias", nn.initializers.zeros_init(), (size,)).astype(self.dtype)
        return jax.nn.sigmoid((words @ kernel[:size])[:, :, None] + (objects @ kernel[size:] + bias)[:, None])


class GatedGraphLayer(nn.Module):
    """See the module.

    Attributes:
        num_heads: of both attentions. inner_size: of both FFNs.
        dropout: of addnorm and of the attentions' weights.
        last: nobody reads the objects behind this layer: they end with o'.
    """

    num_heads: int
    inner_size: int
    dropout: float
    dtype: jnp.dtype
    last: bool

    @nn.compact
    def __call__(
        self, words: Array, word_mask: Array, objects: Array | None, object_mask: Array | None, *, train: bool
    ) -> tuple[Array, Array | None]:
        """Words [B, T, m] and objects [B, O, m] with their masks -> both; no objects are None."""
        size, heads = words.shape[-1], self.num_heads

        def split(states):
            return states.reshape(*states.shape[:2], heads, size // heads)

        def add_and_normalise(states, change, name):
            change = Dropout(self.dropout)(change, deterministic=not train)
            return LayerNorm(EPSILON, self.dtype, name=name)(states + change)

        def feed_forward(states, name):
            inner = nn.relu(linear(self.inner_size, self.dtype, f"{name}_inner")(states))
            return add_and_normalise(states, linear(size, self.dtype, f"{name}_output")(inner), f"{name}_norm")

        def project(states, name):
            return split(linear(size, self.dtype, name)(states))

        dropout = weight_dropout(self.dropout, train=train)
        query, key, value = (project(words, f"word_{name}") for name in ("query", "key", "value"))
        attended = attend(query, key, value, word_mask, dropout=dropout).reshape(words.shape)
        words = add_and_normalise(words, linear(size, self.dtype, "word_output")(attended), "word_attention_norm")
        if objects is None:
            return feed_forward(add_and_normalise(words, jnp.zeros_like(words), "word_gate_norm"), "word_ffn"), None

        query, key = project(objects, "object_query"), project(objects, "object_key")
        attended = attend(query, key, split(objects), object_mask, dropout=dropout).reshape(objects.shape)
        objects = add_and_normalise(objects, attended, "object_attention_norm")

        pairs = (word_mask[:, :, None] & object_mask[:, None])[..., None]
        gates = jnp.where(pairs, Gate(self.dtype, name="word_gate")(words, objects), 0)
        gathered = jnp.einsum("btnm,bnm->btm", gates, objects)
        new_words = add_and_normalise(words, gathered, "word_gate_norm")
        if not self.last:
            gates = jnp.where(pairs, Gate(self.dtype, name="object_gate")(words, objects), 0)
            gathered = jnp.einsum("btnm,btm->bnm", gates, words)
            objects = feed_forward(add_and_normalise(objects, gathered, "object_gate_norm"), "object_ffn")
        return feed_forward(new_words, "word_ffn"), objects

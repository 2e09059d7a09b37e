"""The table of words that methods without word pieces read; a file of word vectors fills it."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from tmrjax.encoders.dropout import counter_bits, dropped_levels
from tmrjax.inputs.vocabulary import PADDING, UNKNOWN


def by_width(key: Array, shape: tuple[int, int], dtype: jnp.dtype = jnp.float32) -> Array:
    """Uniform within √(3 / width), as Ma and Hovy (2016) draw what has no vector: variance 1 / width."""
    limit = (3 / shape[-1]) ** 0.5
    return jax.random.uniform(key, shape, dtype, minval=-limit, maxval=limit)


class WordTable(nn.Module):
    """Rows of a table: [B, W] -> [B, W, size] float32. Its parameter is ``embedding``, as of linen's Embed.

    Attributes:
        rows, size: of the table.
        frozen: no gradient into it.
        word_dropout: probability that a word of a training post is read as an unknown one. The vocabulary is that of
            the training text: without this the row of unknown words would stay as it was drawn. Lample et al. (2016)
            do it to words that occur once, with probability 0.5.
    """

    rows: int
    size: int
    frozen: bool = False
    word_dropout: float = 0.0

    @nn.compact
    def __call__(self, ids: Array, *, train: bool) -> Array:
        """The rows of ``ids``; ``train`` turns word dropout on."""
        table = self.param("embedding", by_width, (self.rows, self.size))
        levels = dropped_levels(self.word_dropout)
        if train and levels:
            dropped = counter_bits(self.make_rng("dropout"), ids.shape) >> 16 < levels
            ids = jnp.where(dropped & (ids != PADDING), UNKNOWN, ids)
        return jnp.take(jax.lax.stop_gradient(table) if self.frozen else table, ids, axis=0)

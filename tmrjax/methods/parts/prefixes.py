"""HVPNeT's visual prefix: maps of several pictures into keys and values for every layer of a text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.base import Prefix

# Places along a side of a pooled map, and chunks that a gate weighs.
GRID, CHUNKS = 2, 4
ROWS = GRID * GRID


class VisualPrefix(nn.Module):
    """Equations (1) to (5) of :mod:`tmrjax.methods.hvpnet`.

    Attributes:
        width: D of the text encoder. num_heads, num_layers: H and the number of its layers.
        hidden_size: units of the MLP's hidden layer.
        literal: the released arithmetic.
    """

    width: int
    num_heads: int
    num_layers: int
    hidden_size: int
    literal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, stages: Sequence[jax.Array], mask: jax.Array) -> tuple[Prefix, ...]:
        """One prefix of N · 4 rows for each layer.

        Args:
            stages: maps [B, N, h, w, C_l] of N pictures, one array a stage.
            mask: [B, N], True where a picture is there.

        Raises:
            ValueError: with ``literal``, a map of less than two places along a side.
        """
        batch, count = mask.shape
        rows = self.rows(stages)
        hidden = jnp.tanh(nn.Dense(self.hidden_size, dtype=self.dtype, name="hidden")(rows))
        mapped = nn.Dense(2 * CHUNKS * self.width, dtype=self.dtype, name="output")(hidden)
        mapped = mapped.reshape(batch, count, ROWS, CHUNKS, 2 * self.width)
        mean = mapped.mean(3).reshape(batch, count, -1)
        present = None if self.literal else jnp.repeat(mask.astype(bool), ROWS, axis=1)
        prefixes = []
        for index in range(self.num_layers):
            logits = nn.Dense(CHUNKS, dtype=self.dtype, name=f"gate_{index}")(mean)
            gate = nn.softmax(nn.leaky_relu(logits.astype(jnp.float32), 0.01)).astype(self.dtype)
            both = jnp.einsum("bnc,bnpcd->bnpd", gate, mapped).reshape(batch, count * ROWS, 2, self.width)
            prefixes.append(Prefix(self.split(both[:, :, 0]), self.split(both[:, :, 1]), present))
        return tuple(prefixes)

    def rows(self, stages: Sequence[jax.Array]) -> jax.Array:
        """(1): [B, N, 4, Σ C_l]."""
        pooled = jnp.concatenate([self.pool(maps) for maps in stages], axis=-1)
        if self.literal:
            # Channels before places: a row is a slab of channels.
            pooled = pooled.transpose(0, 1, 4, 2, 3)
        return pooled.reshape(*pooled.shape[:2], ROWS, -1).astype(self.dtype)

    def pool(self, maps: jax.Array) -> jax.Array:
        """Means over the four quarters of a map, [B, N, 2, 2, C]; halves of an odd side share the line between them."""
        height, width = maps.shape[2:4]
        if self.literal and min(height, width) < GRID:
            raise ValueError(
                f"a map of {height} x {width} places: the released pooling needs {GRID} along a side; take larger "
                "pictures, or literal=False"
            )

        def halves(size: int) -> tuple[slice, slice]:
            half = size // 2
            # The released kernel is floor(S / 2): of an odd side the last line is not read.
            return (slice(half), slice(half, 2 * half)) if self.literal else (slice(size - half), slice(half, size))

        quarters = [[maps[:, :, y, x].mean((2, 3)) for x in halves(width)] for y in halves(height)]
        return jnp.stack([jnp.stack(line, axis=2) for line in quarters], axis=2)

    def split(self, states: jax.Array) -> jax.Array:
        """[B, S, D] into heads, [B, S, H, D/H]."""
        batch, count, width = states.shape
        heads, size = self.num_heads, width // self.num_heads
        if self.literal:
            return states.reshape(batch, heads, count, size).swapaxes(1, 2)
        return states.reshape(batch, count, heads, size)

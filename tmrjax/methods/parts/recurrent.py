"""LSTM over sequences of their own lengths, one or both directions, as taggers before BERT read words and characters.

    [i; f; g; o] = x_t W + h_{t−1} U + b + b',   c_t = σ(f) c_{t−1} + σ(i) tanh(g),   h_t = σ(o) tanh(c_t)

(Hochreiter and Schmidhuber 1997, with forget gates.) A position whose mask is False leaves h and c as they are and has
the state 0: the result is that of each sequence by itself, as in PyTorch with packed sequences. Gates stand in
PyTorch's order, and there are two biases as there, so that its weights fit.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

from tmrjax.encoders.dropout import Dropout

DIRECTIONS = ("forward", "backward")


class LSTM(nn.Module):
    """Layers of LSTMs over [B, T, D].

    Attributes:
        features: H, of one direction.
        bidirectional: whether a second LSTM reads each sequence from its end.
        num_layers: the next layer reads the states of both directions.
        dropout: on the states between layers.
        forget_bias: what the forget gate's bias begins with; Jozefowicz et al. (2015) recommend 1.
        dtype: of products; gates and states are float32.

    Parameters of a layer and direction are ``layer_0/forward/``: input_kernel [D, 4 H], recurrent_kernel [H, 4 H],
    input_bias and recurrent_bias [4 H].
    """

    features: int
    bidirectional: bool = True
    num_layers: int = 1
    dropout: float = 0.0
    forget_bias: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, inputs: Array, mask: Array, *, train: bool) -> tuple[Array, Array]:
        """(states, last) of the last layer.

        Args:
            inputs: [B, T, D]; what stands where ``mask`` is False has no influence, even NaN.
            mask: [B, T], True where valid; it need not be a prefix.
            train: turns dropout on.

        Returns:
            states [B, T, N H] for N directions, 0 where the mask is False; last [B, N H], each direction's state after
            the last position that it reads: the forward one's at the end, the backward one's at the beginning.
        """
        mask = mask.astype(bool)
        states, last = inputs, None
        for layer in range(self.num_layers):
            if layer:
                states = Dropout(self.dropout)(states, deterministic=not train)
            states, last = _Layer(
                self.features, self.bidirectional, self.forget_bias, self.dtype, name=f"layer_{layer}"
            )(states, mask)
        return states, last


class _Layer(nn.Module):
    """One layer; both directions take their steps in one scan."""

    features: int
    bidirectional: bool
    forget_bias: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, inputs: Array, mask: Array) -> tuple[Array, Array]:
        inputs = jnp.where(mask[..., None], inputs, 0).astype(self.dtype)
        weights = [
            _Weights(self.features, inputs.shape[-1], self.forget_bias, name=name)()
            for name in DIRECTIONS[: 1 + self.bidirectional]
        ]
        gates, masks = [], []
        for number, (kernel, _, bias) in enumerate(weights):
            # The product with the inputs needs no state: one product for all positions.
            read = (inputs @ kernel.astype(self.dtype)).astype(jnp.float32) + bias
            flip = slice(None, None, -1 if number else 1)
            gates.append(read.swapaxes(0, 1)[flip])
            masks.append(mask.T[flip])
        recurrent = jnp.stack([weight for _, weight, _ in weights]).astype(self.dtype)
        states, last = _scan(jnp.stack(gates, 1), jnp.stack(masks, 1)[..., None], recurrent)
        sides = [states[:, number][:: -1 if number else 1] for number in range(len(weights))]
        joined = jnp.concatenate(sides, axis=-1).swapaxes(0, 1)
        return joined.astype(self.dtype), jnp.concatenate(list(last), axis=-1).astype(self.dtype)


class _Weights(nn.Module):
    """Those of one direction: (input kernel, recurrent kernel, sum of both biases)."""

    features: int
    inputs: int
    forget_bias: float

    @nn.compact
    def __call__(self) -> tuple[Array, Array, Array]:
        size = self.features

        def glorot(rows: int):
            """As Ma and Hovy (2016) draw each gate's matrix: uniform within √(6 / (rows + columns))."""
            limit = (6 / (rows + size)) ** 0.5
            return lambda key, shape: jax.random.uniform(key, shape, minval=-limit, maxval=limit)

        def forget(key, shape):
            return jnp.zeros(shape).at[size : 2 * size].set(self.forget_bias)

        kernel = self.param("input_kernel", glorot(self.inputs), (self.inputs, 4 * size))
        recurrent = self.param("recurrent_kernel", glorot(size), (size, 4 * size))
        bias = self.param("input_bias", forget, (4 * size,))
        return kernel, recurrent, bias + self.param("recurrent_bias", nn.initializers.zeros_init(), (4 * size,))


def _scan(gates: Array, mask: Array, recurrent: Array) -> tuple[Array, Array]:
    """The recursion of N directions, each in its own order of time.

    gates [T, N, B, 4 H], mask [T, N, B, 1], recurrent [N, H, 4 H] -> states [T, N, B, H], last [N, B, H], float32.
    """

    def step(carry, position):
        hidden, cell = carry
        gate, valid = position
        product = jnp.einsum("nbh,nhg->nbg", hidden.astype(recurrent.dtype), recurrent)
        i, f, g, o = jnp.split(gate + product.astype(jnp.float32), 4, axis=-1)
        new_cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        new_hidden = jax.nn.sigmoid(o) * jnp.tanh(new_cell)
        hidden, cell = jnp.where(valid, new_hidden, hidden), jnp.where(valid, new_cell, cell)
        return (hidden, cell), jnp.where(valid, new_hidden, 0)

    zeros = jnp.zeros((*gates.shape[1:3], recurrent.shape[1]), jnp.float32)
    # Not unrolled: on a CPU 4 or 8 steps at once took longer to run, and several times longer to compile.
    (last, _), states = lax.scan(step, (zeros, zeros), (gates, mask))
    return states, last

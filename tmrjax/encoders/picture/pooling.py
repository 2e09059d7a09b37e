"""Max pooling as ResNet has it, with a gradient that is fast on CPU."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

_SIZE, _STRIDE = 3, 2


@jax.custom_vjp
def max_pool(x: Array) -> Array:
    """Maximum over 3 × 3 windows, stride 2, one place of padding that never wins: [N,H,W,C] → [N,⌈H/2⌉,⌈W/2⌉,C].

    The gradient goes to the first of a window's largest places, by rows. For XLA's own (``select_and_scatter``) a CPU
    writes four integers a place and adds one value after another; a program lowered for CPU asks every window which
    of its places won instead, and every place which of its windows it won: a fifth of the time, and the same bits.
    """
    return _xlas(x)


def _xlas(x: Array) -> Array:
    return nn.max_pool(x, (_SIZE, _SIZE), strides=(_STRIDE, _STRIDE), padding=((1, 1), (1, 1)))


def _forward(x: Array) -> tuple[Array, Array]:
    return max_pool(x), x


def _backward(x: Array, gradient: Array) -> tuple[Array]:
    def xlas(x, gradient):
        return jax.vjp(_xlas, x)[1](gradient)[0]

    return (lax.platform_dependent(x, gradient, cpu=_by_winners, default=xlas),)


max_pool.defvjp(_forward, _backward)


def _winners(x: Array) -> Array:
    """For every window the number of the place that won, 0 to 8 by rows: int8 [N,⌈H/2⌉,⌈W/2⌉,C]."""
    pooled_height, pooled_width = (-(-side // _STRIDE) for side in x.shape[1:3])
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    after = (2 * pooled_height - x.shape[1], 2 * pooled_width - x.shape[2])  # an odd side's last window ends outside
    padded = lax.pad(x, lowest, [(0, 0, 0), (1, after[0], 0), (1, after[1], 0), (0, 0, 0)])
    best, winner = None, None
    for row in range(_SIZE):
        for column in range(_SIZE):
            stop = (row + 2 * pooled_height - 1, column + 2 * pooled_width - 1)
            value = lax.slice(padded, (0, row, column, 0), (len(x), *stop, x.shape[-1]), (1, _STRIDE, _STRIDE, 1))
            if best is None:
                best, winner = value, jnp.zeros(value.shape, jnp.int8)
            else:
                larger = value > best
                best = jnp.where(larger, value, best)
                winner = jnp.where(larger, jnp.int8(row * _SIZE + column), winner)
    return winner


def _by_winners(x: Array, gradient: Array) -> Array:
    """Place 2 i of x lies in window i alone, in its middle; 2 i + 1 ends window i and begins window i + 1."""
    number, height, width, channels = gradient.shape
    windows = {0: ((1, 0),), 1: ((2, 0), (0, 1))}  # of a place's remainder: its position in a window, that window − i
    # A window more below and at the right, which no place won.
    padding = [(0, 0, 0), (0, 1, 0), (0, 1, 0), (0, 0, 0)]
    winner = lax.pad(_winners(x), jnp.int8(-1), padding)
    gradient = lax.pad(gradient, jnp.zeros((), gradient.dtype), padding)

    def of_remainders(row_remainder, column_remainder):
        total = 0
        for row, down in windows[row_remainder]:
            for column, right in windows[column_remainder]:
                there = (slice(None), slice(down, down + height), slice(right, right + width))
                total = total + jnp.where(winner[there] == row * _SIZE + column, gradient[there], 0)
        return total

    rows = [jnp.stack([of_remainders(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
    whole = jnp.stack(rows, axis=2).reshape(number, 2 * height, 2 * width, channels)
    return whole[:, : x.shape[1], : x.shape[2]]

"""Dropout whose random bits are cheap to make, cheap to compile and the same on any number of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array, lax

_LEVELS = 1 << 16


def dropped_levels(rate: float) -> int:
    """The number of the 65,536 values of a 16-bit word for which an element is dropped: round(rate · 65536)."""
    return round(rate * _LEVELS)


def counter_bits(key: Array, shape: tuple[int, ...]) -> Array:
    """32 random bits per element: a function of the key and of the element's position in row-major order alone.

    h(h(position ⊕ k₀) ⊕ k₁) with a bijective integer hash h and two words k₀, k₁ of the key. For dropout it replaces
    ``jax.random.bits``: threefry's twenty rounds per element cost ten times as much on CPU, and as much of the compile
    time; XLA fuses this into the multiplication that uses it. It is no generator for simulations or secrets.

    Args:
      key: a JAX key, typed or raw, that nothing else uses: the bits of two keys are as independent as the keys.
      shape: of the result, up to 2³² elements.

    Returns:
      uint32 array. The high bits are the better ones.
    """
    words = jax.random.key_data(key) if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) else key
    position = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        # By axis and not as one long iota reshaped: so that each device makes its own part of a sharded array.
        position = position + lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
        stride *= shape[axis]
    return _hash(_hash(position ^ words[..., 0]) ^ words[..., -1])


def _hash(x: Array) -> Array:
    """A bijection of 32-bit words with good avalanche: two xor-shift-multiply rounds.

    Shifts and multipliers were found by search for the least bias (C. Wellons and TheIronBorn, "hash-prospector",
    2018 and 2022; public domain).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)


class Dropout(nn.Module):
    """Sets elements to zero with probability ``rate`` and divides the rest by the probability of being kept.

    Each element is decided by 16 random bits, so that the probability used is p = round(rate · 2¹⁶) / 2¹⁶, within
    2⁻¹⁷ of ``rate`` (0.1 becomes 0.100006). The scale is 1 / (1 − p) with this same p, so that the expectation of the
    result is the argument itself, up to the rounding of the scale to the argument's dtype: 1.1111 is 1.109 in bfloat16,
    0.2 % too small.

    The bits depend on the key of the RNG collection "dropout", on the module's path and on the element's position
    alone: a batch that is sharded over several devices is treated as on one.

    Attributes:
      rate: the probability of dropping, in [0, 1); 0 does nothing and needs no key.
    """

    rate: float

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"dropout rate must lie in [0, 1), got {self.rate}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """Drops elements of ``x`` (any shape, floating), or returns it as it is when ``deterministic``."""
        levels = dropped_levels(self.rate)
        if deterministic or levels == 0:
            return x
        bits = counter_bits(self.make_rng("dropout"), x.shape) >> 16
        scale = _LEVELS / (_LEVELS - levels)
        return jnp.where(bits >= levels, x * jnp.asarray(scale, x.dtype), jnp.zeros((), x.dtype))

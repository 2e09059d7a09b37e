"""Dropout whose random bits are cheap on CPU and the same on any number of devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

_LEVELS = 1 << 16


def dropped_levels(rate: float) -> int:
    """The number of the 65,536 values of a 16-bit word for which an element is dropped: round(rate · 65536)."""
    return round(rate * _LEVELS)


class Dropout(nn.Module):
    """Sets elements to zero with probability ``rate`` and divides the rest by the probability of being kept.

    Each element is decided by 16 random bits, so that the probability used is p = round(rate · 2¹⁶) / 2¹⁶, within
    2⁻¹⁷ of ``rate`` (0.1 becomes 0.100006). The scale is 1 / (1 − p) with this same p, hence the expectation of the
    result is the argument itself, exactly.

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
        bits = jax.random.bits(self.make_rng("dropout"), x.shape, jnp.uint16)
        scale = _LEVELS / (_LEVELS - levels)
        return jnp.where(bits >= levels, x * jnp.asarray(scale, x.dtype), jnp.zeros((), x.dtype))

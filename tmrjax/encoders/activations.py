"""Activation functions under the names that Hugging Face's config.json uses."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax import Array, lax


def gelu(x: Array) -> Array:
    """GELU with the error function, x Φ(x), as BERT has it (not the tanh approximation).

    As in PyTorch Φ(x) = (1 + erf(x/√2)) / 2, which costs half of ``jax.nn.gelu``'s erfc(−x/√2) / 2. That one keeps more
    digits of values below 1e-6 only.
    """
    return 0.5 * x * (1 + lax.erf(x * 0.5**0.5))


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


def _quick_gelu(x: Array) -> Array:
    """x · sigmoid(1.702 x), as CLIP has it."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": gelu,
        "gelu_new": _gelu_tanh,
        "gelu_pytorch_tanh": _gelu_tanh,
        "quick_gelu": _quick_gelu,
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
        "swish": jax.nn.silu,
        "tanh": jnp.tanh,
    }
)


def check_activation(name: object) -> None:
    """Raises ValueError, listing the known names, unless ``name`` is an activation known here."""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act: activation {name!r} is not supported; known are {', '.join(sorted(ACTIVATIONS))}"
        )

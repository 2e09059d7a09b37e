"""Activation functions under the names that Hugging Face's config.json uses."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
from jax import Array


def gelu(x: Array) -> Array:
    """GELU with the error function, x Φ(x), as BERT has it (not the tanh approximation)."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_tanh(x: Array) -> Array:
    return jax.nn.gelu(x, approximate=True)


ACTIVATIONS: Mapping[str, Callable[[Array], Array]] = MappingProxyType(
    {
        "gelu": gelu,
        "gelu_new": _gelu_tanh,
        "gelu_pytorch_tanh": _gelu_tanh,
        "relu": jax.nn.relu,
        "silu": jax.nn.silu,
        "swish": jax.nn.silu,
    }
)


def check_activation(name: object) -> None:
    """Raises ValueError, listing the known names, unless ``name`` is an activation known here."""
    if name not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act: activation {name!r} is not supported; known are {', '.join(sorted(ACTIVATIONS))}"
        )

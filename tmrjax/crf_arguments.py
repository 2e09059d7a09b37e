"""What every function of :mod:`tmrjax.crf` is called with: shapes checked, types decided, the faster body called."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

Params = tuple[Array, Array, Array]
"""transitions [K,K], start_transitions [K], end_transitions [K]."""


def computed_by(fast: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a textbook recursion with the function that computes the same faster.

    The decorated function checks its arguments and calls `fast`. Its attribute `reference` checks them as well and
    calls the body that was written down.

    Raises:
        ValueError: when called with shapes that don't belong together, naming both, or with tags that aren't integers.
    """

    def decorate(reference: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(reference)

        @functools.wraps(reference)
        def run(*args: Any, **kwargs: Any) -> Any:
            return fast(**_checked(**signature.bind(*args, **kwargs).arguments))

        @functools.wraps(reference)
        def run_reference(*args: Any, **kwargs: Any) -> Any:
            return reference(**_checked(**signature.bind(*args, **kwargs).arguments))

        run.reference = run_reference
        return run

    return decorate


def _checked(emissions: Array, mask: Array, params: Params, **others: Array) -> dict[str, Any]:
    """The arguments in their computing types, once their shapes fit."""
    shape = jnp.shape(emissions)
    if len(shape) != 3 or shape[1] < 1 or shape[2] < 1:
        raise ValueError(f"emissions must be [batch, time, tags] with at least one position and tag, got shape {shape}")
    if jnp.shape(mask) != shape[:2]:
        raise ValueError(f"mask has shape {jnp.shape(mask)}, expected {shape[:2]} for emissions of shape {shape}")
    names = "transitions", "start_transitions", "end_transitions"
    for name, value, want in zip(names, params, (shape[2:] * 2, shape[2:], shape[2:]), strict=True):
        if jnp.shape(value) != want:
            raise ValueError(f"{name} has shape {jnp.shape(value)}, expected {want} for emissions of shape {shape}")
    if "tags" in others:
        others["tags"] = _checked_tags(others["tags"], shape)
    if "allowed" in others:
        if jnp.shape(others["allowed"]) != shape:
            raise ValueError(f"allowed has shape {jnp.shape(others['allowed'])}, expected that of emissions, {shape}")
        others["allowed"] = jnp.asarray(others["allowed"], bool)
    dtype = jnp.result_type(jnp.float32, emissions, *params)
    return {
        "emissions": jnp.asarray(emissions, dtype),
        "mask": jnp.asarray(mask, bool),
        "params": tuple(jnp.asarray(value, dtype) for value in params),
        **others,
    }


def _checked_tags(tags: Array, shape: tuple[int, ...]) -> Array:
    if jnp.shape(tags) != shape[:2]:
        raise ValueError(f"tags has shape {jnp.shape(tags)}, expected {shape[:2]} for emissions of shape {shape}")
    dtype = jnp.result_type(tags)
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"tags must be integers, got {dtype}")
    return jnp.asarray(tags, jnp.promote_types(dtype, jnp.int32))

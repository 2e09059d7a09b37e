"""The supervised contrast that trains the divergence estimator (§3.4, Eq. 6).

Eq. 5 is the self-supervised contrast L_self that Eq. 6 generalises: there an anchor i has one positive j(i), another
view of itself, and no labels. With two views of each example and labels that tell examples apart, Eq. 6 equals it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

_SMALLEST_SQUARE = 1e-24  # below it a vector counts as this short, so that the zero vector has a gradient


def supervised_contrastive_loss(
    features: jax.Array, labels: jax.Array, *, temperature: float, mask: jax.Array | None = None
) -> jax.Array:
    """The term of Eq. 6 for every anchor; Eq. 6 itself is their sum over the batch.

    With z_i = features_i / ‖features_i‖, the positives P(i) = {p ≠ i : label_p = label_i}, and a over all others,

        L_i = −1/|P(i)| Σ_{p ∈ P(i)} log( exp(z_i·z_p / τ) / Σ_{a ≠ i} exp(z_i·z_a / τ) )

    Computed as log-sum-exp minus a mean, in float32, so that no temperature overflows. On arrays that are sharded over
    devices and processes under ``jax.jit`` the rows are those of the global batch, and so are the others: XLA gathers.

    Args:
        features: [B,D], of any length.
        labels: [B] integers.
        temperature: τ > 0.
        mask: [B], True for rows that are examples; others are neither anchors nor positives nor in a denominator.

    Returns:
        [B] float32; 0 for an anchor without positives, and where ``mask`` is False.

    Raises:
        ValueError: where shapes disagree or the temperature is not positive.

    >>> import jax.numpy as jnp
    >>> loss = supervised_contrastive_loss(jnp.eye(3), jnp.array([0, 0, 1]), temperature=1.0)
    >>> [round(float(value), 4) for value in loss]  # log 2, log 2, and no positive
    [0.6931, 0.6931, 0.0]
    """
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"features must be [B,D] and labels [B], got {features.shape} and {labels.shape}")
    if mask is not None and mask.shape != labels.shape:
        raise ValueError(f"mask has shape {mask.shape}, but labels has {labels.shape}")
    if not temperature > 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    valid = jnp.ones(labels.shape, bool) if mask is None else mask.astype(bool)
    features = features.astype(jnp.float32)
    squares = jnp.sum(jnp.square(features), axis=1, keepdims=True)
    unit = features * jax.lax.rsqrt(jnp.maximum(squares, _SMALLEST_SQUARE))
    similarities = jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST) / temperature

    others = valid[None, :] & ~jnp.eye(len(labels), dtype=bool)
    positives = others & (labels[:, None] == labels[None, :])
    count = positives.sum(axis=1)
    # A finite minimum and not -inf: an anchor without any other has a finite value (which is masked) and gradient.
    others_only = jnp.where(others, similarities, jnp.finfo(jnp.float32).min)
    log_denominator = jax.nn.logsumexp(others_only, axis=1)
    mean_positive = jnp.where(positives, similarities, 0).sum(axis=1) / jnp.maximum(count, 1)
    return jnp.where(valid & (count > 0), log_denominator - mean_positive, 0.0)

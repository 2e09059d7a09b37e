"""The recursions of :mod:`tmrjax.crf_fast` for a GPU or TPU: log T rounds of products instead of T steps.

A step of the forward recursion is a product with a K × K matrix in log space, a step of backward smoothing one with a
matrix of conditional probabilities. Products are associative, so that all prefixes come out of a tree of them
(Särkkä and García-Fernández, "Temporal Parallelization of Bayesian Smoothers", IEEE TAC, 2021). That is K times the
work of the recursion, in few and large operations, which is what such a device wants. Nothing here leaves log space
before the result is a probability, so there is no other way to fall back on and no branch that the host would have to
wait for.

Arrays have time first and the batch last, as :mod:`tmrjax.crf_fast` lays them out: `local` [T,K,B], `linked` and
`valid` bool [T,B], `relative` [K,K].
"""

import jax
import jax.numpy as jnp
from jax import Array, lax


def finite(values: Array) -> Array:
    """0 in place of −inf, so that what is forbidden can be shifted without −inf − (−inf)."""
    return jnp.where(values == -jnp.inf, 0.0, values)


def normalized(weights: Array) -> Array:
    """Weights [K,B] that sum to 1 over the tags; zeros where all are 0, because every path is forbidden there."""
    # The sum is 1 but for rounding, which would add up over thousands of positions.
    total = jnp.sum(weights, axis=0)
    return weights / jnp.where(total == 0.0, 1.0, total)


def log_sum_exp(scores: Array, axis: int) -> Array:
    """log Σ exp; −inf where all are −inf. Without a gradient of its own."""
    peak = finite(jnp.max(scores, axis, keepdims=True))
    return jnp.squeeze(peak, axis) + jnp.log(jnp.sum(jnp.exp(scores - peak), axis))


def filter_forward(local: Array, linked: Array, valid: Array, relative: Array) -> tuple[Array, Array, Array, Array]:
    """The forward recursion: the state behind the last position, and before, arriving and shift of every position.

    Returns:
        after [K,B], before [T,K,B], arriving [T,K,B], shift [T,B], as `tmrjax.crf_fast._Filtered` says.
    """
    step = jnp.where(linked[:, None, None], relative[:, :, None], 0.0) + local[:, None]
    same = jnp.where(jnp.eye(len(relative), dtype=bool), 0.0, -jnp.inf)[:, :, None]
    matrices = jnp.where(valid[:, None, None], step, same.astype(local.dtype))
    rows, _ = lax.associative_scan(_log_product, _by_rows(matrices))
    # A sentence begins with a matrix of equal rows, so that it does not matter which one is read.
    states = rows[:, 0]
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    arriving = log_sum_exp(before[:, :, None] + relative[:, :, None], axis=1)
    peak = jnp.max(jnp.where(linked[:, None], arriving, 0.0) + local, axis=1)
    return states[-1], before, arriving, jnp.where(valid, peak, 0.0)


def smooth_backward(
    before: Array, arriving: Array, linked: Array, relative: Array, ending: Array, weight: Array
) -> tuple[Array, Array, Array]:
    """Backward smoothing: p(y_{t-1} | y_t, e) applied from the last position to the first.

    Args:
        before, arriving: of :func:`filter_forward`.
        ending: [K,B], log p(last tag | e).
        weight: [B], of each sentence in the sums.

    Returns:
        positions [T,K,B], each sentence with its weight; expected counts of the transitions [K,K] under the weights;
        p(first tag | e) [K,B] without them.
    """
    joint = jnp.exp(before[:, :, None] + relative[:, :, None] - finite(arriving)[:, None])
    same = jnp.eye(len(relative), dtype=joint.dtype)[:, :, None]
    backward = jnp.where(linked[:, None, None], joint, same)
    products = lax.associative_scan(lambda later, earlier: _product(earlier, later), backward, reverse=True)
    last = jnp.exp(ending)
    previous = jax.vmap(normalized)((products * last).sum(2))
    smoothed = jnp.concatenate([previous[1:], last[None]])
    positions = smoothed * weight
    onward = jnp.where(linked[:, None], positions, 0.0)
    return positions, (joint * onward[:, None]).sum((0, 3)), previous[0]


def latest_valid(tags: Array, valid: Array) -> Array:
    """At each position the tag of the last valid one up to it, [T,B]; before the first valid one that of position 0."""
    place = lax.broadcasted_iota(jnp.int32, valid.shape, 0)
    return jnp.take_along_axis(tags, lax.cummax(jnp.where(valid, place, 0), axis=0), axis=0)


def _by_rows(matrices: Array) -> tuple[Array, Array]:
    """Matrices [...,K,K,B] in log space as rows with maximum 0 and the rows' own logs [...,K,B], also with maximum 0.

    What is subtracted of both is a factor of the whole matrix, which no state depends on. Rows are kept apart because a
    row that lies far below the best one may be the only one that the sentence's beginning leaves.
    """
    peak = jnp.max(matrices, axis=-2)
    return matrices - finite(peak)[..., None, :], peak - finite(jnp.max(peak, axis=-2, keepdims=True))


def _log_product(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    """The product of two matrices in log space, each as :func:`_by_rows` gives it."""
    (rows, logs), (onward, onward_logs) = left, right
    ways = rows + onward_logs[..., None, :, :]
    # The large part goes into the row's log, so that the entries keep their digits.
    ways, ways_logs = ways - finite(jnp.max(ways, axis=-2, keepdims=True)), jnp.max(ways, axis=-2)
    product = log_sum_exp(ways[..., :, :, None, :] + onward[..., None, :, :, :], axis=-3)
    product, product_logs = _by_rows(product)
    logs = logs + ways_logs + product_logs
    return product, logs - finite(jnp.max(logs, axis=-2, keepdims=True))


def _product(left: Array, right: Array) -> Array:
    """Products of matrices [...,K,K,B], written as a sum so that no device rounds the factors."""
    return (left[..., :, :, None, :] * right[..., None, :, :, :]).sum(-3)

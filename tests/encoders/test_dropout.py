"""Dropout: its rate, its expectation, independence of positions, keys and modules, and sharding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tmrjax.encoders.dropout import Dropout

SHAPE = (64, 50, 48)


def drop(rate: float, seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype=jnp.float32) -> np.ndarray:
    rngs = {"dropout": jax.random.key(seed)}
    return np.asarray(Dropout(rate).apply({}, jnp.ones(shape, dtype), deterministic=False, rngs=rngs))


@pytest.mark.parametrize("rate", [0.002, 0.1, 0.5, 0.9])
def test_rate_and_scale(rate):
    dropped = drop(rate)
    share = (dropped == 0).mean()
    assert abs(share - rate) < 5 * np.sqrt(rate * (1 - rate) / dropped.size)
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=2**-16 / (1 - rate))
    # The expectation is exact for the probability that is used, not for the one asked for.
    np.testing.assert_allclose(dropped.max() * (1 - round(rate * 2**16) / 2**16), 1, rtol=1e-6)


def test_nothing_happens_when_deterministic_or_at_rate_zero():
    x = jnp.arange(6.0)
    np.testing.assert_array_equal(Dropout(0.5).apply({}, x, deterministic=True), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, deterministic=False), x)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5, float("nan")])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        Dropout(rate)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first.ravel() == 0, second.ravel() == 0)[0, 1])


def test_neighbours_are_independent_along_every_axis():
    zero = drop(0.3)
    bound = 5 / np.sqrt(zero.size)
    for axis in range(3):
        for step in (1, 2, 3, 4, 8, 16, 32):
            first = np.take(zero, range(zero.shape[axis] - step), axis)
            second = np.take(zero, range(step, zero.shape[axis]), axis)
            assert abs(correlation(first, second)) < bound, (axis, step)


def test_keys_and_modules_are_independent():
    bound = 5 / np.sqrt(np.prod(SHAPE))
    draws = [drop(0.3, seed) for seed in (0, 1, 2, 3, 256, 2**31)]
    for index, first in enumerate(draws):
        for second in draws[:index]:
            assert abs(correlation(first, second)) < bound

    rbg = {"dropout": jax.random.fold_in(jax.random.key(0, impl="rbg"), 5)}
    other = Dropout(0.3).apply({}, jnp.ones(SHAPE), deterministic=False, rngs=rbg)
    assert abs((np.asarray(other) == 0).mean() - 0.3) < bound
    assert abs(correlation(np.asarray(other), draws[0])) < bound

    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Dropout(0.3)(x, deterministic=False), Dropout(0.3)(x, deterministic=False)

    first, second = Two().apply({}, jnp.ones(SHAPE), rngs={"dropout": jax.random.key(0)})
    assert abs(correlation(np.asarray(first), np.asarray(second))) < bound


def test_counts_over_many_keys_are_binomial():
    """Each position's count of drops over keys, as a chi-square: neither too uneven nor too even."""
    keys = jax.random.split(jax.random.key(7), 400)
    one = jax.jit(lambda key: Dropout(0.25).apply({}, jnp.ones(600), deterministic=False, rngs={"dropout": key}) == 0)
    drops = np.asarray(jax.vmap(one)(keys))
    for axis in (0, 1):
        counts, trials = drops.sum(axis), drops.shape[axis]
        statistic = ((counts - trials * 0.25) ** 2 / (trials * 0.25 * 0.75)).sum()
        degrees = counts.size
        assert abs(statistic - degrees) < 5 * np.sqrt(2 * degrees)


def test_the_gradient_passes_what_was_kept():
    x = jnp.linspace(-1, 1, 1000)
    rngs = {"dropout": jax.random.key(0)}

    def apply(x):
        return Dropout(0.4).apply({}, x, deterministic=False, rngs=rngs)

    gradient = jax.grad(lambda x: apply(x).sum())(x)
    np.testing.assert_allclose(gradient, apply(jnp.ones(1000)))
    assert 0.3 < (gradient == 0).mean() < 0.5


def test_bfloat16_stays_bfloat16():
    dropped = drop(0.1, dtype=jnp.bfloat16)
    assert dropped.dtype == jnp.bfloat16
    assert set(np.unique(dropped.astype(np.float32))) == {0.0, np.float32(jnp.bfloat16(1 / 0.9))}


@pytest.mark.parametrize("spec", [("data",), (None, "data"), (("data",), None, None)])
def test_a_sharded_batch_is_dropped_like_a_whole_one(spec):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    assert mesh.size == 8
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    x = jnp.ones((16, 24, 5))
    run = jax.jit(lambda x, key: Dropout(0.3).apply({}, x, deterministic=False, rngs={"dropout": key}))
    sharded = run(jax.device_put(x, sharding), jax.random.key(1))
    assert len(sharded.sharding.device_set) == 8
    np.testing.assert_array_equal(sharded, run(x, jax.random.key(1)))

"""Max pooling beside torch's: values, gradients with many ties, and the programs that CPU and GPU get."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from tmrjax.encoders.picture.pooling import max_pool


@pytest.mark.parametrize(("height", "width"), [(6, 7), (7, 6), (5, 5), (8, 8), (1, 2)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_values_and_gradients_are_torchs(height, width, dtype):
    """Of four values, so that nearly every window has its largest more than once: the first gets the gradient."""
    generator = np.random.default_rng([height, width])
    x = generator.integers(-2, 2, (2, height, width, 3)).astype(dtype)
    change = generator.integers(-8, 9, (2, -(-height // 2), -(-width // 2), 3)).astype(dtype)
    given = torch.tensor(x.astype(np.float64).transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch.nn.functional.max_pool2d(given, 3, 2, 1)
    expected.backward(torch.tensor(change.astype(np.float64).transpose(0, 3, 1, 2)))
    pooled, pullback = jax.vjp(max_pool, x)
    (gradient,) = pullback(change)
    assert pooled.dtype == gradient.dtype == dtype
    # Small integers: sums are exact in every dtype and order.
    for ours, theirs in ((pooled, expected.detach()), (gradient, given.grad)):
        np.testing.assert_array_equal(np.asarray(ours, np.float64), theirs.numpy().transpose(0, 2, 3, 1))


def test_gradients_have_the_bits_of_xlas_own():
    """Where windows overlap their gradients are added in the same order: what was trained before is trained again."""
    x = np.maximum(np.random.default_rng(0).normal(size=(2, 33, 32, 4)), 0).astype(np.float32)
    change = np.random.default_rng(1).normal(size=(2, 17, 16, 4)).astype(np.float32)

    def plain(x):
        padding = [(0, 0), (1, 1), (1, 1), (0, 0)]
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)

    ours, xlas = (jax.jit(lambda x, f=function: jax.vjp(f, x)[1](change)[0])(x) for function in (max_pool, plain))
    np.testing.assert_array_equal(ours, xlas)


def test_each_platform_gets_its_own_program():
    traced = jax.jit(jax.grad(lambda x: max_pool(x).sum())).trace(np.zeros((2, 8, 8, 3), np.float32))
    found = {
        platform: "select_and_scatter" in traced.lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    }
    assert found == {"cpu": False, "cuda": True}

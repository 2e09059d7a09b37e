"""Convolutions beside torch's in float64, and the programs that CPU, GPU and a mesh of eight devices get of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import NamedSharding, PartitionSpec

from tmrjax.encoders.picture import convolution
from tmrjax.encoders.picture.convolution import convolve
from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder
from tmrjax.training.sharding import make_mesh, split_rows

CONFIG = ResNetConfig(embedding_size=6, hidden_sizes=(8, 12), depths=(1, 1))
# Those of CONFIG: the stem; two bottlenecks of 1 × 1, 3 × 3 and 1 × 1; two shortcuts.
LARGE, ONES = 1 + 2, 2 * 2 + 2


@pytest.fixture
def always_by_pictures(monkeypatch):
    """Tiny convolutions take the way of the large ones."""
    monkeypatch.setattr(convolution, "_PLACES", 0)
    monkeypatch.setattr(convolution, "_WORK", 0)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(dtype)


def in_torch(x, kernel, change, stride):
    """The result and both gradients, in float64."""
    x, kernel, change = (torch.tensor(np.asarray(one, np.float64)) for one in (x, kernel, change))
    x.requires_grad_(), kernel.requires_grad_()
    y = torch.nn.functional.conv2d(
        x.movedim(-1, 1), kernel.permute(3, 2, 0, 1), stride=stride, padding=len(kernel) // 2
    ).movedim(1, -1)
    y.backward(change)
    return [one.detach().numpy() for one in (y, x.grad, kernel.grad)]


def in_jax(x, kernel, change, stride):
    y, pullback = jax.vjp(lambda x, kernel: convolve(x, kernel, stride), x, kernel)
    return y, *pullback(change)


in_jax_compiled = jax.jit(in_jax, static_argnums=3)


@pytest.mark.parametrize(
    ("pictures", "height", "width", "size", "stride"),
    [
        (2, 5, 6, 1, 1),
        (2, 5, 6, 1, 2),
        (1, 7, 6, 3, 1),
        (3, 7, 8, 3, 2),
        (3, 8, 5, 3, 2),
        (2, 16, 13, 7, 2),
        (1, 9, 9, 7, 1),
    ],
)
def test_results_and_gradients_are_torchs(pictures, height, width, size, stride, always_by_pictures):
    x, kernel = normal(pictures, height, width, 3), normal(size, size, 3, 4)
    change = normal(pictures, -(-height // stride), -(-width // stride), 4)
    for ours, theirs in zip(in_jax(x, kernel, change, stride), in_torch(x, kernel, change, stride), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * np.abs(theirs).max(), rtol=1e-5)


def test_bfloat16_is_summed_in_float32(always_by_pictures):
    """Summed in bfloat16 the many small terms would no longer change the sum: errors of a tenth."""
    x, kernel = (jnp.asarray(one, jnp.bfloat16) for one in (1 + normal(64, 8, 8, 3), normal(3, 3, 3, 4)))
    change = jnp.asarray(1 + normal(64, 8, 8, 4), jnp.bfloat16)
    for ours, theirs in zip(in_jax_compiled(x, kernel, change, 1), in_torch(x, kernel, change, 1), strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize(
    ("shape", "features", "size", "stride", "by_pictures"),
    [
        ((32, 224, 224, 3), 64, 7, 2, True),  # a ResNet-50's
        ((32, 56, 56, 64), 64, 3, 1, True),
        ((32, 28, 28, 256), 256, 3, 2, True),
        ((32, 7, 7, 512), 512, 3, 1, False),
        ((32, 64, 64, 3), 16, 7, 2, False),  # the demo's
        ((32, 16, 16, 32), 32, 3, 1, False),
        ((32, 56, 56, 64), 256, 1, 1, False),
    ],
)
def test_large_convolutions_alone_are_summed_by_pictures(shape, features, size, stride, by_pictures):
    arguments = [jax.ShapeDtypeStruct(one, jnp.float32) for one in (shape, (size, size, shape[-1], features))]
    gradient = jax.jit(jax.grad(lambda x, kernel: convolve(x, kernel, stride).sum(), argnums=1))
    for platform in ("cpu", "cuda"):
        program = gradient.trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        assert program.count("stablehlo.while") == (by_pictures and platform == "cpu")


def encoder_gradient(params, statistics, pixels):
    """Of a scalar, by the parameters; every block is computed again in the backward pass."""

    def loss(params):
        variables = {"params": params, "batch_stats": statistics}
        return jnp.sin(ResNetEncoder(CONFIG, remat=True).apply(variables, pixels, train=True).tokens).sum()

    return jax.grad(loss)(params)


@pytest.fixture(scope="module")
def variables():
    shapes = jax.eval_shape(lambda: ResNetEncoder(CONFIG).init(jax.random.key(0), normal(1, 16, 16, 3), train=False))
    params = jax.tree.map(lambda leaf: 0.3 * normal(*leaf.shape), shapes["params"])
    return params, jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes["batch_stats"])


def test_each_platform_gets_its_own_program(variables, always_by_pictures):
    """One trace, lowered for two platforms on a machine that has one of them."""
    traced = jax.jit(encoder_gradient).trace(*variables, normal(8, 16, 16, 3))
    cpu, cuda = (traced.lower(lowering_platforms=(platform,)).as_text() for platform in ("cpu", "cuda"))
    assert cpu.count("stablehlo.while") == LARGE and "stablehlo.while" not in cuda
    for program in (cpu, cuda):
        assert "custom_call" not in program
    # Forward, and again for the blocks' inner ones; gradients of input and kernel.
    assert cuda.count("stablehlo.convolution") >= 3 * (LARGE + ONES)
    assert cpu.count("stablehlo.convolution") <= 3 * LARGE


def test_a_divided_batch_stays_where_it_is(variables, always_by_pictures):
    """Every device sums over its own pictures; no picture or map is sent to another, and the gradient is the same."""
    pixels, mesh = normal(16, 16, 16, 3), make_mesh(8)
    everywhere = NamedSharding(mesh, PartitionSpec())
    divided = jax.jit(
        encoder_gradient, in_shardings=(everywhere, everywhere, split_rows(mesh)), out_shardings=everywhere
    )
    compiled = divided.lower(*variables, pixels).compile()
    program = compiled.as_text()
    assert " while(" in program and "all-reduce" in program
    assert not [name for name in ("all-gather", "all-to-all", "collective-permute") if name in program]
    placed = jax.device_put((*variables, pixels), (everywhere, everywhere, split_rows(mesh)))
    alone = jax.jit(encoder_gradient)(*variables, pixels)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), compiled(*placed), alone)


def test_vmap_is_a_loop_over_calls(always_by_pictures):
    xs, kernels, changes = normal(2, 3, 6, 7, 3), normal(2, 3, 3, 3, 4), normal(2, 3, 3, 4, 4)
    together = jax.jit(jax.vmap(lambda *one: in_jax(*one, 2)))(xs, kernels, changes)
    for index, ours in enumerate(zip(*together, strict=True)):
        for one, alone in zip(ours, in_jax_compiled(xs[index], kernels[index], changes[index], 2), strict=True):
            np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-5)


def test_kernels_that_do_not_fit_are_named():
    for kernel in (np.zeros((2, 2, 3, 4)), np.zeros((3, 3, 5, 4)), np.zeros((3, 1, 3, 4))):
        with pytest.raises(ValueError, match=r"x \(1, 8, 8, 3\) and kernel \(\d, \d, \d, 4\) must be"):
            convolve(np.zeros((1, 8, 8, 3)), kernel, 1)

"""Convolution whose gradients are fast on CPU; elsewhere XLA's own, for which the libraries of GPUs and TPUs are made.

XLA's gradients of a convolution's kernel run at a tenth to a half of a CPU's speed (jaxlib 0.10). Both are sums of
products of matrices, and so they are computed there:

* 1 × 1: the convolution itself is a product, and so are its gradients.
* k × k, kernel: ∂K = Σₙ cols(xₙ)ᵀ ∂yₙ, one picture n after another, each laid out as columns [h w, k² C], which
  together with ∂yₙ fit the cache; summed in float32. A device takes its own pictures, and the sums are added.

Gradients of k × k convolutions' inputs are XLA's, also with a stride: s² convolutions without zeros between the places
of ∂y, or products a picture, are faster at one size and slower at the next.

The choice is made by the platform that the program is lowered for, not by what this process has: a mesh of CPU devices
beside a GPU gets the CPU's program. Convolutions that are too small to gain keep XLA's gradients everywhere.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

# Below either, XLA's gradient of a kernel is as fast: places of the result, and multiplications a picture.
_PLACES = 14 * 14
_WORK = 4_000_000


def convolve(x: Array, kernel: Array, stride: int) -> Array:
    """Convolution with k // 2 zeros of padding on every side; its gradients are exact on every platform.

    y[n,i,j,o] = Σ_{a,b,c} x[n, s i + a − k//2, s j + b − k//2, c] K[a,b,c,o]

    Reverse differentiation only, once: the gradient's own gradient is not defined on CPU.

    Args:
      x: [N,H,W,C].
      kernel: [k,k,C,O], k odd, of the dtype of ``x``.
      stride: s, at least 1.

    Returns:
      [N,⌈H/s⌉,⌈W/s⌉,O] in the dtype of ``x``. Gradients have the dtypes of ``x`` and ``kernel``; that of a large
      kernel is summed in float32 at least.

    Raises:
      ValueError: where the kernel is not square and odd, or its channels are not those of ``x``.
    """
    size = kernel.shape[0]
    if kernel.ndim != 4 or kernel.shape[1] != size or size % 2 == 0 or x.ndim != 4 or x.shape[-1] != kernel.shape[2]:
        raise ValueError(f"convolve: x {x.shape} and kernel {kernel.shape} must be [N,H,W,C] and [k,k,C,O], k odd")
    places = -(-x.shape[1] // stride) * -(-x.shape[2] // stride)
    if size > 1 and (places < _PLACES or places * kernel.size < _WORK):
        return _convolution(x, kernel, stride)
    return _convolve(x, kernel, stride)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(x: Array, kernel: Array, stride: int) -> Array:
    plain = functools.partial(_convolution, stride=stride)
    if kernel.shape[0] > 1:
        return plain(x, kernel)
    return lax.platform_dependent(x, kernel, cpu=functools.partial(_product, stride=stride), default=plain)


def _forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, stride), (x, kernel)


def _backward(stride: int, residuals: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    size = residuals[1].shape[0]

    def xlas(x, kernel, gradient, function=_convolution):
        return jax.vjp(functools.partial(function, stride=stride), x, kernel)[1](gradient)

    def by_pictures(x, kernel, gradient):
        of_kernel = _kernel_gradient(size, stride)(x, gradient)
        return xlas(x, kernel, gradient)[0], of_kernel.astype(kernel.dtype)

    on_cpu = functools.partial(xlas, function=_product) if size == 1 else by_pictures
    return lax.platform_dependent(*residuals, gradient, cpu=on_cpu, default=xlas)


_convolve.defvjp(_forward, _backward)


def _convolution(x: Array, kernel: Array, stride: int) -> Array:
    padding = [(kernel.shape[0] // 2,) * 2] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _product(x: Array, kernel: Array, stride: int) -> Array:
    """A 1 × 1 convolution as a product of matrices."""
    x = x[:, ::stride, ::stride]
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)


def _columns(picture: Array, size: int, stride: int) -> Array:
    """[H,W,C] → [h w, k² C]: under every place of the result the values that the kernel multiplies there."""
    height, width, channels = picture.shape
    rows, columns = -(-height // stride), -(-width // stride)
    padded = jnp.pad(picture, [(size // 2, size // 2)] * 2 + [(0, 0)])
    shifted = [
        lax.slice(
            padded,
            (row, column, 0),
            (row + (rows - 1) * stride + 1, column + (columns - 1) * stride + 1, channels),
            (stride, stride, 1),
        )
        for row in range(size)
        for column in range(size)
    ]
    return jnp.concatenate(shifted, axis=-1).reshape(rows * columns, -1)


@functools.cache
def _kernel_gradient(size: int, stride: int) -> Callable[[Array, Array], Array]:
    """A function of x [N,H,W,C] and ∂y [N,h,w,O] that returns ∂K [k,k,C,O], in float32 at least."""

    def gradient(x, of_result):
        dtype = jnp.promote_types(jnp.float32, x.dtype)

        def add(total, pair):
            picture, change = pair
            change = change.reshape(-1, change.shape[-1])
            columns = _columns(picture, size, stride)
            product = lax.dot_general(columns, change, (((0,), (0,)), ((), ())), preferred_element_type=dtype)
            return total + product, None

        channels, features = x.shape[-1], of_result.shape[-1]
        zero = jnp.zeros((size * size * channels, features), dtype)
        return lax.scan(add, zero, (x, of_result))[0].reshape(size, size, channels, features)

    def partition(mesh, arguments, result):
        # A loop over an axis that is divided would send every picture to every device.
        spec = arguments[0].sharding.spec
        axes = spec[0] if spec else None
        rows, everywhere = NamedSharding(mesh, PartitionSpec(axes)), NamedSharding(mesh, PartitionSpec())

        def on_device(x, of_result):
            own = gradient(x, of_result)
            return own if axes is None else lax.psum(own, axes)

        return mesh, on_device, everywhere, (rows, rows)

    divided = custom_partitioning(gradient)
    divided.def_partition(
        partition,
        sharding_rule="n a b c, n d e o -> f g c o",
        reduction_factors=("n",),
        need_replication_factors=("a", "b", "c", "d", "e", "o", "f", "g"),
    )
    # The partitioned call has no rule for vmap.
    return sequential_vmap(divided)

"""Pixels into patches: what every picture encoder begins with."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array


def check_pixels(pixels: Array, num_channels: int, mask: Array | None) -> None:
    """Raises ValueError unless ``pixels`` are [N,H,W,C] normalised floats and ``mask`` is [N] or None."""
    if pixels.ndim != 4 or pixels.shape[-1] != num_channels:
        raise ValueError(f"pixels must be [N,H,W,{num_channels}], channels last; got shape {pixels.shape}")
    if not jnp.issubdtype(pixels.dtype, jnp.floating):
        raise ValueError(
            f"pixels must be floating and normalised, got {pixels.dtype}; PictureSettings.normalise does it"
        )
    if mask is not None and mask.shape != pixels.shape[:1]:
        raise ValueError(f"mask has shape {mask.shape}, but pixels has {pixels.shape}")


class PatchEmbeddings(nn.Module):
    """A linear map of each square patch, [N,H,W,C] → [N,H/p,W/p,D] in float32; a convolution whose stride is its size.

    Raises ValueError where H or W is no multiple of ``patch_size``.
    """

    patch_size: int
    features: int
    use_bias: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Array) -> Array:
        """``pixels`` [N,H,W,C]."""
        size, channels = self.patch_size, pixels.shape[-1]
        count, height, width = pixels.shape[:3]
        if height % size or width % size:
            raise ValueError(f"pixels are {height} × {width}; patches of {size} × {size} need multiples of {size}")
        kernel = self.param("kernel", nn.initializers.normal(0.02), (size, size, channels, self.features))
        rows, columns = height // size, width // size
        # As one product of matrices: XLA's convolution is slower on CPU, above all its gradient.
        patches = pixels.reshape(count, rows, size, columns, size, channels).swapaxes(2, 3)
        patches = patches.reshape(count * rows * columns, size * size * channels).astype(self.dtype)
        flat_kernel = kernel.reshape(-1, self.features).astype(self.dtype)
        projected = jnp.matmul(patches, flat_kernel, preferred_element_type=jnp.float32)
        if self.use_bias:
            projected = projected + self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return projected.reshape(count, rows, columns, self.features)

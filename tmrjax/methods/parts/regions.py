"""Patches of a picture's regions as tokens beside those of the whole picture (MKGformer)."""

from __future__ import annotations

import flax.linen as nn
import jax

from tmrjax.encoders.picture.transformer import PictureTransformer


def resized(regions: jax.Array, size: int) -> jax.Array:
    """[B, N, H, W, C] -> [B, N, size, size, C], bilinear and smoothed where it shrinks."""
    batch, count, _, _, channels = regions.shape
    return jax.image.resize(regions, (batch, count, size, size, channels), "linear")


class RegionTokens(nn.Module):
    """Patches of N regions, region by region, by an encoder's own map of patches, with positions of their own.

    The parameter is "positions" [N · P, D].
    """

    @nn.compact
    def __call__(self, encoder: PictureTransformer, regions: jax.Array) -> jax.Array:
        """Pixels [B, N, S, S, C], S a multiple of the encoder's patch -> [B, N · P, D] in float32."""
        batch = regions.shape[0]
        patches = encoder.patches(regions.reshape(-1, *regions.shape[2:]))
        patches = patches.reshape(batch, -1, patches.shape[-1])
        return patches + self.param("positions", nn.initializers.normal(0.02), patches.shape[1:])

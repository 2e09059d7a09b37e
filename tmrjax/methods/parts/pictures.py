"""The pictures of a post through one ResNet (§3.2), as pixels or as the maps of a ResNet that ran ahead of time."""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder
from tmrjax.pictures.preprocessing import PictureSettings

Batch = Mapping[str, jax.Array]


class PictureEncoder(nn.Module):
    """ResNet maps of all pictures of a post, or the same maps handed in as features.

    A masked picture is replaced before anything is computed from it: its content, be it NaN, has no influence.
    """

    config: ResNetConfig | None
    dtype: jnp.dtype = jnp.float32
    batch_norm: str = "frozen"
    frozen: bool = False
    settings: PictureSettings = PictureSettings()

    @nn.compact
    def __call__(self, batch: Batch, prefixes: tuple[str, ...], *, train: bool) -> dict[str, jax.Array]:
        """Maps ``{prefix}image`` [B, P, C] and ``{prefix}region`` [B, 3, P, C] for each prefix, masked ones zero."""
        maps, masks = {}, {}
        for prefix in prefixes:
            masks[f"{prefix}image"] = batch[f"{prefix}image_mask"][:, None]
            masks[f"{prefix}region"] = batch[f"{prefix}region_mask"]
        pixels = {}
        for name, mask in masks.items():
            picture_key = f"{name}s" if name.endswith("region") else name
            content = batch.get(f"{name}_features", batch.get(picture_key))
            if content is None:
                raise ValueError(f"the batch has neither {picture_key!r} (pixels) nor '{name}_features' (ResNet maps)")
            content = self.settings.normalise(content, whole=name.endswith("image"))
            if name.endswith("image"):
                content = content[:, None]
            content = jnp.where(mask.reshape(mask.shape + (1,) * (content.ndim - 2)), content, 0).astype(self.dtype)
            (maps if f"{name}_features" in batch else pixels)[name] = content
        if pixels:
            if self.config is None:
                raise ValueError(f"{sorted(pixels)} came as pixels, but this model has no ResNet: it takes features")
            # One call for all pictures; post-major, so that a batch sharded over devices stays where it is.
            stacked = jnp.concatenate(list(pixels.values()), axis=1)
            batch_size, count = stacked.shape[:2]
            resnet = ResNetEncoder(self.config, self.dtype, self.batch_norm, name="resnet")
            present = jnp.concatenate([masks[name] for name in pixels], axis=1)
            states = resnet(stacked.reshape(-1, *stacked.shape[2:]), train=train, mask=present.reshape(-1))
            encoded = states.tokens.reshape(batch_size, count, *states.tokens.shape[1:])
            start = 0
            for name, content in pixels.items():
                # A bias of the ResNet must not speak for a picture that is not there.
                mask = masks[name][:, :, None, None]
                maps[name] = jnp.where(mask, encoded[:, start : start + content.shape[1]], 0)
                start += content.shape[1]
        if self.frozen:
            maps = jax.lax.stop_gradient(maps)
        return {name: value[:, 0] if name.endswith("image") else value for name, value in maps.items()}

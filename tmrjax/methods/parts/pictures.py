"""The pictures of a post through one encoder (§3.2), as pixels or as what an encoder made of them ahead of time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.base import PictureConfig, PictureStates
from tmrjax.encoders.open import parameter_name, picture_encoder
from tmrjax.inputs.packing import INDEX
from tmrjax.inputs.pictures import FEATURE_KEYS, Pictures


class PictureReader(nn.Module):
    """States of all pictures of a post, from pixels or handed in as features.

    A masked picture is replaced before anything is computed from it: its content, be it NaN, has no influence. Of a
    batch with ``picture_index`` (:mod:`tmrjax.inputs.packing`) only the pictures that are there are encoded.
    """

    config: PictureConfig | None
    dtype: jnp.dtype = jnp.float32
    batch_norm: str = "frozen"
    frozen: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, batch: Mapping[str, Any], pictures: Pictures, *, train: bool) -> dict[str, Any]:
        """``{prefix}image`` and ``{prefix}region`` for each prefix, masked ones zero; see ``Method.read_pictures``.

        Keys of features: ``{name}_features`` (tokens), ``{name}_pooled``, ``{name}_stages``; where a method asks for
        pooled states and the batch has tokens, their mean is taken, which is the pooled state of a ResNet.
        """
        found, pixels, masks = {}, {}, {}
        for prefix in pictures.prefixes:
            for part, kept in pictures.parts.items():
                name = f"{prefix}{part}"
                masks[name] = batch[f"{name}_mask"]
                key = f"{name}_{FEATURE_KEYS[kept]}"
                if key in batch:
                    found[name] = _masked(batch[key], masks[name], self.dtype)
                elif kept == "pooled" and f"{name}_features" in batch:
                    found[name] = _masked(batch[f"{name}_features"], masks[name], self.dtype).mean(-2)
                else:
                    pixel_key = f"{name}s" if part == "region" else name
                    if pixel_key not in batch:
                        raise ValueError(f"the batch has neither {pixel_key!r} (pixels) nor {key!r} (features)")
                    if not jnp.issubdtype(batch[pixel_key].dtype, jnp.floating):
                        raise ValueError(
                            f"{pixel_key!r} is {batch[pixel_key].dtype}; a method takes normalised floats: "
                            "PictureSettings.normalise makes them of uint8, System.prepare of a whole batch"
                        )
                    pixels[name] = _masked(batch[pixel_key], masks[name], self.dtype)
        if pixels:
            # An index counts the slots of all parts, so that none of them may have come as features.
            index = batch.get(INDEX) if len(pixels) == len(masks) else None
            found |= self._encode(pixels, masks, pictures, index, train)
        return jax.lax.stop_gradient(found) if self.frozen else found

    def _encode(
        self, pixels: dict, masks: dict, pictures: Pictures, index: jax.Array | None, train: bool
    ) -> dict[str, Any]:
        """One call for all pictures; post-major, so that a batch sharded over devices stays where it is."""
        if self.config is None:
            raise ValueError(
                f"{sorted(pixels)} came as pixels, but this model has no picture encoder: it takes features"
            )
        slots = {name: masks[name] if name.endswith("region") else masks[name][:, None] for name in pixels}
        counts = {name: slots[name].shape[1] for name in pixels}
        stacked = [pixels[name] if name.endswith("region") else pixels[name][:, None] for name in pixels]
        stacked, present = jnp.concatenate(stacked, axis=1), jnp.concatenate(list(slots.values()), axis=1)
        batch_size, count = present.shape
        encoder = picture_encoder(
            self.config, dtype=self.dtype, batch_norm=self.batch_norm, remat=self.remat,
            name=parameter_name(self.config),
        )  # fmt: skip
        flat, there = stacked.reshape(-1, *stacked.shape[2:]), present.reshape(-1)
        if index is None:
            states: PictureStates = encoder(flat, train=train, mask=there)
        else:
            packed, filled = _packed(flat, index)
            states = encoder(packed, train=train, mask=filled)
        found, start = {}, 0
        for name, slot in slots.items():
            kept = pictures.parts["region" if name.endswith("region") else "image"]

            def of_this_picture(encoded, slot=slot, name=name, start=start):
                encoded = encoded if index is None else _unpacked(encoded, there, index)
                encoded = encoded.reshape(batch_size, count, *encoded.shape[1:])[:, start : start + counts[name]]
                # A bias of the encoder must not speak for a picture that is not there.
                encoded = _masked(encoded, slot, encoded.dtype)
                return encoded if name.endswith("region") else encoded[:, 0]

            found[name] = jax.tree.map(of_this_picture, getattr(states, kept))
            start += counts[name]
        return found


def _packed(pictures: jax.Array, index: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The pictures [N, ...] at the places of index [groups, K] as [groups · K, ...], and which of them are some."""
    grouped = pictures.reshape(len(index), -1, *pictures.shape[1:])
    taken = jax.vmap(lambda rows, places: rows.at[places].get(mode="fill", fill_value=0))(grouped, index)
    return taken.reshape(-1, *pictures.shape[1:]), (index < grouped.shape[1]).reshape(-1)


def _unpacked(states: jax.Array, there: jax.Array, index: jax.Array) -> jax.Array:
    """The inverse of :func:`_packed` for states: [N, ...]; anything where ``there`` [N] is False."""
    groups, size = index.shape
    place = jnp.clip(jnp.cumsum(there.reshape(groups, -1), axis=1) - 1, 0, size - 1)
    grouped = states.reshape(groups, size, *states.shape[1:])
    return jax.vmap(lambda rows, places: rows[places])(grouped, place).reshape(-1, *states.shape[1:])


def _masked(content: Any, mask: jax.Array, dtype: jnp.dtype) -> Any:
    """Arrays, or a tuple of arrays, with zeros where the mask over their first axes is False."""

    def one(array):
        return jnp.where(mask.reshape(mask.shape + (1,) * (array.ndim - mask.ndim)), array, 0).astype(dtype)

    return jax.tree.map(one, content)

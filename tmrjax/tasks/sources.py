"""Where the pictures of a system come from: files, a cache of their pixels, or a cache of a frozen encoder's states."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from tmrjax.encoders.open import parameter_name, picture_encoder
from tmrjax.inputs.packing import Packing
from tmrjax.inputs.pictures import CachedPixelSource, FeatureSource, PictureSource, PixelSource, picture_requests
from tmrjax.methods import name_of
from tmrjax.methods.base import Method
from tmrjax.pictures.cache import FeatureCache
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import Record


class PictureSources:
    """The part of a :class:`tmrjax.tasks.system.System` that opens pictures."""

    method: Method
    pictures: PictureSettings

    def pixels(self, root: Path, *, num_threads: int = 1) -> PixelSource | None:
        """Pictures below ``root`` as pixels; None for a method that reads text only.

        ``num_threads``: that decode the pictures of a batch side by side.
        """
        if self.method.pictures is None:
            return None
        if self.method.picture is None:
            raise ValueError(
                "this model has no picture encoder, so it cannot read pictures: hand it features through model.apply, "
                "or convert a state dict that holds one"
            )
        return PixelSource(root, self.method.pictures, self.pictures, num_threads)

    def cached_pixels(
        self, root: Path, records: Sequence[Record], directory: Path, *, num_threads: int = 2, progress: bool = True
    ) -> PictureSource | None:
        """Pictures below ``root`` as pixels that are decoded once and kept in ``directory``: 150 kB each at 224²."""
        pictures = self.method.pictures
        if pictures is None:
            return None
        cache = FeatureCache.build(
            directory,
            picture_requests(records, root, pictures, self.pictures, None),
            lambda pixels: {"pixels": pixels},
            keep=("pixels",),
            encoder_identity={},
            settings=self.pictures,
            dtype="uint8",
            progress=progress,
            num_threads=num_threads,
            shard=jax.process_index(),
        )
        return CachedPixelSource(root, pictures, self.pictures, cache)

    def packing(self, source: PictureSource | None, mesh: Mesh, accumulate: int = 1) -> Packing | None:
        """How batches over ``mesh`` say which pictures they have, so that the others are not encoded.

        None where that is no saving: pictures come as states, what is missing counts as a picture, the method calls the
        parts of the encoder itself, or joins two streams of pictures.
        """
        pictures = self.method.pictures
        if not isinstance(source, PixelSource) or self.pictures.missing != "mask" or self.method.second:
            return None
        return None if "pixels" in pictures.parts.values() else Packing(pictures, self.pictures, mesh.size, accumulate)

    def picture_states(self, kept: Sequence[str]) -> Callable[[Mapping[str, Any], Any], dict[str, Any]]:
        """The compiled picture encoder: its variables, uint8 pixels [N, S, S, 3] -> what is kept by name, float32.

        ``kept``: some of "tokens", "pooled", "stages". The variables are an argument. Weights that a function closes
        over would be written into its program.
        """
        module = picture_encoder(self.method.picture, dtype=self.method.dtype)

        @jax.jit
        def encode(variables, pixels):
            states = module.apply(variables, self.pictures.normalise(pixels), train=False)
            return jax.tree.map(lambda state: state.astype(jnp.float32), {name: getattr(states, name) for name in kept})

        return encode

    def features(
        self,
        root: Path,
        records: Sequence[Record],
        variables: Mapping[str, Any],
        directory: Path,
        *,
        dtype: str = "float32",
        progress: bool = True,
        num_threads: int = 2,
    ) -> PictureSource | None:
        """Pictures below ``root`` as states of the frozen encoder, computed once and kept in ``directory``."""
        pictures = self.method.pictures
        if pictures is None:
            return None
        if "pixels" in pictures.parts.values():
            raise ValueError(
                f"the method {name_of(self.method)} reads pictures inside of its encoder, so their states cannot "
                "be kept: set --config.data.feature_cache=False"
            )
        if not self.pictures.as_bytes or self.pictures.whole == "area_bgr":
            raise ValueError(
                "this checkpoint reads its pictures as the released code does, and the feature cache cannot: set "
                "data.feature_cache=False"
            )
        name = parameter_name(self.method.picture)
        encoder = {
            collection: variables[collection]["picture_encoder"][name]
            for collection in ("params", "batch_stats")
            if "picture_encoder" in variables.get(collection, {})
        }
        identity = {
            "weights": tree_hash(encoder),
            "config": self.method.picture.to_dict(),
            "dtype": jnp.dtype(self.method.dtype).name,
        }
        kinds, caches = tuple(dict.fromkeys(pictures.parts.values())), {}
        encode = self.picture_states(kinds)
        for kept in kinds:
            caches[kept] = FeatureCache.build(
                directory,
                picture_requests(records, root, pictures, self.pictures, kept),
                lambda pixels, kept=kept: {kept: jax.device_get(encode(encoder, pixels)[kept])},
                keep=(kept,),
                encoder_identity=identity,
                settings=self.pictures,
                dtype=dtype,
                progress=progress,
                num_threads=num_threads,
                shard=jax.process_index(),
            )
        return FeatureSource(root, pictures, self.pictures, caches)


def tree_hash(tree: Any) -> str:
    """SHA-256 over names, shapes, dtypes and values of a tree of arrays."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.shape} {array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()

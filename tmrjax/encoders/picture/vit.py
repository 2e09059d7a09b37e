"""ViT (Dosovitskiy et al. 2021): a transformer over patches with a class token.

The arithmetic is that of Hugging Face's ``ViTModel`` without its pooler: pre-norm blocks, learned absolute positions, a
norm at the end. ``tmrjax.convert.picture_variables`` fills it from a Hugging Face folder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jax import Array

from tmrjax.encoders.picture.transformer import PictureTransformer, PictureTransformerConfig


@dataclasses.dataclass(frozen=True)
class ViTConfig(PictureTransformerConfig):
    """Sizes of a ViT; the defaults are those of ViT-B/16."""

    kind: ClassVar[str] = "ViT"
    only_value: ClassVar[Mapping[str, Any]] = {"model_type": "vit", "qkv_bias": True}


class ViTEncoder(PictureTransformer):
    """ViT without its pooler: tokens and pooled state are the normed states of the patches and of the class token."""

    config: ViTConfig

    def begin(self, hidden: Array, *, train: bool) -> Array:
        """Dropout."""
        return self.dropout(hidden.astype(self.dtype), deterministic=not train)

    def read_out(self, hidden: Array) -> tuple[Array, Array]:
        """All states are normed."""
        states = self.norm(hidden)
        return states[:, 1:], states[:, 0]

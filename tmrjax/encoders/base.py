"""What every encoder offers: the contracts of text encoders and picture encoders (§3.2).

An encoder is a linen module that is built from a config dataclass; :mod:`tmrjax.encoders.open` finds both by the
``model_type`` of a Hugging Face config.json. Parameters are float32 whatever ``dtype`` the layers compute in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from jax import Array


class Prefix(NamedTuple):
    """Keys and values that stand before those of the text in one layer's self-attention.

    keys, values: [B, P, H, D/H], H heads. mask: [B, P], True where valid; None is all.
    """

    keys: Array
    values: Array
    mask: Array | None = None


class Fusion(NamedTuple):
    """What another modality adds inside of one layer's feed-forward network (MKGformer).

    softmax(scale · c statesᵀ) states · kernel + bias joins the input of the activation, c [B, T, D] the heads of the
    attention side by side before its output projection. Nothing joins where ``states`` is None.

    states: [B, S, D]. mask: [B, S], True where valid; None is all. A post without a valid state adds nothing, no bias
    either. kernel: [D, I], bias: [I], I the width of the network. scale: of the products; None is 1 / √D.
    """

    states: Array | None = None
    mask: Array | None = None
    kernel: Array | None = None
    bias: Array | None = None
    scale: float | None = None


class PictureStates(NamedTuple):
    """What a picture encoder makes of N pictures.

    tokens: [N, P, C], the states of the P patches, without a class token. pooled: [N, C], one vector a picture, as the
    encoder's own paper has it (the mean of a ResNet's map, the class token of a ViT). stages: maps [N, h, w, C_i] from
    fine to coarse: a ResNet's or a Swin's stages; the layers of an encoder that has one resolution.
    """

    tokens: Array
    pooled: Array
    stages: tuple[Array, ...]


class EncoderConfig(Protocol):
    """Sizes of an encoder, named as in Hugging Face's config.json."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with ``model_type``."""

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> EncoderConfig:
        """From the contents of a config.json; raises ValueError for what this encoder does not build."""


class TextConfig(EncoderConfig, Protocol):
    """Of a text encoder.

    hidden_size: D. num_hidden_layers: depth. vocab_size: rows of the word table. pad_token_id: what stands at padding,
    which matters to no state.
    """

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    vocab_size: int
    pad_token_id: int

    @property
    def max_length(self) -> int:
        """The most word pieces that the encoder reads, special ones included."""

    @property
    def embedding_width(self) -> int:
        """E, the width of the word table: D unless the encoder projects its embeddings."""


class TextEncoder(Protocol):
    """A transformer over word pieces."""

    config: TextConfig

    def __call__(
        self,
        input_ids: Array | None,
        attention_mask: Array,
        *,
        train: bool,
        token_type_ids: Array | None = None,
        word_embeddings: Array | None = None,
        prefixes: tuple[Prefix | None, ...] | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Last states [B, T, D], and the states after the embeddings and each layer ("embeddings", "layer_0", ...).

        ``word_embeddings`` [B, T, E] takes the place of the word table's rows (``input_ids`` is None then).
        ``prefixes``: one a layer, None where a layer has none.
        """

    def embed(
        self,
        input_ids: Array | None,
        attention_mask: Array,
        *,
        train: bool,
        token_type_ids: Array | None = None,
        word_embeddings: Array | None = None,
    ) -> Array:
        """The states before the first layer, [B, T, D]."""

    def layer(
        self, index: int, hidden: Array, attention_mask: Array, *, train: bool, prefix: Prefix | None = None
    ) -> Array:
        """One layer alone: [B, T, D] -> [B, T, D]."""


class PictureConfig(EncoderConfig, Protocol):
    """Of a picture encoder. feature_size: C of tokens and pooled states."""

    @property
    def feature_size(self) -> int:
        """C."""


class PictureEncoder(Protocol):
    """From pixels to states of patches.

    ViT and CLIP's vision tower can be called in parts as well (:class:`tmrjax.encoders.picture.transformer`):
    ``patches(pixels)``, ``embed(pixels, train=...)``, ``layer(index, hidden, train=..., prefix=..., mask=...)``.
    """

    config: PictureConfig

    def __call__(self, pixels: Array, *, train: bool, mask: Array | None = None) -> PictureStates:
        """States of N pictures.

        ``pixels`` [N, H, W, 3]: floats are taken as normalised already; the caller normalises uint8 with
        :meth:`tmrjax.pictures.preprocessing.PictureSettings.normalise`, on the device. ``mask`` [N]: True where a
        picture is there.
        """

"""ViLT (Kim, Son and Kim 2021), text and picture in one sequence: the encoder of the divergence estimator (§3.4).

The arithmetic is that of Hugging Face's ``ViltModel`` with all patches kept: word embeddings and linearly projected
patches, each with the embedding of its modality, pre-layer-norm blocks, a final norm and a tanh pooler over the first
word piece. ``tmrjax.convert.vilt_params`` fills it from a Hugging Face folder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from tmrjax.encoders.activations import ACTIVATIONS
from tmrjax.encoders.config import TransformerConfig
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import LayerNorm, SelfAttention, TextEmbeddings, dense


@dataclasses.dataclass(frozen=True)
class ViltConfig(TransformerConfig):
    """Sizes of a ViLT.

    image_size: side of the square that the position grid was made for, in pixels; patch_size: side of a patch.
    text_layer_norm_eps: ε of the norm after the text embeddings where it is another than ``layer_norm_eps``.
    """

    kind: ClassVar[str] = "ViLT"
    only_value: ClassVar[Mapping[str, Any]] = {
        "model_type": "vilt",
        "position_embedding_type": "absolute",
        "qkv_bias": True,
        "modality_type_vocab_size": 2,
    }
    sizes_with_default: ClassVar[tuple[str, ...]] = ("type_vocab_size", "image_size", "patch_size", "num_channels")

    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    image_size: int = 384
    patch_size: int = 32
    num_channels: int = 3
    text_layer_norm_eps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise ValueError(
                f"ViLT config: image_size {self.image_size} is not a multiple of patch_size {self.patch_size}"
            )

    @property
    def grid(self) -> int:
        """Patches along a side of the position grid."""
        return self.image_size // self.patch_size


def patch_grid(pixel_mask: Array, patch_size: int) -> tuple[Array, Array, Array]:
    """The mask of patches [B,h,w] under that of pixels [B,H,W], and the valid height and width [B] in patches.

    A patch is valid where its first pixel is. Valid pixels are a rectangle at the top left; padding is below and right.
    """
    mask = pixel_mask[:, ::patch_size, ::patch_size].astype(bool)
    return mask, mask[:, :, 0].sum(1), mask[:, 0, :].sum(1)


def interpolation_weights(valid: Array, length: int, grid: int) -> Array:
    """Linear interpolation of ``grid`` points at ``valid`` points from end to end, as matrices [B,length,grid].

    Row i < valid has the weights of position i (grid − 1) / (valid − 1), of 0 where valid is 1 (PyTorch's
    ``align_corners=True``); rows behind are of no meaning. ``valid`` [B] is data, not shape: one program for all sizes.
    """
    place = jnp.arange(length) * ((grid - 1) / jnp.maximum(valid - 1, 1))[:, None]
    return jnp.maximum(0.0, 1 - jnp.abs(place[..., None] - jnp.arange(grid)))


class _PatchEmbeddings(nn.Module):
    """Linear projection of patches, a class token before them, positions on both: [B,H,W,C] → [B,1+hw,D]."""

    config: ViltConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, pixels: Array, height: Array, width: Array, *, train: bool) -> Array:
        config, size = self.config, self.config.patch_size
        normal = nn.initializers.normal(0.02)
        kernel = self.param("kernel", normal, (size, size, config.num_channels, config.hidden_size))
        bias = self.param("bias", nn.initializers.zeros_init(), (config.hidden_size,))
        class_token = self.param("class_token", normal, (1, 1, config.hidden_size))
        positions = self.param("positions", normal, (1, 1 + config.grid**2, config.hidden_size))

        rows, columns = pixels.shape[1] // size, pixels.shape[2] // size
        patches = pixels.reshape(-1, rows, size, columns, size, config.num_channels).swapaxes(2, 3)
        patches = patches.reshape(-1, size * size * config.num_channels).astype(self.dtype)
        flat_kernel = kernel.reshape(-1, config.hidden_size).astype(self.dtype)
        projected = jnp.matmul(patches, flat_kernel, preferred_element_type=jnp.float32) + bias

        square = positions[0, 1:].reshape(config.grid, config.grid, config.hidden_size)
        vertical = interpolation_weights(height, rows, config.grid)
        horizontal = interpolation_weights(width, columns, config.grid)
        place = jnp.einsum("bjq,biqd->bijd", horizontal, jnp.einsum("bip,pqd->biqd", vertical, square))
        hidden = projected.reshape(pixels.shape[0], rows * columns, -1) + place.reshape(
            pixels.shape[0], rows * columns, -1
        )
        first = jnp.broadcast_to(class_token + positions[:, :1], (pixels.shape[0], 1, config.hidden_size))
        hidden = jnp.concatenate([first, hidden], axis=1).astype(self.dtype)
        return Dropout(config.hidden_dropout_prob)(hidden, deterministic=not train)


class _Layer(nn.Module):
    """One pre-layer-norm transformer block: [B·S,D] → [B·S,D]."""

    config: ViltConfig
    dtype: jnp.dtype

    # ``train`` by position: nn.remat has no static keywords.
    @nn.compact
    def __call__(self, hidden: Array, mask: Array, train: bool) -> Array:
        config = self.config
        drop = Dropout(config.hidden_dropout_prob)
        attention = SelfAttention(
            config.num_attention_heads, config.attention_probs_dropout_prob, self.dtype, name="attention"
        )
        normalised = LayerNorm(config.layer_norm_eps, self.dtype, name="attention_norm")(hidden)
        hidden = hidden + drop(attention(normalised, mask, train=train), deterministic=not train)
        normalised = LayerNorm(config.layer_norm_eps, self.dtype, name="output_norm")(hidden)
        inner = ACTIVATIONS[config.hidden_act](dense(config.intermediate_size, self.dtype, "intermediate")(normalised))
        return hidden + drop(dense(config.hidden_size, self.dtype, "output")(inner), deterministic=not train)


class ViltEncoder(nn.Module):
    """ViLT with its pooler; dropout takes the RNG collection "dropout" and is on where ``train`` is True.

    Attributes:
      config: the sizes.
      dtype: the computation type of the matrix products, float32 or bfloat16; the pooled state is float32.
      remat: compute each block again in the backward pass instead of keeping its insides (gradient checkpointing).
    """

    config: ViltConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array,
        pixel_values: Array | None,
        pixel_mask: Array | None,
        *,
        train: bool,
        token_type_ids: Array | None = None,
    ) -> tuple[Array, dict[str, Array]]:
        """Encodes texts with their pictures.

        Args:
          input_ids: [B,T] integers below ``vocab_size``.
          attention_mask: [B,T], nonzero or True where a piece is valid.
          pixel_values: [B,H,W,C], H and W multiples of ``patch_size``; None for texts alone (no class token either).
          pixel_mask: [B,H,W], nonzero or True on a rectangle from the top left: the picture, without its padding. What
            stands outside has no influence. A picture without any valid pixel leaves its class token alone.
          train: whether dropout is on.
          token_type_ids: [B,T], or None for type 0 everywhere.

        Returns:
          The pooled state [B,D], tanh of a linear map of the normed first state; and "states", the normed states
          [B,T+1+hw,D] of word pieces, class token and patches by rows, "mask" [B,T+1+hw] of them, and the states after
          the embeddings and each block under "embeddings", "layer_0", ....

        Raises:
          ValueError: where shapes disagree (both are named), T exceeds ``max_position_embeddings``, or H or W are no
            multiples of ``patch_size``.
        """
        config = self.config
        self._check(input_ids, attention_mask, pixel_values, pixel_mask, token_type_ids)
        embed = TextEmbeddings(
            config, config.text_layer_norm_eps or config.layer_norm_eps, self.dtype, name="text_embeddings"
        )
        modality = nn.Embed(
            2, config.hidden_size, name="modality", embedding_init=nn.initializers.normal(0.02)
        ).embedding.astype(self.dtype)
        hidden, mask = embed(input_ids, token_type_ids, train=train) + modality[0], attention_mask.astype(bool)
        if pixel_values is not None:
            patch_mask, height, width = patch_grid(pixel_mask, config.patch_size)
            patches = _PatchEmbeddings(config, self.dtype, name="patch_embeddings")(
                pixel_values, height, width, train=train
            )
            hidden = jnp.concatenate([hidden, patches + modality[1]], axis=1)
            ones = jnp.ones((mask.shape[0], 1), bool)
            mask = jnp.concatenate([mask, ones, patch_mask.reshape(mask.shape[0], -1)], axis=1)
        shape, intermediates = hidden.shape, {"embeddings": hidden, "mask": mask}
        # One row per piece or patch, see BertEncoder.
        hidden = hidden.reshape(-1, shape[-1])
        layer = nn.remat(_Layer, static_argnums=(3,)) if self.remat else _Layer
        for index in range(config.num_hidden_layers):
            hidden = layer(config, self.dtype, name=f"layer_{index}")(hidden, mask, train)
            intermediates[f"layer_{index}"] = hidden.reshape(shape)
        states = LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(hidden).reshape(shape)
        pooled = jnp.tanh(dense(config.hidden_size, self.dtype, "pooler")(states[:, 0]).astype(jnp.float32))
        return pooled, intermediates | {"states": states}

    def _check(self, input_ids, attention_mask, pixel_values, pixel_mask, token_type_ids) -> None:
        if input_ids.ndim != 2:
            raise ValueError(f"input_ids must be [B,T], got shape {input_ids.shape}")
        for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if value is not None and value.shape != input_ids.shape:
                raise ValueError(f"{name} has shape {value.shape}, but input_ids has {input_ids.shape}")
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"{input_ids.shape[1]} word pieces exceed this encoder's {self.config.max_position_embeddings} "
                "positions (max_position_embeddings): cut the text into shorter pieces"
            )
        if pixel_values is None:
            return
        batch, channels, size = input_ids.shape[0], self.config.num_channels, self.config.patch_size
        shape = pixel_values.shape
        if len(shape) != 4 or shape[0] != batch or shape[3] != channels or shape[1] % size or shape[2] % size:
            raise ValueError(
                f"pixel_values must be [{batch},H,W,{channels}] with H and W multiples of {size}, got {shape}"
            )
        if pixel_mask is None or pixel_mask.shape != shape[:3]:
            found = None if pixel_mask is None else pixel_mask.shape
            raise ValueError(f"pixel_mask must have shape {shape[:3]} as pixel_values have, got {found}")

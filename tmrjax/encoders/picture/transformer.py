"""What ViT and CLIP's vision tower share: sizes, the pre-norm block, a class token before the patches (§3.2).

An encoder is a subclass of :class:`PictureTransformer` that says how it begins and what it takes as pooled state.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from tmrjax.encoders.activations import ACTIVATIONS, check_activation
from tmrjax.encoders.base import PictureStates, Prefix
from tmrjax.encoders.config import check_rates, check_sizes, config_fields
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import LayerNorm, SelfAttention, dense
from tmrjax.encoders.picture.patches import PatchEmbeddings, check_pixels


@dataclasses.dataclass(frozen=True)
class PictureTransformerConfig:
    """Sizes named as in Hugging Face's config.json; what such a file leaves out has Hugging Face's default.

    Raises ValueError, naming the field, where a size is not positive, a probability is outside [0, 1), the hidden size
    is not divisible by the number of heads, the picture not by the patch, or the activation is unknown.
    """

    kind: ClassVar[str]
    # Settings of config.json that change the arithmetic in ways not built here: each with the value that does not.
    only_value: ClassVar[Mapping[str, Any]]

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0

    def __post_init__(self) -> None:
        check_sizes(self.kind, {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.type is int})
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        check_rates(self.kind, {name: getattr(self, name) for name in rates})
        for whole, part in (("hidden_size", "num_attention_heads"), ("image_size", "patch_size")):
            if getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{self.kind} config: {whole} {getattr(self, whole)} is not divisible by {part} "
                    f"{getattr(self, part)}"
                )
        check_activation(self.hidden_act)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """Reads the contents of a Hugging Face config.json; keys that do not touch the arithmetic are ignored.

        Raises ValueError naming a setting that this encoder does not build, with the value found.
        """
        return cls(**config_fields(cls, mapping))

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, with ``model_type``, which ``from_dict`` and transformers read back."""
        return {"model_type": self.only_value["model_type"], **dataclasses.asdict(self)}

    @property
    def feature_size(self) -> int:
        """C of tokens and pooled states."""
        return self.hidden_size

    @property
    def grid(self) -> int:
        """Patches along a side of a picture."""
        return self.image_size // self.patch_size


class PreNormLayer(nn.Module):
    """One pre-norm transformer block: x + attention(norm(x)), then x + MLP(norm(x)). [N,S,D] → [N,S,D]."""

    config: PictureTransformerConfig
    dtype: jnp.dtype

    # ``train`` by position: nn.remat has no static keywords.
    @nn.compact
    def __call__(self, hidden: Array, prefix: Prefix | None, train: bool, mask: Array | None = None) -> Array:
        """``prefix``: keys and values that stand before those of ``hidden``; ``mask`` [N,S]: of its own keys."""
        config, shape = self.config, hidden.shape
        drop = Dropout(config.hidden_dropout_prob)
        # One row per patch: XLA's CPU products of matrices are faster, forward and backward, than of three-way arrays.
        hidden = hidden.reshape(-1, shape[-1])
        attention = SelfAttention(
            config.num_attention_heads, config.attention_probs_dropout_prob, self.dtype, name="attention"
        )
        normalised = LayerNorm(config.layer_norm_eps, self.dtype, name="attention_norm")(hidden)
        valid = jnp.ones(shape[:2], bool) if mask is None else mask
        attended = attention(normalised, valid, train=train, prefix=prefix)
        hidden = hidden + drop(attended, deterministic=not train)
        normalised = LayerNorm(config.layer_norm_eps, self.dtype, name="output_norm")(hidden)
        inner = ACTIVATIONS[config.hidden_act](dense(config.intermediate_size, self.dtype, "intermediate")(normalised))
        output = dense(config.hidden_size, self.dtype, "output")(inner)
        return (hidden + drop(output, deterministic=not train)).reshape(shape)


class PictureTransformer(nn.Module):
    """A transformer over patches; parameters are float32 whatever ``dtype`` the layers compute in.

    Layer norms, attention scores and softmax are float32 inside. Dropout takes the RNG collection "dropout" and is
    on where ``train`` is True. A model that arranges the parts otherwise calls ``patches``, ``class_token``, ``embed``
    and ``layer`` itself.

    Attributes:
      config: the sizes.
      dtype: the computation type of the matrix products and of the result, float32 or bfloat16.
      remat: compute each layer again in the backward pass instead of keeping its insides (gradient checkpointing).
    """

    config: PictureTransformerConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    patch_bias: ClassVar[bool] = True

    def setup(self) -> None:
        """Parameters are named "patch_embeddings", "class_token", "positions", "layer_0", ..., "norm"."""
        config, normal = self.config, nn.initializers.normal(0.02)
        self.patch_embeddings = PatchEmbeddings(config.patch_size, config.hidden_size, self.patch_bias, self.dtype)
        self.class_token = self.param("class_token", normal, (config.hidden_size,))
        self.positions = self.param("positions", normal, (1 + config.grid**2, config.hidden_size))
        self.dropout = Dropout(config.hidden_dropout_prob)
        layer = nn.remat(PreNormLayer, static_argnums=(3,)) if self.remat else PreNormLayer
        for index in range(config.num_hidden_layers):
            setattr(self, f"layer_{index}", layer(config, self.dtype))
        self.norm = LayerNorm(config.layer_norm_eps, self.dtype)

    def __call__(self, pixels: Array, *, train: bool, mask: Array | None = None) -> PictureStates:
        """Encodes pictures.

        Args:
          pixels: [N,S,S,channels], S the config's ``image_size``, floating, normalised as the weights want it.
          train: whether dropout is on.
          mask: [N] or None; no picture has any influence on another, so that it changes nothing.

        Returns:
          The states; "stages" are the outputs of all layers as maps [N,S/p,S/p,D], without the class token.

        Raises:
          ValueError: where the shape is not that of pictures of this size, or the pixels are not floating.
        """
        check_pixels(pixels, self.config.num_channels, mask)
        hidden = self.embed(pixels, train=train)
        grid, stages = self.config.grid, []
        for index in range(self.config.num_hidden_layers):
            hidden = self.layer(index, hidden, train=train)
            stages.append(hidden[:, 1:].reshape(hidden.shape[0], grid, grid, -1))
        tokens, pooled = self.read_out(hidden)
        return PictureStates(tokens, pooled, tuple(stages))

    def patches(self, pixels: Array) -> Array:
        """The linear map of patches by rows, without positions, in float32: [N,H,W,C] → [N,HW/p²,D], of any size."""
        projected = self.patch_embeddings(pixels)
        return projected.reshape(pixels.shape[0], -1, projected.shape[-1])

    def embed(self, pixels: Array, *, train: bool) -> Array:
        """The states before the first layer: class token, then patches by rows, [N,1+P,D]."""
        size = self.config.image_size
        if pixels.shape[1:3] != (size, size):
            raise ValueError(
                f"pixels are {pixels.shape[1]} × {pixels.shape[2]}, but the position table of this encoder is made for "
                f"{size} × {size} (image_size): set the size of preprocessing to it"
            )
        patches = self.patches(pixels)
        first = jnp.broadcast_to(self.class_token, (patches.shape[0], 1, patches.shape[-1]))
        hidden = jnp.concatenate([first, patches], axis=1) + self.positions
        return self.begin(hidden, train=train)

    def layer(
        self, index: int, hidden: Array, *, train: bool, prefix: Prefix | None = None, mask: Array | None = None
    ) -> Array:
        """One layer alone: [N,S,D] → [N,S,D].

        ``prefix``: keys and values that stand before those of the picture. ``mask``: [N,S], True where a token counts;
        None is everywhere.
        """
        return getattr(self, f"layer_{index}")(hidden, prefix, train, mask)

    def begin(self, hidden: Array, *, train: bool) -> Array:
        """From the sum of patches and positions to the first layer's input, in the computation type."""
        raise NotImplementedError

    def read_out(self, hidden: Array) -> tuple[Array, Array]:
        """Tokens [N,P,D] and pooled state [N,D] out of the last layer's [N,1+P,D]."""
        raise NotImplementedError

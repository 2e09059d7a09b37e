"""Swin (Liu et al. 2021): attention inside of windows that every second block shifts, in stages of halving resolution.

The arithmetic is that of Hugging Face's ``SwinModel``. ``tmrjax.convert.picture_variables`` fills it from a Hugging
Face folder.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array

from tmrjax.attention import attend
from tmrjax.encoders.activations import ACTIVATIONS, check_activation
from tmrjax.encoders.base import PictureStates
from tmrjax.encoders.config import check_rates, check_sizes, config_fields
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import LayerNorm, dense, weight_dropout
from tmrjax.encoders.picture.patches import PatchEmbeddings, check_pixels

_EPSILON = 1e-5  # of the norms after the patches and before a merge, whatever the config says
_ACROSS_AN_EDGE = -100.0  # added to the logits of pairs that only a shift has made neighbours


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Sizes of a Swin, named as in Hugging Face's config.json; the defaults are those of Swin-T.

    Raises ValueError, naming the field, where a size is not positive, ``depths`` and ``num_heads`` differ in length, a
    stage's width is not divisible by its heads, a probability is outside [0, 1), or the activation is unknown.
    """

    kind: ClassVar[str] = "Swin"
    only_value: ClassVar[Mapping[str, Any]] = {
        "model_type": "swin",
        "qkv_bias": True,
        "use_absolute_embeddings": False,
    }

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window_size: int = 7
    patch_size: int = 4
    num_channels: int = 3
    mlp_ratio: float = 4.0
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    drop_path_rate: float = 0.1

    def __post_init__(self) -> None:
        for name in ("depths", "num_heads"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists; a module's field is hashed
        names = ("embed_dim", "depths", "num_heads", "window_size", "patch_size", "num_channels")
        check_sizes(self.kind, {name: getattr(self, name) for name in names})
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")
        check_rates(self.kind, {name: getattr(self, name) for name in rates})
        if len(self.depths) != len(self.num_heads):
            raise ValueError(f"Swin config: depths {self.depths} and num_heads {self.num_heads} differ in length")
        for stage, heads in enumerate(self.num_heads):
            if self.width(stage) % heads:
                raise ValueError(f"Swin config: {self.width(stage)} channels of stage {stage} and {heads} num_heads")
        if not self.mlp_ratio * self.embed_dim >= 1:
            raise ValueError(f"Swin config: mlp_ratio {self.mlp_ratio!r} is too small")
        check_activation(self.hidden_act)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """Reads the contents of a Hugging Face config.json; keys that do not touch the arithmetic are ignored.

        Raises ValueError naming a setting that this encoder does not build, with the value found.
        """
        return cls(**config_fields(cls, mapping))

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, with ``model_type``, which ``from_dict`` and transformers read back."""
        fields = dataclasses.asdict(self)
        return {"model_type": "swin", **fields, "depths": list(self.depths), "num_heads": list(self.num_heads)}

    def width(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim * 2**stage

    @property
    def feature_size(self) -> int:
        """C of tokens and pooled states."""
        return self.width(len(self.depths) - 1)


class _WindowAttention(nn.Module):
    """Self-attention inside of windows, with a bias by relative position: [N·windows,S,C] → the same shape."""

    config: SwinConfig
    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, hidden: Array, zones: np.ndarray | None, train: bool) -> Array:
        """``zones`` [windows,S]: places attend to those of their own zone; None is one zone."""
        count, length, width = hidden.shape
        heads, side = self.num_heads, self.config.window_size
        flat = hidden.reshape(-1, width)

        def project(name: str) -> Array:
            return dense(width, self.dtype, name)(flat).reshape(count, length, heads, width // heads)

        table = self.param("position_bias", nn.initializers.normal(0.02), ((2 * side - 1) ** 2, heads))
        bias = jnp.moveaxis(table[relative_positions(side)], -1, 0)[None]
        if zones is not None:
            zones = jnp.asarray(zones, jnp.int32)
            across = jnp.where(zones[:, None, :, None] == zones[:, None, None, :], 0.0, _ACROSS_AN_EDGE)
            bias = jnp.tile(bias + across, (count // len(zones), 1, 1, 1))
        query, key, value = project("query"), project("key"), project("value")
        drop = weight_dropout(self.config.attention_probs_dropout_prob, train=train)
        attended = attend(query, key, value, bias=bias, dropout=drop).reshape(-1, width)
        return dense(width, self.dtype, "output")(attended).reshape(hidden.shape)


def relative_positions(side: int) -> np.ndarray:
    """Row of the bias table for each pair of S = side² places, [S,S]: (Δrow + s − 1)(2s − 1) + Δcolumn + s − 1."""
    place = np.stack(np.divmod(np.arange(side * side), side))
    rows, columns = place[:, :, None] - place[:, None, :] + side - 1
    return rows * (2 * side - 1) + columns


def shifted_zones(height: int, width: int, side: int, shift: int) -> np.ndarray:
    """A number for each place of each window [windows,S]: unlike where a cyclic shift has made them neighbours.

    A map of height × width (multiples of ``side``) is shifted up and left by ``shift``; what comes in from the other
    edge is no neighbour of what was there.
    """

    def along(length: int) -> np.ndarray:
        place = np.arange(length)
        return (place >= length - side).astype(int) + (place >= length - shift)

    zones = along(height)[:, None] * 3 + along(width)[None, :]
    return to_windows(zones[None, :, :, None], side).reshape(-1, side * side)


def to_windows(maps: Any, side: int) -> Any:
    """[N,H,W,C] → [N·windows, side², C], windows and places by rows; H and W are multiples of ``side``."""
    count, height, width, channels = maps.shape
    parts = maps.reshape(count, height // side, side, width // side, side, channels)
    return parts.swapaxes(2, 3).reshape(-1, side * side, channels)


def from_windows(windows: Array, side: int, height: int, width: int) -> Array:
    """The inverse of :func:`to_windows`: [N·windows, side², C] → [N,H,W,C]."""
    parts = windows.reshape(-1, height // side, width // side, side, side, windows.shape[-1])
    return parts.swapaxes(2, 3).reshape(-1, height, width, windows.shape[-1])


class _Block(nn.Module):
    """Pre-norm attention inside of windows and an MLP: [N,H,W,C] → [N,H,W,C].

    H and W are padded by zeros, behind the norm, to multiples of the window. ``drop_path``: the probability that a
    picture goes past a half of the block in training (stochastic depth).
    """

    config: SwinConfig
    num_heads: int
    shift: int
    drop_path: float
    dtype: jnp.dtype

    # ``train`` by position: nn.remat has no static keywords.
    @nn.compact
    def __call__(self, maps: Array, train: bool) -> Array:
        config = self.config
        _, height, width, channels = maps.shape
        side = config.window_size
        # A window as large as the map: nothing is gained by shifting it.
        shift = 0 if min(height, width) == side else self.shift
        drop = Dropout(config.hidden_dropout_prob)

        def past(change: Array) -> Array:
            kept = Dropout(self.drop_path)(jnp.ones((change.shape[0], 1, 1, 1), change.dtype), deterministic=not train)
            return change * kept if train and self.drop_path else change

        x = LayerNorm(config.layer_norm_eps, self.dtype, name="attention_norm")(maps)
        x = jnp.pad(x, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
        padded = x.shape[1:3]
        x = to_windows(jnp.roll(x, (-shift, -shift), (1, 2)), side)
        zones = shifted_zones(*padded, side, shift) if shift else None
        x = _WindowAttention(config, self.num_heads, self.dtype, name="attention")(x, zones, train)
        # Hugging Face drops the projected states with this probability too.
        x = Dropout(config.attention_probs_dropout_prob)(x, deterministic=not train)
        x = jnp.roll(from_windows(x, side, *padded), (shift, shift), (1, 2))[:, :height, :width]
        maps = maps + past(x)
        x = LayerNorm(config.layer_norm_eps, self.dtype, name="output_norm")(maps).reshape(-1, channels)
        x = ACTIVATIONS[config.hidden_act](dense(int(config.mlp_ratio * channels), self.dtype, "intermediate")(x))
        x = drop(dense(channels, self.dtype, "output")(x), deterministic=not train)
        return maps + past(x.reshape(maps.shape))


class _Merge(nn.Module):
    """2 × 2 places become one of twice the channels: [N,H,W,C] → [N,⌈H/2⌉,⌈W/2⌉,2C]."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, maps: Array) -> Array:
        _, height, width, channels = maps.shape
        maps = jnp.pad(maps, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        parts = [maps[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        joined = LayerNorm(_EPSILON, self.dtype, name="norm")(jnp.concatenate(parts, axis=-1))
        reduce = nn.Dense(
            2 * channels, use_bias=False, dtype=self.dtype, name="reduction", kernel_init=nn.initializers.normal(0.02)
        )
        return reduce(joined.reshape(-1, 4 * channels)).reshape(*joined.shape[:3], -1)


class SwinEncoder(nn.Module):
    """Swin without a head; parameters are float32 whatever ``dtype`` the layers compute in.

    Layer norms, attention scores and softmax are float32 inside. Dropout and stochastic depth take the RNG collection
    "dropout" and are on where ``train`` is True.

    Attributes:
      config: the sizes.
      dtype: the computation type of the matrix products and of the result, float32 or bfloat16.
      remat: compute each block again in the backward pass instead of keeping its insides (gradient checkpointing).
    """

    config: SwinConfig
    dtype: jnp.dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, pixels: Array, *, train: bool, mask: Array | None = None) -> PictureStates:
        """Encodes pictures.

        Args:
          pixels: [N,H,W,channels], floating, normalised as the weights want it. H and W need not be multiples of
            anything: pixels are padded by zeros to whole patches, maps to whole windows.
          train: whether dropout and stochastic depth are on.
          mask: [N] or None; no picture has any influence on another, so that it changes nothing.

        Returns:
          The states: "stages", the maps [N,h,w,C_i] of each stage before they are merged; "tokens", the normed last
          map by rows; "pooled", their mean.

        Raises:
          ValueError: where the shape is not that of pictures, the pixels are not floating, or a stage's map is smaller
            than a window.
        """
        config = self.config
        check_pixels(pixels, config.num_channels, mask)
        side = config.patch_size
        pixels = jnp.pad(pixels, ((0, 0), (0, -pixels.shape[1] % side), (0, -pixels.shape[2] % side), (0, 0)))
        embedded = PatchEmbeddings(side, config.embed_dim, True, self.dtype, name="patch_embeddings")(pixels)
        maps = LayerNorm(_EPSILON, self.dtype, name="patch_norm")(embedded)
        maps = Dropout(config.hidden_dropout_prob)(maps, deterministic=not train)
        block_type = nn.remat(_Block, static_argnums=(2,)) if self.remat else _Block
        rates = iter(np.linspace(0, config.drop_path_rate, sum(config.depths)))
        stages = []
        for stage, (depth, heads) in enumerate(zip(config.depths, config.num_heads, strict=True)):
            if stage:
                maps = _Merge(self.dtype, name=f"merge_{stage - 1}")(maps)
            if min(maps.shape[1:3]) < config.window_size:
                raise ValueError(
                    f"the map of stage {stage} is {maps.shape[1]} × {maps.shape[2]}, smaller than the window of "
                    f"{config.window_size}: pictures must be larger for this Swin"
                )
            for index in range(depth):
                shift = config.window_size // 2 if index % 2 else 0
                name = f"stage_{stage}_block_{index}"
                maps = block_type(config, heads, shift, float(next(rates)), self.dtype, name=name)(maps, train)
            stages.append(maps)
        tokens = LayerNorm(config.layer_norm_eps, self.dtype, name="norm")(maps)
        tokens = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
        return PictureStates(tokens, tokens.mean(1), tuple(stages))

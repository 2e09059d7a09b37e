"""ResNet (He et al. 2016), the picture encoder of TMR §3.2: a map of 7 × 7 for 224 × 224 pixels.

The arithmetic is that of Hugging Face's ``ResNetModel`` without its pooler and of torchvision's and timm's ``resnet50``
(v1.5: a bottleneck strides in its 3 × 3 convolution). ``tmrjax.convert.resnet_params`` fills it from either.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import Array, lax

from tmrjax.encoders.activations import ACTIVATIONS, check_activation
from tmrjax.encoders.base import PictureStates
from tmrjax.encoders.picture.convolution import convolve
from tmrjax.encoders.picture.patches import check_pixels
from tmrjax.encoders.picture.pooling import max_pool

_EPSILON = 1e-5
_MOMENTUM = 0.1  # PyTorch's: the weight of the new batch in the running statistics
_REDUCTION = 4
# timm's config.json says only "architecture": "resnet50".
_ARCHITECTURES = {
    "resnet18": {"hidden_sizes": (64, 128, 256, 512), "depths": (2, 2, 2, 2), "layer_type": "basic"},
    "resnet34": {"hidden_sizes": (64, 128, 256, 512), "depths": (3, 4, 6, 3), "layer_type": "basic"},
    "resnet50": {"depths": (3, 4, 6, 3)},
    "resnet101": {"depths": (3, 4, 23, 3)},
    "resnet152": {"depths": (3, 8, 36, 3)},
}
_ONLY_VALUE = {"model_type": "resnet", "downsample_in_first_stage": False}


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Sizes of a ResNet, named as in Hugging Face's config.json.

    Raises ValueError, naming the field, where a size is not positive, ``hidden_sizes`` and ``depths`` differ in length,
    or the layer type or the activation is unknown.
    """

    embedding_size: int = 64
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    layer_type: str = "bottleneck"
    hidden_act: str = "relu"
    downsample_in_bottleneck: bool = False
    num_channels: int = 3

    def __post_init__(self) -> None:
        for name in ("hidden_sizes", "depths"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists; a module's field is hashed
        sizes = {"embedding_size": (self.embedding_size,), "num_channels": (self.num_channels,)}
        for name, values in {**sizes, "hidden_sizes": self.hidden_sizes, "depths": self.depths}.items():
            if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
                raise ValueError(f"ResNet config: {name} must be positive integers, got {getattr(self, name)!r}")
        if len(self.hidden_sizes) != len(self.depths):
            raise ValueError(
                f"ResNet config: hidden_sizes {self.hidden_sizes} and depths {self.depths} differ in length"
            )
        if self.layer_type not in ("bottleneck", "basic"):
            raise ValueError(f"ResNet config: layer_type {self.layer_type!r} is not 'bottleneck' or 'basic'")
        if self.layer_type == "bottleneck" and any(size < _REDUCTION for size in self.hidden_sizes):
            raise ValueError(f"ResNet config: bottlenecks need hidden_sizes of at least 4, got {self.hidden_sizes}")
        check_activation(self.hidden_act)

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> "ResNetConfig":
        """Reads a Hugging Face config.json, or timm's with its ``architecture``; harmless other keys are ignored.

        Raises ValueError naming a setting that this encoder does not build, with the value found.
        """
        for name, allowed in _ONLY_VALUE.items():
            found = mapping.get(name, allowed)
            if found != allowed:
                raise ValueError(f"ResNet config: {name} {found!r} is not supported, only {allowed!r} is")
        values: dict[str, Any] = {}
        if "model_type" not in mapping and "architecture" in mapping:
            architecture = mapping["architecture"]
            if architecture not in _ARCHITECTURES:
                known = ", ".join(_ARCHITECTURES)
                raise ValueError(f"ResNet config: architecture {architecture!r} is not supported; known are {known}")
            values.update(_ARCHITECTURES[architecture])
        fields = {field.name for field in dataclasses.fields(cls)}
        values.update({name: value for name, value in mapping.items() if name in fields and value is not None})
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, with ``model_type``, which ``from_dict`` and transformers read back."""
        values = dataclasses.asdict(self)
        return {"model_type": "resnet", **values, "hidden_sizes": list(self.hidden_sizes), "depths": list(self.depths)}

    @classmethod
    def resnet50(cls) -> "ResNetConfig":
        """The sizes of ResNet-50."""
        return cls()

    @classmethod
    def resnet101(cls) -> "ResNetConfig":
        """The sizes of ResNet-101."""
        return cls(depths=(3, 4, 23, 3))

    @property
    def feature_size(self) -> int:
        """C, the channels of the map."""
        return self.hidden_sizes[-1]

    @property
    def stride(self) -> int:
        """Pixels per side of one patch of the map: the stem halves twice, each stage but the first once."""
        return 4 * 2 ** (len(self.depths) - 1)

    def map_size(self, pixels: int) -> int:
        """Patches per side of the map for a picture of ``pixels`` per side: 7 for 224 (halving rounds up)."""
        return -(-pixels // self.stride)


def _initial_kernel(key: Array, shape: tuple[int, ...]) -> Array:
    """He's normal initialisation, drawn as a matrix: random bits in four dimensions take XLA seconds to compile."""
    matrix = nn.initializers.he_normal()(key, (math.prod(shape[:-1]), shape[-1]))
    return matrix.reshape(shape)


class _ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation and perhaps an activation: [N,H,W,C] → [N,⌈H/s⌉,⌈W/s⌉,O].

    y = (conv(x, K) − mean) · scale / √(var + ε) + bias. With given statistics this is conv(x, K·a) + bias − mean·a
    where a = scale / √(var + ε): so it is computed, because then neither the convolution's result has to be kept for
    the gradient of a, nor a pass over it made.
    """

    features: int
    kernel_size: int
    stride: int
    activation: str | None
    dtype: jnp.dtype
    batch_norm: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool, mask: Array | None) -> Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", _initial_kernel, shape)
        scale = self.param("scale", nn.initializers.ones_init(), (self.features,))
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.features,))
        var = self.variable("batch_stats", "var", jnp.ones, (self.features,))
        if train and self.batch_norm == "train":
            y = convolve(x, kernel.astype(self.dtype), self.stride).astype(jnp.float32)
            batch_mean, batch_var, count = _batch_statistics(y, mask)
            # A batch without any picture uses the running statistics and leaves them as they are.
            batch_mean = jnp.where(count > 0, batch_mean, mean.value)
            batch_var = jnp.where(count > 0, batch_var, var.value)
            if not self.is_initializing():
                momentum = jnp.where(count > 0, _MOMENTUM, 0.0)
                # PyTorch's running variance is the unbiased one, though the batch is divided by the biased one.
                unbiased = batch_var * count / jnp.maximum(count - 1, 1)
                mean.value = (1 - momentum) * mean.value + momentum * batch_mean
                var.value = (1 - momentum) * var.value + momentum * unbiased
            multiplier = scale * lax.rsqrt(batch_var + _EPSILON)
            y = ((y - batch_mean) * multiplier + bias).astype(self.dtype)
        else:
            multiplier = scale * lax.rsqrt(var.value + _EPSILON)
            y = convolve(x, (kernel * multiplier).astype(self.dtype), self.stride)
            y = y + (bias - mean.value * multiplier).astype(self.dtype)
        return y if self.activation is None else ACTIVATIONS[self.activation](y)


class _Block(nn.Module):
    """A residual block, bottleneck or basic: [N,H,W,C] → [N,⌈H/s⌉,⌈W/s⌉,O].

    As in transformers the config's activation is the one after the sum (and the stem's); inside the block it is ReLU.
    """

    config: ResNetConfig
    features: int
    stride: int
    dtype: jnp.dtype
    batch_norm: str

    # ``train`` and ``mask`` by position: nn.remat has no static keywords.
    @nn.compact
    def __call__(self, x: Array, train: bool, mask: Array | None) -> Array:
        config = self.config

        def conv(name: str, x: Array, features: int, size: int, stride: int, activation: str | None) -> Array:
            module = _ConvNorm(features, size, stride, activation, self.dtype, self.batch_norm, name=name)
            return module(x, train=train, mask=mask)

        if config.layer_type == "bottleneck":
            inner = self.features // _REDUCTION
            first, second = (self.stride, 1) if config.downsample_in_bottleneck else (1, self.stride)
            y = conv("conv_1", x, inner, 1, first, "relu")
            y = conv("conv_2", y, inner, 3, second, "relu")
            y = conv("conv_3", y, self.features, 1, 1, None)
        else:
            y = conv("conv_1", x, self.features, 3, self.stride, "relu")
            y = conv("conv_2", y, self.features, 3, 1, None)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = conv("shortcut", x, self.features, 1, self.stride, None)
        return ACTIVATIONS[config.hidden_act](y + x)


class ResNetEncoder(nn.Module):
    """ResNet without pooling and head; parameters are float32 whatever ``dtype`` the convolutions compute in.

    Attributes:
      config: the sizes.
      dtype: the computation type and that of the result, float32 or bfloat16.
      batch_norm: "frozen" normalises with the running statistics always (scale and bias are still parameters); "train"
        normalises with the batch's statistics where ``train`` is True and then updates the running ones, as PyTorch
        does (momentum 0.1, unbiased variance): call ``apply`` with ``mutable=["batch_stats"]``. On several devices the
        statistics are those of the global batch.
      remat: compute each block again in the backward pass instead of keeping its insides (gradient checkpointing).
    """

    config: ResNetConfig
    dtype: jnp.dtype = jnp.float32
    batch_norm: str = "frozen"
    remat: bool = False

    @nn.compact
    def __call__(self, pixels: Array, *, train: bool, mask: Array | None = None) -> PictureStates:
        """Encodes pictures.

        Args:
          pixels: [N,H,W,channels], floating, normalised as the weights want it (ImageNet's mean and deviation).
          train: matters for ``batch_norm="train"`` only.
          mask: [N], True where a picture is there, or None for all. Pictures that are not there have no influence on
            the batch's statistics; with frozen statistics no picture has any on another.

        Returns:
          The states: "stages", the maps [N,h,w,C] after each stage, of which the last has h = ⌈H/32⌉ (four stages);
          "tokens" [N,hw,C], the places of the last map by rows; "pooled" [N,C], their mean.

        Raises:
          ValueError: where the shape is not that of pictures, the channels are not the config's, or ``batch_norm`` is
            neither "frozen" nor "train".
        """
        config = self.config
        if self.batch_norm not in ("frozen", "train"):
            raise ValueError(f"batch_norm must be 'frozen' or 'train', got {self.batch_norm!r}")
        check_pixels(pixels, config.num_channels, mask)
        settings = {"dtype": self.dtype, "batch_norm": self.batch_norm}
        stem = _ConvNorm(config.embedding_size, 7, 2, config.hidden_act, name="stem", **settings)
        x = max_pool(stem(pixels.astype(self.dtype), train=train, mask=mask))
        stages = []
        block = nn.remat(_Block, static_argnums=(2,)) if self.remat else _Block
        for stage, (features, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                name = f"stage_{stage}_block_{index}"
                x = block(config, features, stride, name=name, **settings)(x, train, mask)
            stages.append(x)
        return PictureStates(x.reshape(x.shape[0], -1, x.shape[-1]), x.mean((1, 2)), tuple(stages))


def _batch_statistics(y: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """Mean and biased variance per channel over the pictures in ``mask``, and the number of values that entered."""
    weights = jnp.ones(y.shape[:1]) if mask is None else mask.astype(jnp.float32)
    weights = weights[:, None, None, None]
    count = weights.sum() * (y.shape[1] * y.shape[2])
    divisor = jnp.maximum(count, 1)
    mean = jnp.sum(y * weights, axis=(0, 1, 2)) / divisor
    var = jnp.sum(jnp.square(y - mean) * weights, axis=(0, 1, 2)) / divisor
    return mean, var, count

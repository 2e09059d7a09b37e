"""ResNet under the names of Hugging Face, torchvision and timm."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from tmrjax.convert.tables import CONVOLUTION, Entry, fill, shapes_of, without_prefix
from tmrjax.encoders.picture.resnet import ResNetConfig, ResNetEncoder

# Names that hold nothing for the encoder: full matches.
RESNET_DROPPED = (r"fc\..*", r"classifier\..*", r".*\.num_batches_tracked")


def resnet_table(config: ResNetConfig, *, names: str) -> list[Entry]:
    """A ResNet's names beside ``ResNetEncoder``'s; ``names``: "huggingface" or "torchvision" (timm)."""
    convolutions = 3 if config.layer_type == "bottleneck" else 2
    hugging_face = names == "huggingface"

    def conv_norm(convolution: str, norm: str, ours: str) -> list[Entry]:
        return [
            Entry(f"{convolution}.weight", f"params/{ours}/kernel", CONVOLUTION),
            Entry(f"{norm}.weight", f"params/{ours}/scale"),
            Entry(f"{norm}.bias", f"params/{ours}/bias"),
            Entry(f"{norm}.running_mean", f"batch_stats/{ours}/mean"),
            Entry(f"{norm}.running_var", f"batch_stats/{ours}/var"),
        ]

    def pair(theirs: str, ours: str) -> list[Entry]:
        return conv_norm(f"{theirs}.convolution", f"{theirs}.normalization", ours)

    table = pair("embedder.embedder", "stem") if hugging_face else conv_norm("conv1", "bn1", "stem")
    channels = config.embedding_size
    for stage, (features, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        for block in range(depth):
            ours = f"stage_{stage}_block_{block}"
            theirs = f"encoder.stages.{stage}.layers.{block}" if hugging_face else f"layer{stage + 1}.{block}"
            for index in range(convolutions):
                name = f"{ours}/conv_{index + 1}"
                if hugging_face:
                    table += pair(f"{theirs}.layer.{index}", name)
                else:
                    table += conv_norm(f"{theirs}.conv{index + 1}", f"{theirs}.bn{index + 1}", name)
            if block == 0 and (stage > 0 or channels != features):
                if hugging_face:
                    table += pair(f"{theirs}.shortcut", f"{ours}/shortcut")
                else:
                    table += conv_norm(f"{theirs}.downsample.0", f"{theirs}.downsample.1", f"{ours}/shortcut")
        channels = features
    return table


def resnet_shapes(config: ResNetConfig) -> dict[str, tuple[int, ...]]:
    """Path → shape of the variables of ``ResNetEncoder``."""
    pixels = jnp.zeros((1, config.stride, config.stride, config.num_channels))
    return shapes_of(ResNetEncoder(config), pixels, train=False)


def resnet_params(state_dict: Mapping[str, np.ndarray], config: ResNetConfig) -> dict[str, Any]:
    """The variables of ``ResNetEncoder(config)``: ``{"params": ..., "batch_stats": ...}``.

    Hugging Face's names (with or without the prefix ``resnet.``) and torchvision's and timm's are told apart by what
    stands there. The classifier (``fc.*``, ``classifier.*``) and ``num_batches_tracked`` are left out knowingly.

    Raises ValueError that lists every missing, extra and misshaped name.
    """
    state_dict = without_prefix(state_dict, "resnet.")
    tables = [resnet_table(config, names=names) for names in ("huggingface", "torchvision")]
    table = max(tables, key=lambda table: sum(entry.theirs in state_dict for entry in table))
    return fill(state_dict, table, resnet_shapes(config), dropped=RESNET_DROPPED, what="ResNet state dict")

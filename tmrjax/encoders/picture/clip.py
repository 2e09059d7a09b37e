"""CLIP's vision tower (Radford et al. 2021), the picture encoder of MKGformer: ViT-B/32, B/16 and L/14.

The arithmetic is that of Hugging Face's ``CLIPVisionModel``: patches without a bias, a norm before the first block,
pre-norm blocks with the quick GELU x · sigmoid(1.702 x), a norm on the class token at the end.
``tmrjax.convert.picture_variables`` fills it from the folder of a vision tower or of a whole CLIP.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from jax import Array

from tmrjax.encoders.layers import LayerNorm
from tmrjax.encoders.picture.transformer import PictureTransformer, PictureTransformerConfig


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig(PictureTransformerConfig):
    """Sizes of a vision tower; the defaults are those of ViT-B/32."""

    kind: ClassVar[str] = "CLIP vision"
    only_value: ClassVar[Mapping[str, Any]] = {"model_type": "clip_vision_model"}

    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """Reads the config.json of a vision tower, or of a whole CLIP, which holds it as ``vision_config``.

        Raises ValueError naming a setting that this encoder does not build, with the value found.
        """
        if mapping.get("model_type") == "clip":
            if not isinstance(mapping.get("vision_config"), Mapping):
                raise ValueError("CLIP config: no vision_config in it, where the sizes of the vision tower stand")
            mapping = mapping["vision_config"]
        mapping = {**mapping, "attention_probs_dropout_prob": mapping.get("attention_dropout")}
        # The towers of the first files call themselves as the whole does.
        return super().from_dict({**mapping, "model_type": "clip_vision_model"})

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, with ``model_type``, which ``from_dict`` and transformers read back."""
        fields = super().to_dict()
        del fields["hidden_dropout_prob"]
        return {**fields, "attention_dropout": fields.pop("attention_probs_dropout_prob")}


class CLIPVisionEncoder(PictureTransformer):
    """The vision tower without its projection: tokens are the last layer's, the pooled state is the normed class token.

    A further parameter is "pre_norm".
    """

    config: CLIPVisionConfig
    patch_bias: ClassVar[bool] = False

    def setup(self) -> None:
        """Also the norm before the first layer."""
        super().setup()
        self.pre_norm = LayerNorm(self.config.layer_norm_eps, self.dtype)

    def begin(self, hidden: Array, *, train: bool) -> Array:
        """The norm before the first layer."""
        return self.pre_norm(hidden)

    def read_out(self, hidden: Array) -> tuple[Array, Array]:
        """Only the class token is normed."""
        return hidden[:, 1:], self.norm(hidden[:, 0])

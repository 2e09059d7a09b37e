"""DistilBERT (Sanh et al. 2019): half of BERT's layers, no token types, settings under names of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from tmrjax.encoders.config import TransformerConfig
from tmrjax.encoders.text.transformer import TextTransformer

# Ours, as in BERT's config.json → its own.
_NAMES = {
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
}


@dataclasses.dataclass(frozen=True)
class DistilBertConfig(TransformerConfig):
    """Sizes of a DistilBERT. Positions are a table of weights, whatever ``sinusoidal_pos_embds`` says it began as."""

    kind: ClassVar[str] = "DistilBERT"
    only_value: ClassVar[Mapping[str, Any]] = {"model_type": "distilbert"}
    sizes_with_default: ClassVar[tuple[str, ...]] = ()
    sizes_or_zero: ClassVar[tuple[str, ...]] = ("type_vocab_size",)

    type_vocab_size: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.type_vocab_size:
            raise ValueError(f"DistilBERT config: type_vocab_size {self.type_vocab_size}, but it has no token types")

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """Reads a config.json with DistilBERT's names (dim, n_layers, ...)."""
        missing = [_NAMES.get(name, name) for name in cls.sizes if _NAMES.get(name, name) not in mapping]
        if missing:
            raise ValueError(
                f"DistilBERT config: missing {', '.join(missing)}; is this the config.json of a DistilBERT?"
            )
        ours = {theirs: ours for ours, theirs in _NAMES.items()}
        return super().from_dict({ours.get(name, name): value for name, value in mapping.items()})

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON with DistilBERT's names, which ``from_dict`` and transformers read back."""
        fields = super().to_dict()
        # Not settings of a DistilBERT: always the same.
        del fields["type_vocab_size"], fields["layer_norm_eps"]
        return {_NAMES.get(name, name): value for name, value in fields.items()}


class DistilBertEncoder(TextTransformer):
    """DistilBERT; :class:`tmrjax.encoders.text.transformer.TextTransformer` says how it is called."""

    config: DistilBertConfig

"""Sizes of a transformer, read from and written as a Hugging Face config.json; the checks of all encoders' configs."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from tmrjax.encoders.activations import check_activation


def check_sizes(kind: str, sizes: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the field of a ``kind`` of config, for what is no positive integer (or several)."""
    for name, value in sizes.items():
        values = value if isinstance(value, tuple) else (value,)
        if not values or any(isinstance(v, bool) or not isinstance(v, int) or v < 1 for v in values):
            wanted = "positive integers" if isinstance(value, tuple) else "a positive integer"
            raise ValueError(f"{kind} config: {name} must be {wanted}, got {value!r}")


def check_rates(kind: str, rates: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the field, for what is no probability below 1."""
    for name, value in rates.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise ValueError(f"{kind} config: {name} must be a number in [0, 1), got {value!r}")


def config_fields(cls: type, mapping: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a config class that stand in a config.json; a null is the default, other keys are harmless.

    Raises ValueError for a setting of ``cls.only_value`` with another value.
    """
    for name, allowed in cls.only_value.items():
        found = mapping.get(name, allowed)
        if found != allowed:
            raise ValueError(f"{cls.kind} config: {name} {found!r} is not supported, only {allowed!r} is")
    fields = {field.name for field in dataclasses.fields(cls)}
    # A null stands for the default in files that older versions of transformers wrote.
    return {name: value for name, value in mapping.items() if name in fields and value is not None}


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The fields of every transformer here, named as in Hugging Face's config.json.

    Raises ValueError, naming the field, where a size is not positive, a probability is outside [0, 1), the hidden size
    is not divisible by the number of heads, or the activation is unknown.
    """

    kind: ClassVar[str]
    # Settings of config.json that change the arithmetic in ways not built here: each with the value that does not.
    only_value: ClassVar[Mapping[str, Any]]
    sizes: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    )
    sizes_with_default: ClassVar[tuple[str, ...]] = ("type_vocab_size",)
    sizes_or_zero: ClassVar[tuple[str, ...]] = ()

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        for name in (*self.sizes, *self.sizes_with_default, *self.sizes_or_zero):
            value, may_be_zero = getattr(self, name), name in self.sizes_or_zero
            if isinstance(value, bool) or not isinstance(value, int) or value < (0 if may_be_zero else 1):
                kind = "an integer of at least 0" if may_be_zero else "a positive integer"
                raise ValueError(f"{self.kind} config: {name} must be {kind}, got {value!r}")
        rates = ("hidden_dropout_prob", "attention_probs_dropout_prob")
        check_rates(self.kind, {name: getattr(self, name) for name in rates})
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"{self.kind} config: hidden_size {self.hidden_size} is not divisible by num_attention_heads "
                f"{self.num_attention_heads}"
            )
        check_activation(self.hidden_act)

    @property
    def max_length(self) -> int:
        """The most word pieces that the encoder reads, special ones included."""
        return self.max_position_embeddings

    @property
    def embedding_width(self) -> int:
        """E, the width of the word table: D unless the encoder projects its embeddings."""
        return self.hidden_size

    @classmethod
    def from_dict(cls, mapping: Mapping[str, Any]) -> Self:
        """Reads the contents of a Hugging Face config.json; keys that do not touch the arithmetic are ignored.

        Raises ValueError naming every missing size, or a setting that this encoder does not build (another
        ``model_type``, relative positions, a decoder, pruned heads) with the value found.
        """
        missing = [name for name in cls.sizes if name not in mapping]
        if missing:
            raise ValueError(
                f"{cls.kind} config: missing {', '.join(missing)}; is this the config.json of a {cls.kind}?"
            )
        fields = config_fields(cls, mapping)
        if mapping.get("pruned_heads"):
            raise ValueError(f"{cls.kind} config: pruned_heads {mapping['pruned_heads']!r} is not supported")
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """A dict for JSON, with ``model_type``, which ``from_dict`` and transformers read back."""
        return {"model_type": self.only_value.get("model_type"), **dataclasses.asdict(self)}

"""RoBERTa (Liu et al. 2019), and what has its architecture: BERTweet, XLM-R, CamemBERT.

The blocks are BERT's. Positions of valid pieces count from ``pad_token_id`` + 1, in the rows of a table that is longer
by as much; every other piece has the position ``pad_token_id``. transformers finds the padding by its id, here the
attention mask says where it is, so that what stands at padding does not matter.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from jax import Array

from tmrjax.encoders.config import TransformerConfig
from tmrjax.encoders.text.transformer import TextTransformer

MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")


@dataclasses.dataclass(frozen=True)
class RobertaConfig(TransformerConfig):
    """Sizes of a RoBERTa; ``model_type``, one of MODEL_TYPES, is kept for the config.json alone."""

    kind: ClassVar[str] = "RoBERTa"
    only_value: ClassVar[Mapping[str, Any]] = {
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }

    pad_token_id: int = 1
    model_type: str = "roberta"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.model_type not in MODEL_TYPES:
            raise ValueError(f"RoBERTa config: model_type {self.model_type!r} is none of {', '.join(MODEL_TYPES)}")
        if self.max_length < 1:
            raise ValueError(
                f"RoBERTa config: max_position_embeddings {self.max_position_embeddings} leaves no position after "
                f"pad_token_id {self.pad_token_id}"
            )

    @property
    def max_length(self) -> int:
        """The most word pieces that the encoder reads: the table's first ``pad_token_id`` + 1 rows are for none."""
        return self.max_position_embeddings - self.pad_token_id - 1


class RobertaEncoder(TextTransformer):
    """RoBERTa without its pooler; :class:`tmrjax.encoders.text.transformer.TextTransformer` says how it is called."""

    config: RobertaConfig

    def embed_valid(
        self,
        input_ids: Array | None,
        valid: Array,
        *,
        train: bool,
        token_type_ids: Array | None,
        word_embeddings: Array | None,
    ) -> Array:
        """The embeddings, with positions that count the valid pieces."""
        positions = jnp.where(valid, jnp.cumsum(valid, axis=1), 0) + self.config.pad_token_id
        return self.embeddings(
            input_ids, token_type_ids, train=train, word_embeddings=word_embeddings, positions=positions
        )

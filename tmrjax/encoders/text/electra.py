"""ELECTRA (Clark et al. 2020), its discriminator: BERT with embeddings of a width of their own, projected."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from jax import Array

from tmrjax.encoders.config import TransformerConfig
from tmrjax.encoders.layers import dense
from tmrjax.encoders.text.transformer import TextTransformer


@dataclasses.dataclass(frozen=True)
class ElectraConfig(TransformerConfig):
    """Sizes of an ELECTRA. embedding_size: E, which the small one has smaller than ``hidden_size``."""

    kind: ClassVar[str] = "ELECTRA"
    only_value: ClassVar[Mapping[str, Any]] = {
        "model_type": "electra",
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
    }
    sizes: ClassVar[tuple[str, ...]] = (*TransformerConfig.sizes, "embedding_size")

    embedding_size: int = 128

    @property
    def embedding_width(self) -> int:
        """E."""
        return self.embedding_size


class ElectraEncoder(TextTransformer):
    """ELECTRA; :class:`tmrjax.encoders.text.transformer.TextTransformer` says how it is called."""

    config: ElectraConfig

    def setup(self) -> None:
        """As a BERT, with "embedding_projection" where E is not D."""
        super().setup()
        if self.config.embedding_size != self.config.hidden_size:
            self.embedding_projection = dense(self.config.hidden_size, self.dtype, None)

    def embed_valid(self, input_ids: Array | None, valid: Array, **keywords: Any) -> Array:
        """The embeddings, projected."""
        return self._project(super().embed_valid(input_ids, valid, **keywords))

    def embed_rows(self, rows: Array, **keywords: Any) -> Array:
        """The rows' embeddings, projected."""
        return self._project(super().embed_rows(rows, **keywords))

    def _project(self, hidden: Array) -> Array:
        return hidden if self.config.embedding_size == self.config.hidden_size else self.embedding_projection(hidden)

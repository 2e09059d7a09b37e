"""How methods end that put pictures inside of the text encoder (HVPNeT, MKGformer, VisualBERT): one linear layer."""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.methods.base import Batch, Method, at_markers, at_words


class TextWithPictures(Method, kw_only=True):
    """A method whose pictures act inside of the text encoder.

    Attributes:
        use_pictures: False is the text encoder alone.
        literal: the released arithmetic.
    """

    use_pictures: bool = True
    literal: bool = False

    def read(self, batch: Batch, *, train: bool) -> jax.Array:
        """The text encoder's last states T [B, T, D]."""
        raise NotImplementedError


class EntityReadOut(TextWithPictures, kw_only=True):
    """dropout(T) W + b at each word's first piece and a CRF over words; ``literal``: at all word pieces."""

    task: ClassVar[str] = "ner"

    @property
    def piece_tags(self) -> bool:
        """The released code tags word pieces."""
        return self.literal

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, W, K] ([B, T, K] with ``literal``); states: "text_states" [B, T, D]."""
        text = self.read(batch, train=train)
        words = text if self.literal else at_words(text, batch)
        words = Dropout(self.dropout)(words, deterministic=not train)
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(words)
        return Outputs(emissions, CRFLayer(self.num_labels, name="crf")(), states={"text_states": text})


class RelationReadOut(TextWithPictures, kw_only=True):
    """dropout([T_head; T_tail]) W + b at the entities' start markers; ``literal``: without dropout."""

    task: ClassVar[str] = "re"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits [B, R]; states: "text_states" [B, T, D], "representation" [B, 2 D] before dropout."""
        text = self.read(batch, train=train)
        representation = at_markers(text, batch)
        dropped = Dropout(0.0 if self.literal else self.dropout)(representation, deterministic=not train)
        logits = nn.Dense(self.num_labels, dtype=jnp.float32, name="classifier")(dropped)
        return Outputs(logits, states={"text_states": text, "representation": representation})

"""BERT-CRF: a text encoder and a linear-chain CRF over words; the text-only row of the field's tables for entities.

    T^w = encoder(sentence) [T, D],  emissions = dropout(T^w at each word's first piece) W + b [W, K],  a CRF over words

The arithmetic is TMR's (§3.5, Eq. 8 and 9) without pictures. The released BERT-CRF baselines tag word pieces, some with
extra tags for further pieces and specials; here the CRF runs over words, as in every method of this project.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.pieces import Pieces
from tmrjax.methods.base import Batch, Method, at_words


class BertCRF(Method, kw_only=True):
    """See the module. ``text`` may be any text encoder."""

    task: ClassVar[str] = "ner"

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The sentence."""
        return (Pieces(),)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, W, K]; states: "text_states" [B, T, D]."""
        (text,) = self.read_texts((batch["input_ids"], batch["attention_mask"]), train=train)
        words = Dropout(self.dropout)(at_words(text, batch), deterministic=not train)
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(words)
        return Outputs(emissions, CRFLayer(self.num_labels, name="crf")(), states={"text_states": text})


METHODS = (BertCRF,)

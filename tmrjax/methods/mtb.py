"""MTB: entity markers, after "Matching the Blanks" (Baldini Soares et al., ACL 2019); text-only relations.

    g = [T_head; T_tail] (2d),  logits = dropout(g) W + b

T_head and T_tail are the states at the markers before the entities (their "entity markers, entity start"). The weights
are the text encoder's own: MTB's pre-training on blanked entities is not part of the field's tables. The arithmetic is
Eq. 10 of TMR (§3.5) without phrases and pictures.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp

from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.marked import Marked
from tmrjax.methods.base import Batch, Method, at_markers


class MTB(Method, kw_only=True):
    """See the module."""

    task: ClassVar[str] = "re"

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The sentence with markers around both entities."""
        return (Marked(),)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits [B, R]; states: "text_states" [B, T, D], "representation" [B, 2 D] (g before dropout)."""
        (text,) = self.read_texts((batch["input_ids"], batch["attention_mask"]), train=train)
        representation = at_markers(text, batch)
        dropped = Dropout(self.dropout)(representation, deterministic=not train)
        logits = nn.Dense(self.num_labels, dtype=jnp.float32, name="classifier")(dropped)
        return Outputs(logits, states={"text_states": text, "representation": representation})


METHODS = (MTB,)

"""VisualBERT (Li et al., arXiv 1908.03557, 2019): one BERT reads the words and the picture's regions as one sequence.

One post; T word pieces, D wide, R regions.

    e_i = word_i + type_0 + position_i [T, D]                                                        (1)
    r_k = f_k W_v + b_v + v [R, D], v = visual position 0 + visual type 1, the same for all k        (2)
    S_0 = dropout(LN([e; r])) [T + R, D]                                                             (3)
    S_l = BERT's layer l of S_{l−1}; every piece and region attends to all that are there            (4)
    NER: emissions = dropout(S at each word's first piece) W + b [W, K], a CRF over words            (6)
    RE:  logits = dropout([S_head; S_tail]) W + b at the markers before both entities                (7)

(1) to (4) are the released model's (uclanlp/visualbert, and Hugging Face's class); (5) is its pooler, which nothing
here reads. The paper has neither task and the rows of the field's tables were released without code: (6) and (7) are
ours. The weights of the text encoder are what the config names: those of a BERT, or those of a VisualBERT by
:func:`tmrjax.convert.method_from_release`.

f_k by ``visual``: "crops", the whole picture and its three regions as one vector each; "grid", the patches of the whole
picture; "objects", a detector's features of what it found, which is what VisualBERT was trained on. What is missing is
masked. ``literal`` has emissions at all pieces. Regions have no positions of their own: nothing says where one lies.

Batch: the keys of Pieces or Marked; "crops": ``image…`` and ``region…`` (pooled); "grid": ``image…`` (tokens);
"objects": ``object_features``, ``object_mask``.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import dense
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.objects import Objects
from tmrjax.inputs.pictures import Pictures
from tmrjax.inputs.pieces import Pieces
from tmrjax.methods.base import Batch, Method, at_markers
from tmrjax.methods.parts.read_out import EntityReadOut

VISUALS = ("crops", "grid", "objects")


class VisualBERT(Method, kw_only=True):
    """What both tasks share: (1) to (4).

    Attributes:
        visual: what is read of a picture, one of VISUALS.
        object_limit: how many objects at most, where ``visual`` is "objects".
        use_pictures: False is the text-only form: BERT.
        freeze_text: its parameters never change; the visual projection learns through it.
    """

    visual: str = "crops"
    object_limit: int = 36
    use_pictures: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.visual not in VISUALS:
            raise ValueError(f"visual {self.visual!r} must be one of {', '.join(VISUALS)}")

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Sentence, and what ``visual`` says."""
        text = Pieces() if self.task == "ner" else Marked()
        visual = {
            "crops": Pictures("pooled", "pooled", generated=False),
            "grid": Pictures("tokens", None, generated=False),
            "objects": Objects(self.object_limit, features=True),
        }
        return (text, visual[self.visual]) if self.use_pictures else (text,)

    def features(self, batch: Batch, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """f [B, R, F] and which of them are there [B, R]."""
        if self.visual == "objects":
            mask = batch["object_mask"].astype(bool)
            return jnp.where(mask[..., None], batch["object_features"], 0), mask
        pictures = self.read_pictures(batch, train=train)
        there = batch["image_mask"].astype(bool)[:, None]
        if self.visual == "grid":
            return pictures["image"], jnp.broadcast_to(there, pictures["image"].shape[:2])
        features = jnp.concatenate([pictures["image"][:, None], pictures["region"]], axis=1)
        return features, jnp.concatenate([there, batch["region_mask"].astype(bool)], axis=1)

    def read(self, batch: Batch, *, train: bool) -> jax.Array:
        """(1) to (4): the states of the text [B, T, D]."""
        encoder, mask = self.open_text(), batch["attention_mask"].astype(bool)
        length = mask.shape[1]
        states = encoder.embed(batch["input_ids"], mask, train=train)
        if self.use_pictures:
            features, there = self.features(batch, train=train)
            width = self.text.embedding_width
            rows = dense(width, jnp.float32, "visual_projection")(features)
            rows = rows + self.row("visual_position", width) + self.row("visual_token_type", width)
            states = jnp.concatenate([states, encoder.embed_rows(rows, train=train)], axis=1)
            mask = jnp.concatenate([mask, there], axis=1)
        for number in range(self.text.num_hidden_layers):
            states = encoder.layer(number, states, mask, train=train)
        return states[:, :length]

    def row(self, name: str, width: int) -> jax.Array:
        """The one row [1, E] of a table that is read."""
        return self.param(name, nn.initializers.normal(0.02), (1, width))


class EntityVisualBERT(VisualBERT, EntityReadOut, kw_only=True):
    """Emissions of every tag, with the CRF that reads them (6); ``literal``: at all pieces."""


class RelationVisualBERT(VisualBERT, kw_only=True):
    """Logits of every relation (7)."""

    task: ClassVar[str] = "re"
    dropout: float = 0.5

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits [B, R]; states: "text_states" [B, T, D], "representation" [B, 2 D] (before dropout)."""
        text = self.read(batch, train=train)
        representation = at_markers(text, batch)
        dropped = Dropout(self.dropout)(representation, deterministic=not train)
        logits = nn.Dense(self.num_labels, dtype=jnp.float32, name="classifier")(dropped)
        return Outputs(logits, states={"text_states": text, "representation": representation})


METHODS = (EntityVisualBERT, RelationVisualBERT)

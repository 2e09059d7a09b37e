"""UMGF: Multi-modal Graph Fusion for Named Entity Recognition with Targeted Visual Guidance (Zhang et al., AAAI 2021).

One post; T word pieces, D wide, O = 4 objects: pictures as one vector each. Words and objects are the nodes of a graph
in which every word is linked with every object.

    X = BERT(sentence) [T, D]                                                                            (1)
    F = ResNet's pooled vectors W_r + b_r [O, C]                                                         (2)
    o = drop(relu(drop(relu(F W_1 + b_1)) W_2 + b_2)) [O, m],  x = X W_t + b_t [T, m]                    (3)
    six layers of (x, o) -> (x, o): attention within words and within objects, gates between the two     (4 to 11)
        (:mod:`tmrjax.methods.parts.gated_graph`)
    e = [X; x] W + b [T, K], a CRF                                                                       (12)

Relations (ours; no code was released): logits = dropout([H_head; H_tail]) W + b with H = [X; x] at the markers before
both entities.

What differs: objects of the paper come from noun phrases and the four words person, miscellaneous, location and
organization; those of the release from the four words alone. Here they are the whole picture and the three regions of
the post, and one that is missing is masked. The release tags word pieces, [CLS], [SEP] and further pieces included,
sums its loss over a batch, begins with six equal layers and trains its ResNet in BatchNorm's train mode; here the CRF
runs over words, with emissions at their first pieces. As there, objects have no value and output maps in their
attention, and sums over words are no means. ``literal`` gives the released arithmetic from the pooled vectors on.

Batch: the keys of Pieces or Marked; ``image…`` and ``region…`` (pooled), with ``literal`` ``region…`` of any number of
crops.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.pictures import Pictures
from tmrjax.inputs.pieces import Pieces
from tmrjax.methods.base import Batch, Method, at_markers, at_words
from tmrjax.methods.parts.gated_graph import GatedGraphLayer


class UMGF(Method, kw_only=True):
    """What both tasks share: (1) to (11).

    Attributes:
        use_pictures: False is the text-only form: there are no objects.
        size: m. inner_size: of the layers' FFNs. num_heads: of their attentions. num_layers: how many.
        pooled_layer: whether there is (2) behind the pooled vectors, which has the place of the ResNet's classifier.
        dropout: of (3) and of the layers.
    """

    literal: ClassVar[bool] = False
    use_pictures: bool = True
    size: int = 512
    inner_size: int = 256
    num_heads: int = 8
    num_layers: int = 6
    pooled_layer: bool = True
    dropout: float = 0.4

    def __post_init__(self):
        super().__post_init__()
        if self.size % self.num_heads:
            raise ValueError(f"{self.num_heads} heads do not divide the size {self.size} of UMGF's graph")

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Sentence, and pictures as one vector each."""
        text = Pieces() if self.task == "ner" else Marked()
        whole = None if self.literal else "pooled"
        return (text, Pictures(whole, "pooled", generated=False)) if self.use_pictures else (text,)

    def objects(self, batch: Batch, *, train: bool) -> tuple[jax.Array | None, jax.Array | None]:
        """(2) and the first half of (3): objects [B, O, m] and their mask [B, O]."""
        if not self.use_pictures:
            return None, None
        pictures = self.read_pictures(batch, train=train)
        objects, mask = pictures["region"], batch["region_mask"].astype(bool)
        if self.literal:
            mask = jnp.ones_like(mask)
        else:
            objects = jnp.concatenate([pictures["image"][:, None], objects], axis=1)
            mask = jnp.concatenate([batch["image_mask"].astype(bool)[:, None], mask], axis=1)
        if self.pooled_layer:
            objects = nn.Dense(objects.shape[-1], dtype=self.dtype, name="pooled_layer")(objects)
        for name in ("object_inner", "object_projection"):
            objects = nn.relu(nn.Dense(self.size, dtype=self.dtype, name=name)(objects))
            objects = Dropout(self.dropout)(objects, deterministic=not train)
        return objects, mask

    def fuse(self, batch: Batch, *, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        """(1) to (11): [X; x] [B, T, D + m], and X by the name "text_states"."""
        text_mask = batch["attention_mask"].astype(bool)
        (text,) = self.read_texts((batch["input_ids"], text_mask), train=train)
        words = nn.Dense(self.size, dtype=self.dtype, name="text_projection")(text)
        objects, object_mask = self.objects(batch, train=train)
        for number in range(self.num_layers):
            layer = GatedGraphLayer(
                self.num_heads, self.inner_size, self.dropout, self.dtype, last=number == self.num_layers - 1,
                name=f"layer_{number}",
            )  # fmt: skip
            words, objects = layer(words, text_mask, objects, object_mask, train=train)
        return jnp.concatenate([text, words], axis=-1), {"text_states": text}


class EntityUMGF(UMGF, kw_only=True):
    """Emissions of every tag, with the CRF that reads them (12).

    Attributes:
        literal: the released arithmetic: objects are the regions alone, all of them count, tags stand on all pieces.
    """

    task: ClassVar[str] = "ner"
    literal: bool = False

    @property
    def piece_tags(self) -> bool:
        """The released code tags pieces."""
        return self.literal

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, W, K] ([B, T, K] with ``literal``); states: "text_states" X [B, T, D]."""
        fused, states = self.fuse(batch, train=train)
        fused = fused if self.literal else at_words(fused, batch)
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(fused)
        return Outputs(emissions, CRFLayer(self.num_labels, name="crf")(), states=states)


class RelationUMGF(UMGF, kw_only=True):
    """Logits of every relation from [X; x] at both markers; ours."""

    task: ClassVar[str] = "re"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits [B, R]; states: "text_states" [B, T, D], "representation" [B, 2 (D + m)] (before dropout)."""
        fused, states = self.fuse(batch, train=train)
        representation = at_markers(fused, batch)
        dropped = Dropout(self.dropout)(representation, deterministic=not train)
        logits = nn.Dense(self.num_labels, dtype=jnp.float32, name="classifier")(dropped)
        return Outputs(logits, states=states | {"representation": representation})


METHODS = (EntityUMGF, RelationUMGF)

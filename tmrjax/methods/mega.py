"""MEGA: Multimodal Relation Extraction with Efficient Graph Alignment (Zheng et al., ACM MM 2021).

H [T, d] = the text encoder's states, P [O, F] = features of O detected objects, M [T, O] = how much a word and an
object take the same place in the dependency tree and the scene graph; D = 2d:

    R = H W_r + b [T, D],  V = P W_p + b [O, D]                                                                     (1)
    A = softmax((V W_q + b)(R W_k + b)ᵀ / √D) [O, T], over the word pieces                                          (2)
    S = sigmoid(A (R W_u + b)) [O, D], the semantic alignment                                                       (3)
    G = Mᵀ R [O, D], the structural alignment                                                                       (4)
    o = Σ_objects ([S; G] W_1 + b_1) [D]                                                                            (5)
    RE:  logits = dropout([x; o] W_2 + b_2) W + b with x = [H_head; H_tail] at the entities' start markers          (6)
    NER: emissions of a word = dropout([R_t; o] W_2 + b_2) W + b, t its first piece; a linear-chain CRF over words  (7)

The released code (thecharm/Mega) has relations alone; (7) is ours: the paper's tables have figures of MEGA for entities
that nobody released code for. What differs from the code, which ``literal=True`` restores:

* (2): padding is no key. Theirs attends to it.
* (4): theirs takes the memory of M [T, O] for a matrix [O, T] without transposing it, so that an object reads the
  weights of some words for all objects. Then a result depends on the length that a batch is padded to (128 there).
* (5): objects that are not there are left out. Theirs sums zero features too, which count through the biases.

Reads ``input_ids``, ``attention_mask``, ``head_start``, ``tail_start`` or ``word_starts``; ``object_features``,
``object_mask`` (:class:`tmrjax.inputs.objects.Objects`), ``alignment`` (:class:`tmrjax.inputs.alignment.Alignment`).
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.attention import attend
from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.alignment import Alignment
from tmrjax.inputs.base import Input
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.objects import Objects
from tmrjax.inputs.pieces import Pieces
from tmrjax.methods.base import Batch, Method, at_markers, at_words


class MEGA(Method, kw_only=True):
    """What both tasks share. ``text`` may be any text encoder.

    Attributes:
        use_pictures: False leaves the objects out: o is 0.
        literal: the released arithmetic; see the module.
        object_limit: O, the most objects of a post.
        dropout: of (6) and (7).
    """

    use_pictures: bool = True
    literal: bool = False
    object_limit: int = 10
    dropout: float = 0.5

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Sentence, features of objects, their alignment with the words."""
        text = Pieces() if self.task == "ner" else Marked()
        if not self.use_pictures:
            return (text,)
        return text, Objects(limit=self.object_limit, features=True), Alignment(limit=self.object_limit)

    def dense(self, name: str) -> nn.Dense:
        """A linear layer to D."""
        return nn.Dense(2 * self.text.hidden_size, dtype=self.dtype, name=name)

    def align(self, words: jax.Array, batch: Batch) -> jax.Array:
        """(1) to (5): R [B, T, D] -> o [B, D]."""
        features, present = batch["object_features"], batch["object_mask"].astype(bool)
        valid, weights = batch["attention_mask"].astype(bool), batch["alignment"].astype(words.dtype)
        if self.literal:
            weights = weights.reshape(words.shape[0], -1, words.shape[1])
        else:
            # Selected, not multiplied: what stands at a place that does not count may be NaN.
            features = jnp.where(present[..., None], features, 0)
            both = valid[:, :, None] & present[:, None]
            weights = jnp.where(both, weights, 0).swapaxes(1, 2)
        objects = self.dense("object_projection")(features.astype(self.dtype))
        queries, keys, values = self.dense("query")(objects), self.dense("key")(words), self.dense("value")(words)
        semantic = nn.sigmoid(attend(queries, keys, values, None if self.literal else valid))
        joined = self.dense("alignment")(jnp.concatenate([semantic, weights @ words], axis=-1))
        return joined.sum(1) if self.literal else jnp.where(present[..., None], joined, 0).sum(1)


class EntityMEGA(MEGA, kw_only=True):
    """Emissions of words."""

    task: ClassVar[str] = "ner"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, W, K]; states: "text_states" [B, T, d], "objects" (o) [B, D]."""
        (text,) = self.read_texts((batch["input_ids"], batch["attention_mask"]), train=train)
        states = self.dense("text_projection")(text)
        objects = self.align(states, batch) if self.use_pictures else jnp.zeros_like(states[:, 0])
        words = at_words(states, batch)
        around = jnp.broadcast_to(objects[:, None], words.shape)
        representation = self.dense("combination")(jnp.concatenate([words, around], axis=-1))
        dropped = Dropout(self.dropout)(representation, deterministic=not train)
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(dropped)
        crf = CRFLayer(self.num_labels, name="crf")()
        return Outputs(emissions, crf, states={"text_states": text, "objects": objects})


class RelationMEGA(MEGA, kw_only=True):
    """Logits of every relation."""

    task: ClassVar[str] = "re"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits [B, R]; states: "text_states" [B, T, d], "objects" (o) [B, D], "representation" before dropout."""
        (text,) = self.read_texts((batch["input_ids"], batch["attention_mask"]), train=train)
        markers = at_markers(text, batch)
        if self.use_pictures:
            objects = self.align(self.dense("text_projection")(text), batch)
        else:
            objects = jnp.zeros_like(markers)
        representation = self.dense("combination")(jnp.concatenate([markers, objects], axis=-1))
        dropped = Dropout(self.dropout)(representation, deterministic=not train)
        logits = nn.Dense(self.num_labels, dtype=jnp.float32, name="classifier")(dropped)
        return Outputs(logits, states={"text_states": text, "objects": objects, "representation": representation})


METHODS = (EntityMEGA, RelationMEGA)

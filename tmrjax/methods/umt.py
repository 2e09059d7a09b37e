"""UMT: Improving Multimodal Named Entity Recognition via Entity Span Detection (Yu et al., ACL 2020).

One post; T word pieces, D wide, 49 patches of the picture. Layer(x; y) is BERT's layer with queries from x, keys and
values from y (:mod:`tmrjax.methods.parts.cross`); each has weights of its own.

    X = dropout(BERT(sentence)) [T, D]                                                                  (1)
    Z = Layer(X; X),  a = Z W_a + b_a [T, 3]: scores of the span tags O, B, I                           (2)
    R = Layer(X; X)                                                                                     (3)
    V = F W_1 + b_1,  V' = F W_2 + b_2 [49, D]: F, the ResNet's 7 × 7 map of the whole picture          (4)
    Q = Layer(R; V) [T, D]: the picture as the words see it                                             (5)
    P = Layer(V'; R) [49, D],  A = Layer(R; P) [T, D]: the words as the picture sees them               (6, 7)
    g = σ([A; Q] W_g + b_g),  H = [A; g ⊙ Q] [T, 2 D]                                                   (8)
    e = ½ (H W_s + b_s) + ½ a M: emissions, M spreads a span tag's score over its tags evenly           (9, 10)
    loss = −log p_CRF(tags | e) − ½ log p_CRF'(span tags | a)                                           (11)

Relations (ours; the paper has none): logits = dropout([H_head; H_tail]) W + b at the markers before both entities,
without (2), (10) and (11).

What differs: the released code tags word pieces, with 13 tags and 7 span tags ([CLS], [SEP], X and padding are tags);
here the CRFs run over words, with emissions at their first pieces. A missing picture is masked: attention adds nothing
in (5) and (7), and Q is 0; there it is another picture's crop. The released ResNet has its BatchNorm in train mode.
``literal`` gives the released arithmetic from the map on.

Batch: the keys of Pieces or Marked, ``image…`` (tokens), and ``tags`` for (11).
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tmrjax import crf
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import dense
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.pictures import Pictures
from tmrjax.inputs.pieces import Pieces
from tmrjax.methods.base import Batch, Method, at_markers, at_words
from tmrjax.methods.parts.cross import CrossLayer

# The share of each loss and score in (10) and (11).
HALF = 0.5
# Span tag of each of the 13 released tags (PAD, O, B and I of four types, X, [CLS], [SEP]).
RELEASED_SPANS = (0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 4, 5, 6)


class UMT(Method, kw_only=True):
    """What both tasks share: (1) and (3) to (8).

    Attributes:
        use_pictures: False is the text-only form: H = [A; 0], and attention adds nothing in (7).
        dropout: of (1), and of the relation classifier's input.
    """

    use_pictures: bool = True

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Sentence, and the whole picture as patches."""
        text = Pieces() if self.task == "ner" else Marked()
        return (text, Pictures("tokens", None, generated=False)) if self.use_pictures else (text,)

    def layer(self, name: str) -> CrossLayer:
        """One layer with the text encoder's sizes."""
        return CrossLayer(self.text, self.dtype, name=name)

    def words(self, batch: Batch, *, train: bool) -> jax.Array:
        """(1)."""
        (text,) = self.read_texts((batch["input_ids"], batch["attention_mask"]), train=train)
        return Dropout(self.dropout)(text, deterministic=not train)

    def fuse(self, batch: Batch, words: jax.Array, *, masked: bool, train: bool) -> tuple[jax.Array, dict]:
        """(3) to (8): H [B, T, 2 D] from X, and intermediates by name; ``masked`` leaves missing pictures out."""
        text_mask = batch["attention_mask"].astype(bool)
        own = self.layer("text_layer")(words, words, text_mask, train=train)
        to_words = self.layer("words_from_picture")
        if not self.use_pictures:
            aware = to_words(own, None, None, train=train)
            return jnp.concatenate([aware, jnp.zeros_like(aware)], -1), {"image_aware_words": aware}
        patches = self.read_pictures(batch, train=train)["image"]
        size = self.text.hidden_size
        first = dense(size, self.dtype, "visual_projection")(patches)
        second = dense(size, self.dtype, "visual_projection_v2")(patches)
        there = batch["image_mask"].astype(bool)[:, None] if masked else jnp.ones((words.shape[0], 1), bool)
        patch_mask = jnp.broadcast_to(there, patches.shape[:2])
        visual = self.layer("picture_from_words")(own, first, patch_mask, train=train)
        seen = self.layer("picture_layer")(second, own, text_mask, train=train)
        aware = to_words(own, seen, patch_mask, train=train)
        gate = jax.nn.sigmoid(dense(size, self.dtype, "gate")(jnp.concatenate([aware, visual], -1)))
        gated = jnp.where(there[..., None], gate * visual, 0)
        states = {"word_aware_picture": visual, "image_aware_words": aware, "gate": gate}
        return jnp.concatenate([aware, gated], -1), states


class EntityUMT(UMT, kw_only=True):
    """Emissions of every tag, with the CRF that reads them, and the loss of the span tags.

    Attributes:
        literal: the released arithmetic: CRFs over all pieces with 13 tags and 7 span tags, no mask of pictures.
    """

    task: ClassVar[str] = "ner"
    literal: bool = False

    @property
    def piece_tags(self) -> bool:
        """The released code tags pieces."""
        return self.literal

    @property
    def rates(self) -> tuple[tuple[str, str], ...]:
        """The span tags' CRF learns like the other one."""
        return (("span_crf/.*", "crf"), *super().rates)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, W, K] ([B, T, K] with ``literal``); losses: "span" [B], where ``batch`` has tags.

        states: "text_states" X, "span_scores" a, "word_aware_picture" Q, "image_aware_words" A, "gate" g.
        """
        spans = span_of_tags(self.num_labels, literal=self.literal)
        words, text_mask = self.words(batch, train=train), batch["attention_mask"].astype(bool)
        fused, states = self.fuse(batch, words, masked=not self.literal, train=train)
        span_states = self.layer("span_layer")(words, words, text_mask, train=train)
        if not self.literal:
            fused, span_states = at_words(fused, batch), at_words(span_states, batch)
        span_scores = dense(max(spans) + 1, jnp.float32, "span_emission")(span_states)
        scores = dense(self.num_labels, jnp.float32, "emission")(fused)
        emissions = HALF * scores + HALF * span_scores @ jnp.asarray(conversion(spans))
        span_crf = CRFLayer(max(spans) + 1, name="span_crf")()
        losses = {}
        if "tags" in batch:
            mask = batch["attention_mask" if self.literal else "word_mask"].astype(bool)
            gold = jnp.asarray(spans)[batch["tags"]]
            losses["span"] = -HALF * crf.log_likelihood(span_scores, gold, mask, span_crf)
        states |= {"text_states": words, "span_scores": span_scores}
        return Outputs(emissions, CRFLayer(self.num_labels, name="crf")(), losses, states)


class RelationUMT(UMT, kw_only=True):
    """Logits of every relation from H at both markers; ours."""

    task: ClassVar[str] = "re"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits [B, R]; states as for entities, and "representation" [B, 4 D] (before dropout)."""
        words = self.words(batch, train=train)
        fused, states = self.fuse(batch, words, masked=True, train=train)
        representation = at_markers(fused, batch)
        dropped = Dropout(self.dropout)(representation, deterministic=not train)
        logits = dense(self.num_labels, jnp.float32, "classifier")(dropped)
        return Outputs(logits, states={"text_states": words, **states, "representation": representation})


def span_of_tags(num_tags: int, *, literal: bool) -> tuple[int, ...]:
    """The span tag of each tag: O, B, I for O, B-x, I-x, ...; with ``literal`` those of the 13 released tags.

    Raises ValueError for another number of tags.
    """
    if literal:
        if num_tags != len(RELEASED_SPANS):
            raise ValueError(f"literal UMT has {len(RELEASED_SPANS)} tags, one of them for padding, found {num_tags}")
        return RELEASED_SPANS
    if num_tags < 3 or num_tags % 2 == 0:
        raise ValueError(f"tags are O and B-x, I-x of each entity type, an odd number of them; found {num_tags}")
    return (0, *(1, 2) * (num_tags // 2))


def conversion(spans: tuple[int, ...]) -> np.ndarray:
    """M [S, K] of (10): a tag's entry at its span tag is 1 / (the number of tags with this span tag)."""
    matrix = np.asarray(spans) == np.arange(max(spans) + 1)[:, None]
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


METHODS = (EntityUMT, RelationUMT)

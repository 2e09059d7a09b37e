"""PCNN: Distant Supervision for Relation Extraction via Piecewise Convolutional Neural Networks (Zeng et al., EMNLP
2015), a row of the field's tables for relations without a picture.

For word i of a post with a head and a tail, each at its first word:

    x_i = [word_i; position_i of the head; position_i of the tail]                                                 (1)
    z = conv_3(x) over the words, one zero on each side                                                            (2)
    r_k = tanh(max_{i in segment k} z_i) for the segments up to the first entity, up to the second, and after it   (3)
    g = [r_1; r_2; r_3],   logits = dropout(g) W + b                                                               (4)

The position of word i is i − start, from −L to L − 1 for posts of at most L words. A segment without words gives 0.

``literal=True`` gives what OpenNRE released, which is most likely what the published figure on MNRE was made with:
r_k = max_i relu(z_i − 100 [i outside of segment k]) over all positions, where the word vector of padding takes part in
(2), and dropout twice in a row. The paper's loss over bags of sentences has no place here: MNRE labels sentences.

Reads ``input_ids``, ``attention_mask`` [B, W], ``head_start``, ``tail_start`` [B] (:class:`tmrjax.inputs.words.Words`).
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.words import Words
from tmrjax.methods.base import Batch, Method
from tmrjax.methods.parts.words import WordTable, by_width

# What OpenNRE takes from the features outside of a segment: a mask as long as features stay below it.
_OUTSIDE = 100.0


class PCNN(Method, kw_only=True):
    """See the module.

    Attributes:
        num_words: rows of the word table.
        max_pieces: L, the most words of a post; the position tables have 2 L rows.
        word_size, position_size: of embeddings.
        filters, window: of the convolution.
        freeze_words: keep the word vectors as they are.
        word_dropout: see :class:`tmrjax.methods.parts.words.WordTable`; none in the released arithmetic.
        min_count: rarer words of the training text are unknown.
        literal: OpenNRE's arithmetic.
    """

    task: ClassVar[str] = "re"

    num_words: int = 2
    max_pieces: int = 128
    word_size: int = 50
    position_size: int = 5
    filters: int = 230
    window: int = 3
    dropout: float = 0.5
    freeze_words: bool = False
    word_dropout: float = 0.05
    min_count: int = 1
    literal: bool = False

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Words, with where the head and the tail begin."""
        return (Words(pair=True, min_count=self.min_count),)

    @property
    def frozen(self) -> tuple[str, ...]:
        """The word table where it is to stay."""
        return ("word_embeddings/.*",) * self.freeze_words

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits [B, R]; states: "representation" [B, 3 filters] (g before dropout)."""
        mask, entities = batch["attention_mask"].astype(bool), (batch["head_start"], batch["tail_start"])
        features = self._convolve(self._embed(batch["input_ids"], entities, mask, train))
        segments = _segments(*entities, mask)
        pieces = jnp.stack([self._pool(features, segments == number) for number in (1, 2, 3)], axis=1)
        representation = pieces.reshape(mask.shape[0], -1).astype(jnp.float32)
        dropped = Dropout(self.dropout)(representation, deterministic=not train)
        if self.literal:
            dropped = Dropout(self.dropout)(dropped, deterministic=not train)
        logits = nn.Dense(self.num_labels, dtype=jnp.float32, name="classifier")(dropped)
        return Outputs(logits, states={"representation": representation})

    def _embed(self, ids: jax.Array, entities: tuple[jax.Array, jax.Array], mask: jax.Array, train: bool) -> jax.Array:
        """(1) [B, W, word + 2 positions]; positions behind the post are zero, and words unless ``literal``."""
        word_dropout = 0.0 if self.literal else self.word_dropout
        table = WordTable(self.num_words, self.word_size, self.freeze_words, word_dropout, name="word_embeddings")
        words = table(ids, train=train)
        read = [words if self.literal else jnp.where(mask[..., None], words, 0)]
        places = jnp.arange(ids.shape[1])
        for role, start in zip(("head", "tail"), entities, strict=True):
            rows = jnp.clip(places - start[:, None] + self.max_pieces, 1, 2 * self.max_pieces - 1)
            positions = nn.Embed(
                2 * self.max_pieces, self.position_size, embedding_init=by_width, name=f"{role}_position"
            )
            read.append(jnp.where(mask[..., None], positions(rows), 0))
        return jnp.concatenate(read, axis=-1).astype(self.dtype)

    def _convolve(self, embedded: jax.Array) -> jax.Array:
        """(2) [B, W, filters]."""
        sides = self.window // 2
        return nn.Conv(
            self.filters, (self.window,), padding=[(sides, self.window - 1 - sides)], dtype=self.dtype,
            kernel_init=nn.initializers.glorot_uniform(), name="convolution",
        )(embedded)  # fmt: skip

    def _pool(self, features: jax.Array, inside: jax.Array) -> jax.Array:
        """(3) for the segment ``inside`` [B, W]: [B, filters]."""
        inside = inside[..., None]
        if self.literal:
            return nn.relu(features - _OUTSIDE * ~inside).max(1)
        highest = jnp.where(inside, features, -jnp.inf).max(1)
        return jnp.tanh(jnp.where(inside.any(1), highest, 0))


def _segments(head_start: jax.Array, tail_start: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, W]: 1 up to the first word of the first entity, 2 up to that of the second, 3 after it, 0 for padding."""
    places = jnp.arange(mask.shape[1])
    first, second = jnp.minimum(head_start, tail_start), jnp.maximum(head_start, tail_start)
    return jnp.where(mask, 1 + (places > first[:, None]) + (places > second[:, None]), 0)


METHODS = (PCNN,)

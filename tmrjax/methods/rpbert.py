"""RpBERT: A Text-image Relation Propagation-based BERT Model for Multimodal NER (Sun et al., AAAI 2021).

One post; T word pieces, D wide, P = 49 patches of the picture. BERT reads text and picture as one sequence, twice: what
the first pass says of their relation weighs the picture in the second.

    E_v = C W_v + b_v [P, D]    C: the ResNet's 7 × 7 map of the whole picture                           (1)
    Z(g) = BERT([words; g E_v]), pieces of token type 0, patches of token type 1 behind them             (2 to 4)
    r = Z(1)_[CLS] W_r + b_r [2],  g = softmax(r)_1: how likely the picture adds to the text             (5)
    S = Z(g)[:T]                                                                                         (6)
    w_j: the state of word j's first piece                                                               (7)
    u_j = [w_j; the word's vector]                                                                       (8)
    emissions = BiLSTM(u) W + b [W, K], two layers, a CRF over words                                     (9, 10)
    loss = −log p_CRF(tags) − λ log softmax(r)_y, the latter on posts of a second stream                 (11)

y says whether a picture adds to its text (Vempala and Preoţiuc-Pietro, ACL 2019); λ = 0.05. The gate is soft, so the
tags' loss trains (5) too. Equations are the current released code's (Multimodal-NER/RpBERT, 14318f5), a rewrite of the
paper's with another encoder of pictures and a gate that is differentiable.

What differs: the released code puts the patches behind the padding, so that a post's result depends on the longest post
of its batch; here they follow the post's own last piece. There (7) is the mean over a word's pieces, and a picture that
is missing is read. ``literal`` gives that arithmetic. It takes pieces up to the row's next word for the word's: a post
that is read in windows has pieces of other words there. The word vectors of (8), 4,496 wide (fastText, GloVe, Flair),
carry much of the published score; none are read unless ``word_size`` says so.

Batch: the keys of Pieces, ``image…`` (tokens), ``word_ids`` or ``word_vectors`` [B, W, word_size] with ``word_size``;
for (11) the same of the second stream under ``second_…``, with ``second_picture_adds``.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.layers import dense
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.picture_adds import PictureAdds
from tmrjax.inputs.pictures import Pictures
from tmrjax.inputs.pieces import Pieces
from tmrjax.inputs.words import WordIds
from tmrjax.methods.base import Batch, Method, at_words
from tmrjax.methods.parts.recurrent import LSTM
from tmrjax.methods.parts.words import WordTable

SECOND = "second_"


class RpBERT(Method, kw_only=True):
    """See the module.

    Attributes:
        num_words: rows of the table of word vectors.
        word_size: width of the word vectors of (8), 0 for none. freeze_words: they stay as they are, as there.
        recurrent_size, recurrent_layers: of the BiLSTM, the former of one direction.
        relation_weight: λ; 0 asks for no second stream.
        use_gate: False reads the picture once, with g = 1.
        use_pictures: False is the text-only form: one pass over the text, without (1), (5) and (11).
        literal: the released arithmetic.
        dropout: on u and on the BiLSTM's states; the released code has none.
        freeze_text: its parameters never change; what is below it learns through it.
    """

    task: ClassVar[str] = "ner"

    num_words: int = 2
    word_size: int = 0
    freeze_words: bool = True
    recurrent_size: int = 256
    recurrent_layers: int = 2
    relation_weight: float = 0.05
    use_gate: bool = True
    use_pictures: bool = True
    literal: bool = False
    dropout: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        types = getattr(self.text, "type_vocab_size", 2)
        if types < 2:
            raise ValueError(
                f"RpBERT reads the picture as the second token type, but this text encoder has {types}: take a BERT"
            )

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Sentence, the whole picture as patches, word vectors."""
        pictures = (Pictures("tokens", None, generated=False),) if self.use_pictures else ()
        return (Pieces(), *pictures, *((WordIds(),) if self.word_size else ()))

    @property
    def second(self) -> tuple[Input, ...]:
        """Posts of which it is known whether their pictures add to the text."""
        if not (self.use_pictures and self.relation_weight):
            return ()
        return (Pieces(), Pictures("tokens", None, generated=False), PictureAdds())

    @property
    def frozen(self) -> tuple[str, ...]:
        """Of the table of words too."""
        return (*super().frozen, *(("word_embeddings/.*",) * (self.word_size > 0 and self.freeze_words)))

    @property
    def left_out(self) -> str:
        """What is off."""
        gate = [] if self.use_gate or not self.use_pictures else ["gate"]
        return ", ".join(([] if super().left_out == "none" else [super().left_out]) + gate) or "none"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, W, K]; losses: "picture_adds" [B], where ``batch`` has a second stream.

        states: "text_states" S [B, T, D], "relation" r [B, 2], "gate" g [B].
        """
        encoder = self.open_text()
        states, losses = {}, {}
        if self.use_pictures:
            text, states, losses = self._read_twice(encoder, batch, train)
        else:
            text = self._read(encoder, batch["input_ids"], batch["attention_mask"].astype(bool), None, None, train)
        words = piece_means(text, batch) if self.literal else at_words(text, batch)
        if self.word_size:
            vectors = batch["word_vectors"] if "word_vectors" in batch else self._look_up(batch["word_ids"], train)
            words = jnp.concatenate([words, vectors.astype(self.dtype)], axis=-1)
        words = Dropout(self.dropout)(words, deterministic=not train)
        recurrent = LSTM(
            self.recurrent_size, num_layers=self.recurrent_layers, dtype=self.dtype, name="recurrent"
        )  # fmt: skip
        tagged, _ = recurrent(words, batch["word_mask"].astype(bool), train=train)
        tagged = Dropout(self.dropout)(tagged, deterministic=not train)
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(tagged)
        crf = CRFLayer(self.num_labels, name="crf")()
        return Outputs(emissions, crf, losses, {"text_states": text, **states})

    def _look_up(self, ids: jax.Array, train: bool) -> jax.Array:
        return WordTable(self.num_words, self.word_size, self.freeze_words, name="word_embeddings")(ids, train=train)

    def _read_twice(self, encoder: nn.Module, batch: Batch, train: bool) -> tuple[jax.Array, dict, dict]:
        """(1) to (6) and (11): S, the states of (5) by name, the losses by name."""
        relate = dense(2, jnp.float32, "relation_classifier")
        is_second = f"{SECOND}picture_adds" in batch
        streams = ("", SECOND) if is_second else ("",)

        def join(name):
            """Both streams' rows in turn, [2 B, ...]: a batch sharded over devices stays where it is."""
            both = jnp.stack([batch[prefix + name] for prefix in streams], axis=1)
            return both.reshape(-1, *both.shape[2:])

        # One call of the picture encoder for both streams.
        joined = {name: join(name) for name in batch if name.startswith("image")}
        patches = self.read_pictures(joined, train=train)["image"]
        visual = dense(self.text.embedding_width, self.dtype, "visual_projection")(patches)
        there = jnp.ones(visual.shape[0], bool) if self.literal else joined["image_mask"].astype(bool)

        def read(prefix, visual, there):
            mask = batch[f"{prefix}attention_mask"].astype(bool)
            return self._read(encoder, batch[f"{prefix}input_ids"], mask, visual, there, train)

        count = len(streams)
        own, own_there = visual[::count], there[::count]
        text, losses = read("", own, own_there), {}
        relation = relate(text[:, 0])
        gate = jax.nn.softmax(relation)[:, 1]
        if self.use_gate:
            text = read("", gate[:, None, None].astype(own.dtype) * own, own_there)
        if is_second:
            logits = relate(read(SECOND, visual[1::count], there[1::count])[:, 0])
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch[f"{SECOND}picture_adds"])
            counted = there[1::count] & batch[f"{SECOND}row_mask"]
            losses["picture_adds"] = self.relation_weight * jnp.where(counted, loss, 0)
        return text, {"relation": relation, "gate": gate}, losses

    def _read(self, encoder, ids, mask, visual, there, train) -> jax.Array:
        """(2) to (4): states of the text [B, T, D] beside patches [B, P, E], which ``there`` [B] says of each row."""
        length = ids.shape[1]
        states = encoder.embed(ids, mask, train=train)
        if visual is not None:
            patches = visual.shape[1]
            if length + patches > self.text.max_length:
                raise ValueError(
                    f"{length} word pieces and {patches} patches exceed this encoder's {self.text.max_length} "
                    "positions: lower --config.data.max_pieces"
                )
            first = jnp.full(mask.shape[0], length) if self.literal else mask.sum(1)
            rows = encoder.embed_rows(
                visual,
                train=train,
                token_type_ids=jnp.ones(visual.shape[:2], jnp.int32),
                positions=first[:, None] + jnp.arange(patches),
            )
            states = jnp.concatenate([states, rows], axis=1)
            mask = jnp.concatenate([mask, jnp.broadcast_to(there[:, None], visual.shape[:2])], axis=1)
        for number in range(self.text.num_hidden_layers):
            states = encoder.layer(number, states, mask, train=train)
        return states[:, :length]


def piece_means(states: jax.Array, batch: Batch) -> jax.Array:
    """The mean over each word's pieces, up to the next word or [SEP]: [B, T, D] -> [B, W, D]."""
    positions, mask = jnp.arange(states.shape[1]), batch["attention_mask"].astype(bool)
    started = (batch["word_starts"][..., None] <= positions) & batch["word_mask"].astype(bool)[..., None]
    owner = started.sum(1) - 1
    inside = mask & (positions < mask.sum(1)[:, None] - 1)
    owns = (owner[:, None] == jnp.arange(started.shape[1])[:, None]) & inside[:, None]
    weights = owns / jnp.maximum(owns.sum(-1, keepdims=True), 1)
    return jnp.einsum("bwt,btd->bwd", weights.astype(states.dtype), states)


METHODS = (RpBERT,)

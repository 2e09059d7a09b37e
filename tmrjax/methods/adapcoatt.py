"""AdapCoAtt: Adaptive Co-attention Network for Named Entity Recognition in Tweets (Zhang et al., AAAI 2018).

The field's tables report a form with BERT, of which nothing was released; here it is the default:

    h = BERT(sentence) [T, D]; or BiLSTM([word; characters by convolutions of 2, 3, 4])  (``reader="bilstm"``)      (1)
    v = tanh(C W_m + b) [P, D] of the patches C of the picture                                                     (2)
    s_ti = w · tanh(h_t W_h + b_h + v_i W_v),   α_t = softmax_i s_ti,   v̂_t = Σ_i α_ti v_i                          (3)
    s'_tu = w' · tanh(v̂_t W'_v + b'_v + h_u W'_h),   β_t = softmax_u s'_tu,   ĥ_t = Σ_u β_tu h_u                   (4)
    a = tanh(v̂ W_a + b),  q = tanh(ĥ W_q + b),  g = σ([a; q] w_g + b) one number,  m = g a + (1 − g) q             (5)
    f = σ([h W_f; m W_m + b] w_f + b) one number,   u = f tanh(m W_u + b)                                          (6)
    emissions = [h; u] W + b at each word's first piece, a linear-chain CRF over words                             (7)

(3) and (4) add before tanh; the paper and the released code concatenate: s_ti = w · tanh([h_t W_h + b_h; v_i W_v]) is
F(h_t) + G(v_i), and the softmax over i loses F. All words see the same v̂ and the same ĥ: the attention is blind to what
guides it. ``literal=True`` gives this, computed once a post; W_h and b_h of (3) and W'_v and b'_v of (4), which have no
influence and a gradient of exactly 0, are no parameters then.

What differs besides: β leaves padding out, u is 0 for a post without a picture, a BiLSTM ends at a post's last word,
and the maximum of a convolution is over a word's characters. ``literal`` masks nothing and takes the first window of
each convolution. Dropout is on h, and 0.25 inside of the characters.

Reads ``image_features`` [B, P, C] (or ``image`` pixels), ``image_mask`` [B], and the keys of
:class:`tmrjax.inputs.pieces.Pieces`; or those of :class:`tmrjax.inputs.words.Words` and ``character_ids`` [B, W, C].
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.attention import masked_softmax
from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.characters import Characters
from tmrjax.inputs.pictures import Pictures
from tmrjax.inputs.pieces import Pieces
from tmrjax.inputs.words import Words
from tmrjax.methods.base import Batch, Method, at_words
from tmrjax.methods.parts.characters import CharacterConvolution
from tmrjax.methods.parts.recurrent import LSTM
from tmrjax.methods.parts.words import WordTable

READERS = ("bert", "bilstm")


class AdapCoAtt(Method, kw_only=True):
    """See the module.

    Attributes:
        reader: "bert", any text encoder, or "bilstm".
        attention_size: width of the sums in (3) and (4); 0: D.
        use_pictures: whether a picture is read.
        literal: the released arithmetic.
        num_words, num_characters: rows of the tables of "bilstm". word_size, character_size: of their vectors.
        hidden_size: D of "bilstm", both directions together.
        character_dropout: between the layers that read characters.
        freeze_words: keep the word vectors as they are, as the released code does with given ones.
        word_dropout: see :class:`tmrjax.methods.parts.words.WordTable`; none in the released arithmetic.
        min_count: rarer words of the training text are unknown.
    """

    task: ClassVar[str] = "ner"

    reader: str = "bert"
    attention_size: int = 0
    use_pictures: bool = True
    literal: bool = False
    num_words: int = 2
    num_characters: int = 2
    word_size: int = 200
    character_size: int = 30
    hidden_size: int = 200
    character_dropout: float = 0.25
    freeze_words: bool = False
    word_dropout: float = 0.05
    min_count: int = 1

    def __post_init__(self):
        if self.reader not in READERS:
            raise ValueError(f"reader is {self.reader!r}; expected one of {', '.join(READERS)}")
        super().__post_init__()

    @property
    def inputs(self) -> tuple[Input, ...]:
        """The sentence, and the whole picture as patches."""
        text = (Pieces(),) if self.reader == "bert" else (Words(min_count=self.min_count), Characters())
        return (*text, Pictures(whole="tokens", regions=None, generated=False)) if self.use_pictures else text

    @property
    def frozen(self) -> tuple[str, ...]:
        """The encoders and the word table where they are to stay."""
        return (*super().frozen, *["word_embeddings/.*"] * self.freeze_words)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, W, K].

        States: "text_states" (h), "seen" (v̂), "read" (ĥ) [B, T, D], or [B, D] each in the released arithmetic,
        "kept" (u) [B, T, D].
        """
        mask = batch["attention_mask"].astype(bool)
        if self.reader == "bert":
            (text,) = self.read_texts((batch["input_ids"], mask), train=train)
        else:
            text = self._read_words(batch, mask, train)
        text = Dropout(self.dropout)(text, deterministic=not train)
        states, words = {"text_states": text}, at_words(text, batch)
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(words)
        if self.use_pictures:
            patches = self.read_pictures(batch, train=train)["image"]
            states |= self._attend(text, mask, patches, batch["image_mask"].astype(bool))
            # [h; u] W as h W_1 + u W_2, so that a post without a picture is read by W_1 alone.
            kept = nn.Dense(self.num_labels, use_bias=False, dtype=jnp.float32, name="picture_emission")
            emissions = emissions + kept(at_words(states["kept"], batch))
        return Outputs(emissions, CRFLayer(self.num_labels, name="crf")(), states=states)

    def _dense(self, size: int, name: str, *, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(size, use_bias=use_bias, dtype=self.dtype, name=name)

    def _read_words(self, batch: Batch, mask: jax.Array, train: bool) -> jax.Array:
        """(1) without BERT: [B, W, D]."""
        drop = functools.partial(Dropout(self.character_dropout), deterministic=not train)
        read = CharacterConvolution(
            self.num_characters, self.character_size, 32, (2, 3, 4), literal=self.literal, dtype=self.dtype,
            name="characters_cnn",
        )  # fmt: skip
        characters = drop(read(batch["character_ids"], train=train))
        characters = drop(nn.relu(self._dense(100, "characters_1")(characters)))
        characters = self._dense(50, "characters_2")(characters)
        word_dropout = 0.0 if self.literal else self.word_dropout
        table = WordTable(self.num_words, self.word_size, self.freeze_words, word_dropout, name="word_embeddings")
        words = table(batch["input_ids"], train=train).astype(self.dtype)
        everywhere = jnp.ones_like(mask) if self.literal else mask
        lstm = LSTM(self.hidden_size // 2, dtype=self.dtype, name="lstm")
        return lstm(jnp.concatenate([words, characters], axis=-1), everywhere, train=train)[0]

    def _attend(self, text: jax.Array, mask: jax.Array, patches: jax.Array, there: jax.Array) -> dict[str, Any]:
        """(2) to (6): v̂, ĥ, u."""
        size = text.shape[-1]
        visual = jnp.tanh(self._dense(size, "visual_projection")(patches))
        if self.literal:
            everything = jnp.ones(visual.shape[:2], bool)
            seen = self._look(visual, None, everything, "visual")
            read = self._look(text, None, jnp.ones_like(mask), "text")
            a, q = (
                jnp.tanh(self._dense(size, name)(x))[:, None]
                for name, x in (("fuse_visual", seen), ("fuse_text", read))
            )
        else:
            present = jnp.broadcast_to(there[:, None], visual.shape[:2])
            seen = self._look(visual, text, present, "visual")
            read = self._look(text, seen, mask, "text")
            a = jnp.tanh(self._dense(size, "fuse_visual")(seen))
            q = jnp.tanh(self._dense(size, "fuse_text")(read))
        gate = nn.sigmoid(self._dense(1, "fuse_gate")(jnp.concatenate([a, q], axis=-1)))
        merged = gate * a + (1 - gate) * q
        of_text = self._dense(size, "filter_text", use_bias=False)(text)
        of_merged = jnp.broadcast_to(self._dense(size, "filter_merged")(merged), of_text.shape)
        passed = nn.sigmoid(self._dense(1, "filter_gate")(jnp.concatenate([of_text, of_merged], axis=-1)))
        kept = passed * jnp.tanh(self._dense(size, "reserve")(merged))
        if not self.literal:
            kept = jnp.where(there[:, None, None], kept, 0)
        return {"seen": seen, "read": read, "kept": kept}

    def _look(self, content: jax.Array, guide: jax.Array | None, mask: jax.Array, name: str) -> jax.Array:
        """(3) or (4): the mean of ``content`` [B, S, D], weighed for each row of ``guide`` [B, T, D]: [B, T, D].

        Without a guide, weighed by itself: [B, D].
        """
        size = self.attention_size or content.shape[-1]
        keys = self._dense(size, f"{name}_key", use_bias=False)(content)
        weight = self.param(f"{name}_score", nn.initializers.lecun_normal(), (size, 1))[:, 0].astype(self.dtype)
        if guide is None:
            weights = masked_softmax(jnp.tanh(keys) @ weight, mask).astype(content.dtype)
            return jnp.einsum("bs,bsd->bd", weights, content)
        queries = self._dense(size, f"{name}_query")(guide)
        weights = masked_softmax(additive_scores(queries, keys, weight), mask[:, None]).astype(content.dtype)
        return jnp.einsum("bts,bsd->btd", weights, content)


@jax.checkpoint
def additive_scores(queries: jax.Array, keys: jax.Array, weight: jax.Array) -> jax.Array:
    """w · tanh(q_t + k_s): [B, T, D], [B, S, D], [D] -> [B, T, S].

    The backward pass computes tanh again: [B, T, S, D] would be the largest array of the whole step.
    """
    return jnp.tanh(queries[:, :, None] + keys[:, None]) @ weight


METHODS = (AdapCoAtt,)

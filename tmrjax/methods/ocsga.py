"""OCSGA: Multimodal Representation with Embedded Visual Guiding Objects for Named Entity Recognition in Social Media
Posts (Wu et al., ACM MM 2020). A picture is the labels of the objects that a detector found in it.

    t = BiLSTM([word; characters by a BiLSTM])  [W, h]                                                             (1)
    o = embedding(labels) W_o + b_o  [O, h], at most four objects                                                  (2)
    t' = t through n layers of self-attention                                                                      (3)
    o := o through n − 1 layers of self-attention and attention to t'                                              (4)
    a = the last layer: self-attention of o, then t' attends to o, without residuals  [W, h]                       (5)
    y = BatchNorm(t + a),   emissions = y W + b, a linear-chain CRF over words                                     (6)

The layers of (3) to (5) are :class:`tmrjax.methods.parts.guided_attention.GuidedLayer`. Dropout: on characters' and
words' vectors and on t 0.5, inside of the layers 0.6.

What differs: of a post without objects a is 0 (the released softmax is uniform over padding then: a constant vector),
and padding takes no part in the statistics of BatchNorm. ``literal=True`` gives the released arithmetic. The released
table of objects is frozen and word vectors are trained: ``freeze_objects``; here it is trained unless the config says
otherwise, because labels without a vector would keep random ones. Digits are not replaced by 0. In a released
checkpoint START and STOP are tags of the CRF: ``bordered``.

Reads ``input_ids``, ``attention_mask`` [B, W] (:class:`tmrjax.inputs.words.Words`), ``character_ids`` [B, W, C],
``object_ids``, ``object_mask`` [B, O]. The released arithmetic masks objects whose id is 0.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.crf import CRFParams
from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.characters import Characters
from tmrjax.inputs.objects import Objects
from tmrjax.inputs.vocabulary import PADDING
from tmrjax.inputs.words import Words
from tmrjax.methods.base import Batch, Method
from tmrjax.methods.parts.characters import CharacterLSTM
from tmrjax.methods.parts.guided_attention import GuidedLayer
from tmrjax.methods.parts.recurrent import LSTM
from tmrjax.methods.parts.words import WordTable

_NEVER = -10000.0


class OCSGA(Method, kw_only=True):
    """See the module.

    Attributes:
        num_words, num_characters, num_objects: rows of the tables.
        word_size: of a word vector. object_width: of an object's vector; 0: as of a word.
        character_size, character_features: of an embedding; of a direction of their LSTM.
        hidden_size: h, both directions together.
        num_heads, num_layers: of the attention; n.
        max_objects: O.
        attention_dropout: inside of the layers.
        freeze_words, freeze_objects: keep the vectors as they are.
        word_dropout: see :class:`tmrjax.methods.parts.words.WordTable`; none in the released arithmetic.
        min_count: rarer words of the training text are unknown.
        use_pictures: whether objects are read.
        literal: the released arithmetic.
        bordered: the last two of the K tags are START and STOP, as in a released checkpoint.
    """

    task: ClassVar[str] = "ner"

    num_words: int = 2
    num_characters: int = 2
    num_objects: int = 2
    word_size: int = 200
    object_width: int = 0
    character_size: int = 30
    character_features: int = 25
    hidden_size: int = 200
    num_heads: int = 2
    num_layers: int = 1
    max_objects: int = 4
    dropout: float = 0.5
    attention_dropout: float = 0.6
    freeze_words: bool = False
    freeze_objects: bool = False
    word_dropout: float = 0.05
    min_count: int = 1
    use_pictures: bool = True
    literal: bool = False
    bordered: bool = False

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Words, their characters, labels of objects."""
        text = (Words(min_count=self.min_count), Characters())
        return (*text, Objects(self.max_objects, labels=True)) if self.use_pictures else text

    @property
    def frozen(self) -> tuple[str, ...]:
        """The tables that are to stay."""
        return ("word_embeddings/.*",) * self.freeze_words + ("object_embeddings/.*",) * self.freeze_objects

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, W, K]; states: "text_states" (t), "objects" (o of (2)), "guided" (a) [B, W, h]."""
        mask = batch["attention_mask"].astype(bool)
        text = self._read_text(batch, mask, train)
        states, joined = {"text_states": text}, text
        if self.use_pictures:
            objects, guided = self._guide(batch, text, mask, train)
            states |= {"objects": objects, "guided": guided}
            joined = text + guided
        # Torch's momentum of 0.1 is 0.9 here.
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5, name="batch_norm")
        joined = norm(joined.astype(jnp.float32), mask=None if self.literal else mask[..., None])
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(joined)
        crf = (BorderedCRF if self.bordered else CRFLayer)(self.num_labels, name="crf")()
        return Outputs(emissions, crf, states=states)

    def _read_text(self, batch: Batch, mask: jax.Array, train: bool) -> jax.Array:
        """(1) t [B, W, h], 0 behind the words."""
        read = CharacterLSTM(
            self.num_characters, self.character_size, self.character_features, self.dropout, self.dtype,
            name="characters_lstm",
        )  # fmt: skip
        word_dropout = 0.0 if self.literal else self.word_dropout
        table = WordTable(self.num_words, self.word_size, self.freeze_words, word_dropout, name="word_embeddings")
        words = table(batch["input_ids"], train=train).astype(self.dtype)
        joined = jnp.concatenate([words, read(batch["character_ids"], train=train)], axis=-1)
        joined = Dropout(self.dropout)(joined, deterministic=not train)
        text, _ = LSTM(self.hidden_size // 2, dtype=self.dtype, name="lstm")(joined, mask, train=train)
        return Dropout(self.dropout)(text, deterministic=not train)

    def _guide(self, batch: Batch, text: jax.Array, mask: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """(2) to (5): o [B, O, h] and a [B, W, h]."""
        ids = batch["object_ids"]
        found = ids != PADDING if self.literal else batch["object_mask"].astype(bool)
        table = WordTable(
            self.num_objects, self.object_width or self.word_size, self.freeze_objects, name="object_embeddings"
        )
        vectors = table(ids, train=train).astype(self.dtype)
        objects = nn.Dense(self.hidden_size, dtype=self.dtype, name="object_projection")(vectors)

        def layer(name: str, *, last: bool = False) -> GuidedLayer:
            zero_without_keys = not self.literal
            return GuidedLayer(self.num_heads, self.attention_dropout, zero_without_keys, self.dtype, last, name=name)

        asking, guided = text, objects
        for number in range(self.num_layers):
            asking = layer(f"text_layer_{number}")(asking, mask, train=train)
        for number in range(self.num_layers - 1):
            guided = layer(f"object_layer_{number}")(guided, found, asking, mask, train=train)
        guided = layer("last_layer", last=True)(guided, found, asking, train=train)
        return objects, guided if self.literal else jnp.where(found.any(1)[:, None, None], guided, 0)


class BorderedCRF(nn.Module):
    """The CRF of NCRF++, whose last two tags are START and STOP: score = T[START, y_1] + … + T[y_n, STOP].

    Nothing leads to START and nothing leaves STOP: −10000 in T, which training hardly moves.
    """

    num_tags: int

    @nn.compact
    def __call__(self) -> CRFParams:
        """The row of START and the column of STOP beside all of T."""

        def bordered(key, shape):
            return jnp.zeros(shape).at[:, -2].set(_NEVER).at[-1, :].set(_NEVER)

        transitions = self.param("transitions", bordered, (self.num_tags, self.num_tags))
        return CRFParams(transitions, transitions[-2], transitions[:, -1])


METHODS = (OCSGA,)

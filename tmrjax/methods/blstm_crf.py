"""BiLSTM-CRF over words and characters, two rows of the field's tables for entities without a picture.

CNN-BLSTM-CRF: End-to-end Sequence Labeling via Bi-directional LSTM-CNNs-CRF (Ma and Hovy, ACL 2016). HBiLSTM-CRF:
Neural Architectures for Named Entity Recognition (Lample et al., NAACL 2016). For word j with characters e_1 … e_n:

    c_j = max_i tanh(conv_3(e))_i  (``characters="cnn"``)   or   [→h_n; ←h_1] of a BiLSTM  (``"lstm"``)             (1)
    x_j = [word_j; c_j]                                                                                            (2)
    t_j = [→h_j; ←h_j], a BiLSTM over the words                                                                    (3)
    t_j := tanh(t_j W_t + b_t)  (``"lstm"`` alone)                                                                 (4)
    emissions_j = t_j W + b, a linear-chain CRF over words with the tags O, B-x, I-x                               (5)

Dropout: on e, x and t of the first form, on x of the second, 0.5 each. Sizes are those of the papers.

What differs: the papers tag BIOES, here tags are those of the data for every method. The authors' own code is not
followed where it leaves the papers: Ma's takes the maximum over padding and has transitions that depend on the input,
Lample's cell couples its gates and looks at the cell state. The maximum of (1) is over a word's own characters. A share
of the training words is read as unknown, whatever their count (``word_dropout``).

Reads ``input_ids``, ``attention_mask`` [B, W] (:class:`tmrjax.inputs.words.Words`) and ``character_ids`` [B, W, C].
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.characters import Characters
from tmrjax.inputs.words import Words
from tmrjax.methods.base import Batch, Method
from tmrjax.methods.parts.characters import CharacterConvolution, CharacterLSTM
from tmrjax.methods.parts.recurrent import LSTM
from tmrjax.methods.parts.words import WordTable


class _Sizes(NamedTuple):
    """character: of an embedding. features: filters, or of a direction. hidden: of a direction of the word LSTM."""

    character: int
    features: int
    hidden: int


_PAPERS = {"cnn": _Sizes(30, 30, 200), "lstm": _Sizes(25, 25, 100)}


class BLSTMCRF(Method, kw_only=True):
    """See the module.

    Attributes:
        characters: "cnn" (Ma and Hovy) or "lstm" (Lample et al.).
        num_words, num_characters: rows of the tables.
        word_size: of a word vector.
        character_size, character_features, hidden_size: e; filters, or units of a direction; units of a direction of
            the word LSTM, and of (4). 0: as in the paper, 30, 30, 200 or 25, 25, 100.
        freeze_words: keep the word vectors as they are; the papers train them.
        word_dropout: see :class:`tmrjax.methods.parts.words.WordTable`.
        min_count: rarer words of the training text are unknown.
    """

    task: ClassVar[str] = "ner"

    num_words: int = 2
    num_characters: int = 2
    characters: str = "cnn"
    word_size: int = 100
    character_size: int = 0
    character_features: int = 0
    hidden_size: int = 0
    dropout: float = 0.5
    freeze_words: bool = False
    word_dropout: float = 0.05
    min_count: int = 1

    def __post_init__(self):
        if self.characters not in _PAPERS:
            raise ValueError(f"characters is {self.characters!r}; expected one of {', '.join(_PAPERS)}")
        super().__post_init__()

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Words and their characters."""
        return (Words(min_count=self.min_count), Characters())

    @property
    def frozen(self) -> tuple[str, ...]:
        """The word table where it is to stay."""
        return ("word_embeddings/.*",) * self.freeze_words

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, W, K]; states: "characters" (c), "text_states" (t, (4) included)."""
        paper, mask = _PAPERS[self.characters], batch["attention_mask"].astype(bool)
        sizes = self.num_characters, self.character_size or paper.character, self.character_features or paper.features
        hidden_size = self.hidden_size or paper.hidden
        drop = Dropout(self.dropout)
        if self.characters == "cnn":
            read = CharacterConvolution(*sizes, dropout=self.dropout, dtype=self.dtype, name="characters_cnn")
        else:
            read = CharacterLSTM(*sizes, dtype=self.dtype, name="characters_lstm")
        characters = read(batch["character_ids"], train=train)
        table = WordTable(self.num_words, self.word_size, self.freeze_words, self.word_dropout, name="word_embeddings")
        words = table(batch["input_ids"], train=train).astype(self.dtype)
        joined = drop(jnp.concatenate([words, characters], axis=-1), deterministic=not train)
        text, _ = LSTM(hidden_size, dtype=self.dtype, name="lstm")(joined, mask, train=train)
        if self.characters == "cnn":
            text = Dropout(self.dropout)(text, deterministic=not train)
        else:
            text = jnp.tanh(nn.Dense(hidden_size, dtype=self.dtype, name="tanh_layer")(text))
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(text)
        states = {"characters": characters, "text_states": text}
        return Outputs(emissions, CRFLayer(self.num_labels, name="crf")(), states=states)


METHODS = (BLSTMCRF,)

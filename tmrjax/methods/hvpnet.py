"""HVPNeT: Good Visual Guidance Makes A Better Extractor (Chen et al., Findings of NAACL 2022).

Pictures n = 0..3 are the whole picture and three regions; F_{n,l} [h_l, w_l, C_l] is stage l of a picture encoder. A
picture gives P = 4 rows of a prefix for every layer i of the text encoder:

    G_n = concat_l pool_{2×2}(F_{n,l}) [4, Σ_l C_l], a row a quarter of the picture                                 (1)
    E_n = tanh(G_n W_1 + b_1) W_2 + b_2 [4, 4 · 2D], cut into chunks E_n^c [4, 2D], c = 0..3                        (2)
    g_{n,i} = softmax(leaky_relu(m_n A_i + a_i)) [4],  m_n = mean_c E_n^c as one vector [8D], slope 0.01            (3)
    [K_{n,i}; V_{n,i}] = Σ_c g_{n,i}[c] E_n^c,  keys and values [4, D] of all pictures, split into heads            (4)
    layer i: softmax(Q [K_i; K_text]ᵀ / √d) [V_i; V_text], the rest of the layer as it is                           (5)
    NER: emissions = dropout(T) W + b at each word's first piece, a linear-chain CRF over words, tags O, B-x, I-x   (6)
    RE:  logits = dropout([T_head; T_tail]) W + b at the entities' start markers                                    (7)

This is the arithmetic of the released code (zjunlp/HVPNeT) without its faults; its gates weigh chunks of an MLP's
output, while the paper speaks of gates over the stages. What differs from the code, which ``literal=True`` restores:

* (1): rows are quarters of the picture; theirs reshape [Σ C, 2, 2] to four slabs of channels. Theirs also leaves out
  the last line of a map of odd size.
* (4): heads are split as in the text; theirs reshapes without a transposition, so that each head sees one picture.
* (5): rows of a picture that is not there are masked; theirs are attended to.
* (6): theirs tags word pieces, with tags of their own for further pieces and specials. (7): theirs has no dropout.

In training every layer learns (theirs leaves the relation classifier as it is drawn), and BatchNorm is frozen unless
``batch_norm`` says otherwise.

Reads ``input_ids``, ``attention_mask``, ``word_starts`` or ``head_start``, ``tail_start``; ``image``, ``regions`` or
``image_stages``, ``region_stages`` (tuples of maps), ``image_mask``, ``region_mask``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tmrjax.inputs.base import Input
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.pictures import Pictures
from tmrjax.inputs.pieces import Pieces
from tmrjax.methods.base import Batch
from tmrjax.methods.parts.prefixes import VisualPrefix
from tmrjax.methods.parts.read_out import EntityReadOut, RelationReadOut, TextWithPictures


class HVPNeT(TextWithPictures, kw_only=True):
    """What both tasks share. ``text`` may be any text encoder, ``picture`` any picture encoder.

    Attributes:
        use_pictures: False leaves the prefix out: the text encoder alone.
        literal: the released arithmetic; see the module.
        prefix_size: units of the hidden layer of (2).
    """

    prefix_size: int = 800

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Sentence, and all stages of the whole picture and of the regions."""
        text = Pieces() if self.task == "ner" else Marked()
        return (text, Pictures("stages", "stages", generated=False)) if self.use_pictures else (text,)

    def read(self, batch: Batch, *, train: bool) -> jax.Array:
        """(1) to (5): the text encoder's last states T [B, T, D]."""
        encoder, prefixes = self.open_text(), None
        if self.use_pictures:
            maps = self.read_pictures(batch, train=train)
            stages = [
                jnp.concatenate([image[:, None], regions], axis=1)
                for image, regions in zip(maps["image"], maps["region"], strict=True)
            ]
            mask = jnp.concatenate([batch["image_mask"][:, None], batch["region_mask"]], axis=1)
            text = self.text
            prefixes = VisualPrefix(
                text.hidden_size, text.num_attention_heads, text.num_hidden_layers, self.prefix_size, self.literal,
                self.dtype, name="visual_prefix",
            )(stages, mask)  # fmt: skip
        # A frozen text encoder still hands the gradient on to the prefix.
        return encoder(batch["input_ids"], batch["attention_mask"].astype(bool), train=train, prefixes=prefixes)[0]


class EntityHVPNeT(HVPNeT, EntityReadOut, kw_only=True):
    """(6): emissions of words, or of word pieces in the released tag set (``literal``)."""


class RelationHVPNeT(HVPNeT, RelationReadOut, kw_only=True):
    """(7): logits of every relation."""


METHODS = (EntityHVPNeT, RelationHVPNeT)

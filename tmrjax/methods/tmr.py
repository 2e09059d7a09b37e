"""TMR: Rethinking Multimodal Entity and Relation Extraction from a Translation Point of View (Zheng et al., ACL 2023).

The paper's formulas (§3.2, §3.4, §3.5), one post at a time:

    T^w = BERT(sentence) [T, D]    T^p = BERT(phrases) [P, D]                                    §3.2
    V^s = F W_v + b [49, D]        F: the ResNet's 7 × 7 map of the whole picture
    V^r = mean_49(F_r) W_v + b [3, D]    F_r: the maps of three regions
    G^f from (V^s, T^w), G^c from (V^r, T^p)                                                     Eq. 1
    G = G^f + G^c without scores; G* = α_s G^f + α_c G^c, and G'* by α'                          Eq. 2, Eq. 4
    NER: Ḡ = LayerNorm(T^w + MultiHead(T^w, [G*; G'*])), emissions = Ḡ W + b at each word's      Eq. 7
         first piece, a linear-chain CRF over words with the tags O, B-x, I-x                    Eq. 8, Eq. 9
    RE:  logits = [T_head; T_tail; phrase part; G* + G'*] W + b at the entities' start markers   Eq. 10, Eq. 11

α = (weaken, complement, strengthen) sums to 1; α is for text and picture, α' for text and generated picture. What is
ours in Eq. 1, Eq. 7 and Eq. 10 is said in :mod:`tmrjax.fusion`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.dropout import Dropout
from tmrjax.fusion import GRAINS, GrainFusion, TextFusion, pool_phrases
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.phrases import Phrases
from tmrjax.inputs.pictures import Pictures
from tmrjax.inputs.pieces import Pieces
from tmrjax.inputs.scores import Scores
from tmrjax.methods.base import Batch, Method, at_markers, at_words
from tmrjax.records.schema import NEUTRAL_SCORES


class TMR(Method, kw_only=True):
    """What both tasks share: encoders, grains, scores and the switches of the ablations.

    Attributes:
        use_back_translation: False leaves the generated picture out ("w/o BT": G'* absent).
        use_scores: False replaces Eq. 4 by Eq. 2 ("w/o MDE").
        grains: both, or one for the paper's "fine only" and "coarse only".
        literal: the paper's bare sums (:mod:`tmrjax.fusion`).
        dropout: on what Eq. 7 adds to the text states, and on the last layer's input.
    """

    use_back_translation: bool = True
    use_scores: bool = True
    grains: tuple[str, ...] = GRAINS
    literal: bool = False

    def __post_init__(self):
        super().__post_init__()
        if not self.grains or not set(self.grains) <= set(GRAINS):
            raise ValueError(f"grains {self.grains!r} must be some of {GRAINS}")

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Sentence, phrases, the whole picture as patches, regions as one vector each, scores."""
        text = Pieces() if self.task == "ner" else Marked()
        pictures = Pictures(whole="tokens", regions="pooled", generated=self.use_back_translation)
        scores = (Scores(generated=self.use_back_translation),) if self.use_scores else ()
        return (text, Phrases(), pictures, *scores)

    @property
    def left_out(self) -> str:
        """The ablation, in the words of Table 1."""
        parts = []
        if not self.use_back_translation:
            parts.append("w/o back-translation")
        if not self.use_scores:
            parts.append("w/o divergence scores")
        if len(self.grains) == 1:
            parts.append(f"{self.grains[0]} only")
        if self.literal:
            parts.append("literal sums")
        return ", ".join(parts) or "none"

    def encode(self, batch: Batch, *, train: bool) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
        """(T^w, T^p, states of the pictures); one encoder reads text and phrases."""
        sentence, phrases = (batch["input_ids"], batch["attention_mask"]), (batch["phrase_ids"], batch["phrase_mask"])
        return *self.read_texts(sentence, phrases, train=train), self.read_pictures(batch, train=train)

    def weigh(self, batch: Batch, text: jax.Array, phrases: jax.Array, pictures: dict[str, Any]):
        """Eq. 1, 2, 4: G* and G'* [B, 2, D], which of them are there [B, 2], and the intermediates by name."""
        project = nn.Dense(self.text.hidden_size, dtype=self.dtype, name="visual_projection")
        fusion = GrainFusion(self.grains, self.literal, self.dtype, name="grain_fusion")
        text_mask, phrase_mask = batch["attention_mask"].astype(bool), batch["phrase_mask"].astype(bool)
        states, weighted, present = {}, [], []
        for prefix in self.pictures.prefixes:
            image, regions = project(pictures[f"{prefix}image"]), project(pictures[f"{prefix}region"])
            masks = batch[f"{prefix}image_mask"], batch[f"{prefix}region_mask"]
            neutral = jnp.tile(jnp.asarray(NEUTRAL_SCORES), (text.shape[0], 1))
            scores = batch[f"{prefix}scores"] if self.use_scores else neutral
            picture, there, grains = fusion(
                text, text_mask, phrases, phrase_mask, image, masks[0], regions, masks[1], scores
            )
            states |= {f"{prefix}picture": picture} | {f"{prefix}{name}": grain for name, grain in grains.items()}
            weighted.append(picture)
            present.append(there)
        return jnp.stack(weighted, 1), jnp.stack(present, 1), states


class EntityTMR(TMR, kw_only=True):
    """Emissions of every tag for every word, with the CRF that reads them (Eq. 8 and 9).

    Attributes:
        num_heads: of Eq. 7.
    """

    task: ClassVar[str] = "ner"
    num_heads: int = 8

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions at the first piece of each word.

        States: "text_states" [B, T, D], "phrase_states", "fine", "coarse", "picture" (G^f, G^c, G*),
        "fine_attention", "coarse_attention" (A of Eq. 1) and the same with the prefix "generated_", "fused" (Ḡ).
        """
        text, phrases, pictures = self.encode(batch, train=train)
        crf = CRFLayer(self.num_labels, name="crf")()
        weighted, present, states = self.weigh(batch, text, phrases, pictures)
        text_fusion = TextFusion(self.num_heads, self.dropout, self.dtype, name="text_fusion")
        fused = text_fusion(text, weighted, present, train=train)
        words = Dropout(self.dropout)(at_words(fused, batch), deterministic=not train)
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(words)
        states = {"text_states": text, "phrase_states": phrases, **states, "fused": fused}
        return Outputs(emissions, crf, states=states)


class RelationTMR(TMR, kw_only=True):
    """Logits of every relation between a marked head and a marked tail (Eq. 10 and 11)."""

    task: ClassVar[str] = "re"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Eq. 10: g = [T_head; T_tail; phrase part; G* + G'*] (4d), logits = g W + b.

        T_head and T_tail are the states at the markers before the entities; the phrase part is Σ_k M^p_k T^p_k
        (``literal``) or that sum divided by the number of pieces, 0 without phrases. States: as for entities, without
        "fused", and "representation" (g before dropout).
        """
        text, phrases, pictures = self.encode(batch, train=train)
        weighted, _, states = self.weigh(batch, text, phrases, pictures)
        pooled = pool_phrases(phrases, batch["phrase_mask"].astype(bool), literal=self.literal)
        representation = jnp.concatenate([at_markers(text, batch), pooled, weighted.sum(1)], axis=-1)
        dropped = Dropout(self.dropout)(representation, deterministic=not train)
        logits = nn.Dense(self.num_labels, dtype=jnp.float32, name="classifier")(dropped)
        states = {"text_states": text, "phrase_states": phrases, **states, "representation": representation}
        return Outputs(logits, states=states)


METHODS = (EntityTMR, RelationTMR)

"""The arithmetic of the authors' released code, so that their checkpoints can be used.

The released code computes other formulas than the paper does. In the notation of :mod:`tmrjax.methods.tmr`, with H [T,
D] the states of the text, H_p [P, D] those of the phrases, F49 [49, C] the map of a whole picture and F_obj [3, 49, C]
those of its regions:

Pictures   V = F49 W_p + b [49, D], v̄ = Σ_49 V · R = (Σ_49 F_obj) W_p + b [3, D], r̄ = Σ_3 R. Both grains share W_p.
Grains     g^f = Σ_49 tanh(softmax((V W_q + b)(H W_k + b)ᵀ / √D)(H W_v + b)), without a mask over the text;
           g^c likewise with R, H_p and weights of its own. tanh replaces the bare sum of Eq. 1.
Scores     u = strong (g^f + v̄) + weak (g^c + r̄), and u' likewise for the generated picture with the same weights.
           strong and weak are the complement and strengthen parts of α: strong = p₂ / (p₁ + p₂) and
           weak = p₁ / (p₁ + p₂) in the RE files, the raw p₂ and p₁ in the NER files, where the estimator's classes are
           (weaken, complement, strengthen) = (p₀, p₁, p₂).
NER        E(u) = tanh(reshape(u W_e + b, (max_seq, 1024))), emissions = relu([H; E(u); E(u')] W + b) W_o + b with
           D + 2048 → 1000 → K. The CRF runs over all word pieces; K = 13 tags: PAD 0, O 1, B- and I-MISC 2 3, PER 4 5,
           ORG 6 7, LOC 8 9, X 10 (a word's further pieces), [CLS] 11, [SEP] 12.
RE         x = [H_head; H_tail; (Σ_P H_p) W_ph + b; tanh(u W_e + b); tanh(u' W_e + b)] [6 D], where the phrase part has
           2 D; representation = x W_f + b [2 D]; logits = representation W + b. The phrases are read with a mask that
           is all zeros in the released code: every position is attended alike, padding too.

Kept apart from :mod:`tmrjax.fusion` so that neither has to bend to the other. What goes in is not decided here:
:func:`tmrjax.inputs.phrases.phrase_ids_of` and :mod:`tmrjax.pictures.preprocessing` make the phrases and pixels that
the released code reads, and a converted checkpoint keeps the settings. One thing is ours: masked pictures contribute
nothing. The authors fed zeros in their place, which ``--missing=zeros`` of convert_release.py repeats.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.attention import PRECISION, attend
from tmrjax.encoders.dropout import Dropout
from tmrjax.heads.crf_head import CRFLayer
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.phrases import Phrases
from tmrjax.inputs.pictures import Pictures
from tmrjax.inputs.pieces import Pieces
from tmrjax.inputs.scores import Scores
from tmrjax.methods.base import Batch, Method

EXTENDED_SIZE = 1024  # of E(u) per position
COMBINED_SIZE = 1000  # of the layer before the emissions


class ReleaseFusion(nn.Module):
    """u of each picture, as the module says. Submodules carry the roles of the torch names."""

    hidden_size: int
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        """One set of weights for both pictures."""
        self.visual_projection = self._dense(self.hidden_size)
        self.query_fine, self.key_fine, self.value_fine = (self._dense(self.hidden_size) for _ in range(3))
        self.query_coarse, self.key_coarse, self.value_coarse = (self._dense(self.hidden_size) for _ in range(3))

    def _dense(self, size):
        return nn.Dense(size, dtype=self.dtype)

    def _correlation(self, grain, visual, visual_mask, text):
        query, key, value = (getattr(self, f"{role}_{grain}") for role in ("query", "key", "value"))
        attended = jnp.tanh(attend(query(visual), key(text), value(text), precision=PRECISION))
        return jnp.where(visual_mask[..., None], attended, 0).sum(1)

    def __call__(self, text, phrases, image, image_mask, regions, region_mask, scores) -> jax.Array:
        """u = strong (g^f + v̄) + weak (g^c + r̄).

        Args:
            text: H [B, T, D]; all T positions are attended.
            phrases: H^p [B, P, D].
            image: F49 [B, 49, C] with image_mask [B].
            regions: F_obj [B, 3, 49, C] with region_mask [B, 3].
            scores: [B, 2] = (weak, strong); prepared scores [B, 3] are read as (complement, strengthen).

        Returns:
            u [B, D] in ``dtype``; the scores and their products are float32.
        """
        weak, strong = scores[:, -2:].astype(jnp.float32)[..., None].swapaxes(0, 1)
        patch_mask = jnp.broadcast_to(image_mask[:, None], image.shape[:2])
        patches = jnp.where(patch_mask[..., None], self.visual_projection(image), 0)
        objects = jnp.where(region_mask[..., None], self.visual_projection(regions.sum(2)), 0)
        fine = self._correlation("fine", patches, patch_mask, text) + patches.sum(1)
        coarse = self._correlation("coarse", objects, region_mask, phrases) + objects.sum(1)
        return (strong * fine + weak * coarse).astype(self.dtype)


class ReleaseTagFusion(ReleaseFusion):
    """For NER: [H; E(u); E(u')] joined at each of ``length`` positions."""

    length: int = 0

    def setup(self):
        """The layers of E(u) and of the join, beside those of u."""
        super().setup()
        self.extend = self._dense(self.length * EXTENDED_SIZE)
        self.combination = self._dense(COMBINED_SIZE)

    def combine(self, text: jax.Array, picture: jax.Array, generated_picture: jax.Array) -> jax.Array:
        """relu([H; E(u); E(u')] W + b) with E(u) = tanh(reshape(u W_e + b, (max_seq, 1024))).

        Args:
            text: H [B, max_seq, D]; another length raises ValueError, since E(u) belongs to absolute positions.
            picture, generated_picture: u and u' [B, D].

        Returns:
            [B, max_seq, 1000].
        """
        if text.shape[1] != self.length:
            raise ValueError(f"this release model reads exactly {self.length} word pieces, found text {text.shape}")
        extended = [
            jnp.tanh(self.extend(states)).reshape(-1, self.length, EXTENDED_SIZE)
            for states in (picture, generated_picture)
        ]
        return nn.relu(self.combination(jnp.concatenate([text, *extended], axis=-1)))


class ReleaseRelationFusion(ReleaseFusion):
    """For RE: head, tail, phrases and both pictures joined."""

    def setup(self):
        """The layers that join, beside those of u."""
        super().setup()
        self.phrase_projection = self._dense(2 * self.hidden_size)
        self.extend = self._dense(self.hidden_size)
        self.combination = self._dense(2 * self.hidden_size)

    def combine(
        self,
        head: jax.Array,
        tail: jax.Array,
        phrases: jax.Array,
        picture: jax.Array,
        generated_picture: jax.Array,
    ) -> jax.Array:
        """[H_head; H_tail; (Σ_m H_p) W_ph + b; tanh(u W_e + b); tanh(u' W_e + b)] W_f + b.

        Args:
            head, tail, picture, generated_picture: [B, D]; the last two are u and u'.
            phrases: H_p [B, P, D]; all P positions are added, padding too.

        Returns:
            [B, 2 D].
        """
        extended = [jnp.tanh(self.extend(states)) for states in (picture, generated_picture)]
        return self.combination(
            jnp.concatenate([head, tail, self.phrase_projection(phrases.sum(1)), *extended], axis=-1)
        )


class TMRRelease(Method, kw_only=True):
    """What both tasks share.

    Attributes:
        use_back_translation: False puts zeros in the place of u'.
        use_scores: False weighs both grains with 1.
    """

    use_back_translation: bool = True
    use_scores: bool = True

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Sentence, phrases, all positions of the whole picture's map and of the regions', scores."""
        text = Pieces() if self.task == "ner" else Marked()
        generated = self.use_back_translation
        return (text, Phrases(), Pictures("tokens", "tokens", generated=generated), Scores(generated=generated))

    @property
    def left_out(self) -> str:
        """The ablation, in the words of Table 1."""
        parts = ["w/o back-translation"] if not self.use_back_translation else []
        parts += ["w/o divergence scores"] if not self.use_scores else []
        return ", ".join(parts) or "none"

    def encode(self, batch: Batch, phrase_mask: jax.Array, *, train: bool):
        """(H, H_p, maps of the pictures); one BERT reads text and phrases."""
        sentence, phrases = (batch["input_ids"], batch["attention_mask"]), (batch["phrase_ids"], phrase_mask)
        return *self.read_texts(sentence, phrases, train=train), self.read_pictures(batch, train=train)

    def weigh(self, batch: Batch, fusion: ReleaseFusion, text, phrases, maps: dict[str, Any]) -> dict[str, jax.Array]:
        """u and u' under the names "picture" and "generated_picture"."""
        states: dict[str, jax.Array] = {}
        for prefix in ("", "generated_"):
            if prefix not in self.pictures.prefixes:
                states[f"{prefix}picture"] = jnp.zeros_like(states["picture"])
                continue
            masks = batch[f"{prefix}image_mask"], batch[f"{prefix}region_mask"]
            image, regions, scores = maps[f"{prefix}image"], maps[f"{prefix}region"], batch[f"{prefix}scores"]
            scores = scores if self.use_scores else jnp.ones_like(scores)
            states[f"{prefix}picture"] = fusion(text, phrases, image, masks[0], regions, masks[1], scores)
        return states


class EntityTMRRelease(TMRRelease, kw_only=True):
    """Emissions of 13 tags for every word piece.

    Attributes:
        max_pieces: number of positions of E(u), max_seq: a batch has exactly as many.
    """

    task: ClassVar[str] = "ner"
    max_pieces: int

    @property
    def piece_tags(self) -> bool:
        """Tags stand on word pieces."""
        return True

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Emissions [B, T, K]; states: "text_states", "phrase_states", "picture", "generated_picture" (u, u')."""
        text, phrases, maps = self.encode(batch, batch["phrase_mask"].astype(bool), train=train)
        crf = CRFLayer(self.num_labels, name="crf")()
        fusion = ReleaseTagFusion(self.text.hidden_size, self.dtype, self.max_pieces, name="release_fusion")
        states = self.weigh(batch, fusion, text, phrases, maps)
        combined = fusion.combine(text, states["picture"], states["generated_picture"])
        combined = Dropout(self.dropout)(combined, deterministic=not train)
        emissions = nn.Dense(self.num_labels, dtype=jnp.float32, name="emission")(combined)
        return Outputs(emissions, crf, states={"text_states": text, "phrase_states": phrases, **states})


class RelationTMRRelease(TMRRelease, kw_only=True):
    """Logits of every relation."""

    task: ClassVar[str] = "re"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """Logits [B, R]; states as for entities, and "representation" [B, 2 D] (before dropout)."""
        # The authors' phrase mask is all zeros, which attends to every position alike: a mask of ones.
        text, phrases, maps = self.encode(batch, jnp.ones(batch["phrase_ids"].shape, bool), train=train)
        rows = jnp.arange(text.shape[0])
        head, tail = text[rows, batch["head_start"]], text[rows, batch["tail_start"]]
        fusion = ReleaseRelationFusion(self.text.hidden_size, self.dtype, name="release_fusion")
        states = self.weigh(batch, fusion, text, phrases, maps)
        representation = fusion.combine(head, tail, phrases, states["picture"], states["generated_picture"])
        dropped = Dropout(self.dropout)(representation, deterministic=not train)
        logits = nn.Dense(self.num_labels, dtype=jnp.float32, name="classifier")(dropped)
        states = {"text_states": text, "phrase_states": phrases, **states, "representation": representation}
        return Outputs(logits, states=states)


METHODS = (EntityTMRRelease, RelationTMRRelease)

"""The arithmetic of the authors' released code, so that their checkpoints can be used.

The released code computes other formulas than the paper does. In the notation of :mod:`tmrjax.models`, with H [T, D]
the states of the text, H_p [P, D] those of the phrases, F49 [49, C] the map of a whole picture and F_obj [3, 49, C]
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
:func:`tmrjax.inputs.examples.phrase_ids_of` and :mod:`tmrjax.pictures.preprocessing` make the phrases and pixels that
the released code reads, and a converted checkpoint keeps the settings. One thing is ours: masked pictures contribute
nothing. The authors fed zeros in their place, which ``--missing=zeros`` of convert_release.py repeats.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.attention import PRECISION, attend

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

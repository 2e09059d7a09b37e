"""The arithmetic of the authors' released code (DESIGN.md R1 to R7), so that their checkpoints can be used.

It differs from the paper: tanh instead of a sum of attended text, projections with biases, padding attended like
text, visual states added, scores (weak, strong) without weaken. Kept apart from :mod:`tmrjax.fusion` so that neither
has to bend to the other. Masked pictures contribute nothing here too; the authors fed them as zero pictures.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

EXTENDED_SIZE = 1024  # of E(u) per position, R5
COMBINED_SIZE = 1000  # of the layer before the emissions, R5


class ReleaseFusion(nn.Module):
    """R1 to R4: u of each picture. Submodules carry the roles of the torch names."""

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
        logits = jnp.einsum("bqd,bsd->bqs", query(visual), key(text), preferred_element_type=jnp.float32) / jnp.sqrt(
            self.hidden_size
        )
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        attended = jnp.tanh(weights @ value(text))
        return jnp.where(visual_mask[..., None], attended, 0).sum(1)

    def __call__(self, text, phrases, image, image_mask, regions, region_mask, scores) -> jax.Array:
        """R1 to R4: u = w_strong (g^f + v̄) + w_weak (g^c + r̄).

        Args:
            text: H [B, T, D]; all T positions are attended.
            phrases: H^p [B, P, D].
            image: F49 [B, 49, C] with image_mask [B].
            regions: F_obj [B, 3, 49, C] with region_mask [B, 3].
            scores: [B, 2] = (weak, strong); prepared scores [B, 3] are read as (complement, strengthen).

        Returns:
            u [B, D].
        """
        weak, strong = (scores[:, -2:].astype(self.dtype))[..., None].swapaxes(0, 1)
        patch_mask = jnp.broadcast_to(image_mask[:, None], image.shape[:2])
        patches = jnp.where(patch_mask[..., None], self.visual_projection(image), 0)
        objects = jnp.where(region_mask[..., None], self.visual_projection(regions.sum(2)), 0)
        fine = self._correlation("fine", patches, patch_mask, text) + patches.sum(1)
        coarse = self._correlation("coarse", objects, region_mask, phrases) + objects.sum(1)
        return strong * fine + weak * coarse


class ReleaseTagFusion(ReleaseFusion):
    """R5 besides: [H; E(u); E(u')] joined at each of ``length`` positions."""

    length: int = 0

    def setup(self):
        """The layers of R5 beside those of R1 to R4."""
        super().setup()
        self.extend = self._dense(self.length * EXTENDED_SIZE)
        self.combination = self._dense(COMBINED_SIZE)

    def combine(self, text: jax.Array, picture: jax.Array, generated_picture: jax.Array) -> jax.Array:
        """R5: relu([H; E(u); E(u')] W + b) with E(u) = tanh(reshape(u W_e + b, (max_seq, 1024))).

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
    """R7 besides: head, tail, phrases and both pictures joined."""

    def setup(self):
        """The layers of R7 beside those of R1 to R4."""
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
        """R7: [H_head; H_tail; (Σ_m H_p) W_ph + b; tanh(u W_e + b); tanh(u' W_e + b)] W_f + b.

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

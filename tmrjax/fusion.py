"""Weighting and joining the two grains of a picture (§3.2, §3.4, §3.5): Eq. 2, 4, 7 and the phrase part of Eq. 10.

The paper's formulas, of one picture with visual states V (49 patches for the fine grain, 3 regions for the coarse one)
and text states T (the sentence's for the fine grain, the phrases' for the coarse one):

    Eq. 1   G = Σ_i softmax_j((V W)_i · T_j / √D) T_j          one W a grain, shared by both pictures
    Eq. 2   G = G^fine + G^coarse                              without divergence scores
    Eq. 4   G* = α_strengthen G^fine + α_complement G^coarse   G'* likewise, by α' of the generated picture
    Eq. 7   Ḡ = MultiHead(G*, G'*), read here as LayerNorm(T^w + MultiHead(Q = T^w, K = V = [G*; G'*])): a residual, a
            norm and the query of every word piece are our reading of it, under ``literal`` too
    Eq. 10  the phrase part Σ_k T^p_k of the relation's representation

Two changes of ours to the paper's literal formula, switched off by ``literal=True`` and listed in RESULTS.md:
a grain is the LayerNorm of the *mean* over the attended states plus their visual states, instead of the bare sum over
49 patches. The sum makes G some fifty times as large as the text states beside it, and a sum of text states alone
hides the picture behind the attention weights (the released code adds the visual states too). The norm comes
before Eq. 4, never after it: there it would undo the weights.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.attention import MultiHeadAttention, cross_modal_attention_with_weights
from tmrjax.encoders.dropout import Dropout

GRAINS = ("fine", "coarse")


def weight_grains(fine: jax.Array, coarse: jax.Array, scores: jax.Array) -> jax.Array:
    """Eq. 4: G* = α_strengthen G^fine + α_complement G^coarse.

    Args:
        fine: G^f [B, D], word-patch correlation.
        coarse: G^c [B, D], phrase-region correlation.
        scores: α [B, 3] in the order weaken, complement, strengthen.

    Returns:
        [B, D] in the dtype of ``fine``. The scores stay float32 until the sum is made: bfloat16 would round 0.928 to
        0.9258.

    Raises:
        ValueError: shapes do not fit together.
    """
    if fine.shape != coarse.shape or scores.shape != (fine.shape[0], 3):
        raise ValueError(f"fine {fine.shape}, coarse {coarse.shape}, scores {scores.shape}: need [B, D] twice, [B, 3]")
    scores = scores.astype(jnp.float32)
    return (scores[:, 2:3] * fine + scores[:, 1:2] * coarse).astype(fine.dtype)


class GrainFusion(nn.Module):
    """One picture against its text at two grains: Eq. 1, Eq. 2, Eq. 4; called once per picture, with the same weights.

    Attributes:
        grains: which grains take part; the paper's ablations leave one out.
        literal: the paper's bare sum over visual states (see the module's docstring).
        dtype: of the computation.
    """

    grains: tuple[str, ...] = GRAINS
    literal: bool = False
    dtype: jnp.dtype = jnp.float32

    def _grain(self, name, text, text_mask, visual, visual_mask):
        weight = self.param(f"{name}_weight", nn.initializers.lecun_normal(), (text.shape[-1],) * 2)
        attended, attention = cross_modal_attention_with_weights(visual, text, text_mask, weight)
        present = (visual_mask & text_mask.any(-1, keepdims=True))[..., None]
        attention = jnp.where(present, attention, 0)
        if self.literal:
            return jnp.where(present, attended, 0).sum(1), attention
        states = jnp.where(present, attended + visual, 0)
        mean = states.sum(1) / jnp.maximum(present.sum(1), 1)
        normalised = nn.LayerNorm(dtype=self.dtype, name=f"{name}_norm")(mean)
        return jnp.where(present.any(1), normalised, 0), attention

    @nn.compact
    def __call__(
        self,
        text: jax.Array,
        text_mask: jax.Array,
        phrases: jax.Array,
        phrase_mask: jax.Array,
        patches: jax.Array,
        image_mask: jax.Array,
        regions: jax.Array,
        region_mask: jax.Array,
        scores: jax.Array,
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        """G* of one picture.

        Args:
            text: T^w [B, T, D] with text_mask [B, T].
            phrases: T^p [B, P, D] with phrase_mask [B, P].
            patches: V^s [B, 49, D] with image_mask [B].
            regions: V^r [B, 3, D] with region_mask [B, 3].
            scores: α [B, 3], or :data:`tmrjax.records.schema.NEUTRAL_SCORES` for Eq. 2.

        Returns:
            G* [B, D]; whether anything of it is there [B]; {"fine": G^f, "coarse": G^c, "fine_attention": A of Eq. 1
            [B, 49, T], "coarse_attention": [B, 3, P]}, where a row of A is 0 for a patch or region that is not there.
        """
        patch_mask = jnp.broadcast_to(image_mask[:, None], patches.shape[:2])
        parts = {
            "fine": (text, text_mask, patches, patch_mask),
            "coarse": (phrases, phrase_mask, regions, region_mask),
        }
        # Both grains create their weights, so that an ablation's checkpoint has the full model's shape.
        found = {name: self._grain(name, *arguments) for name, arguments in parts.items()}
        grains = {name: grain for name, (grain, _) in found.items()}
        attention = {f"{name}_attention": weights for name, (_, weights) in found.items()}
        present = jnp.zeros(image_mask.shape, bool)
        for name, (_, part_mask, _, visual_mask) in parts.items():
            if name in self.grains:
                present |= visual_mask.any(-1) & part_mask.any(-1)
            else:
                grains[name] = jnp.zeros_like(grains[name])
        return weight_grains(grains["fine"], grains["coarse"], scores), present, grains | attention


class TextFusion(nn.Module):
    """Eq. 7: Ḡ = LayerNorm(T^w + MultiHead(Q = T^w, K = V = [G*; G'*])).

    A picture that is not there is masked out of the keys; without any, Ḡ = LayerNorm(T^w). With one picture ("w/o BT")
    the softmax over one key is 1, and every word is given the same vector. ``dropout`` acts on what is added to T^w.
    """

    num_heads: int
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, text: jax.Array, pictures: jax.Array, picture_mask: jax.Array, *, train: bool) -> jax.Array:
        """T^w [B, T, D], [G*; G'*] [B, 2, D], picture_mask [B, 2] -> [B, T, D]."""
        attended = MultiHeadAttention(self.num_heads, self.dtype, name="attention")(text, pictures, picture_mask)
        attended = Dropout(self.dropout)(attended, deterministic=not train)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(text + attended)


def pool_phrases(phrases: jax.Array, phrase_mask: jax.Array, *, literal: bool) -> jax.Array:
    """The phrase part of Eq. 10: Σ_k M^p_k T^p_k, with the mask that keeps padding out of it.

    Args:
        phrases: T^p [B, P, D].
        phrase_mask: M^p [B, P], True where valid; [CLS] and [SEP] are counted where the mask holds them, as it does in
            this project's batches (the paper does not say). With six content pieces they are a quarter of the mean.
        literal: the paper's sum; else (ours) that sum divided by max(1, Σ_k M^p_k): it stands beside single states.

    Returns:
        [B, D]; 0 for a post without phrases.
    """
    total = jnp.where(phrase_mask[..., None], phrases, 0).sum(1)
    return total if literal else total / jnp.maximum(phrase_mask.sum(1, keepdims=True), 1).astype(total.dtype)

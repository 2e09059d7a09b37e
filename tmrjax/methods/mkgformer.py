"""MKGformer: Hybrid Transformer with Multi-level Fusion for Multimodal Knowledge Graph Completion (Chen et al., SIGIR
2022), its form for entities and relations.

Two towers of L layers and width D, a BERT over word pieces and CLIP's vision tower (or a ViT) over patches, take turns:
vision layer i, then text layer i. Both fuse in the last F = 4 layers, i ≥ L − F.

    v = [class token; patches of the whole picture] + positions,  [patches of three regions] + own positions, then
        what the tower does before its first layer                                                                  (1)
    vision layer i: keys [K^t_{i−1}; K], values [V^t_{i−1}; V] with those of text layer i − 1 before its own        (2)
    text layer i: f = softmax(c vᵀ / √D) v [T, D] with the new v, c the heads' context before its projection        (3)
    feed-forward of text layer i: gelu(a W_i + b_i + f W_g + b_g) W_o + b_o, a the states after its attention       (4)
    NER: emissions = dropout(T) W + b at each word's first piece, a linear-chain CRF over words, tags O, B-x, I-x   (5)
    RE:  logits = dropout([T_head; T_tail]) W + b at the entities' start markers                                    (6)

This is the arithmetic of the released code (zjunlp/MKGformer, MNER and MRE) without its faults. What differs, which
``literal=True`` restores:

* (1): theirs never embeds the whole picture. Its tokens are the class token without a position, three regions of
  128 × 128 and three others of 64 × 64 pixels (of a second detector; where a batch has no ``crops`` and
  ``small_crops``, both are made of the same regions).
* (1) to (3): a picture that is not there is masked, and adds nothing in (4); theirs is attended to.
* (2): padding of the text is no key. Theirs is, so that a result depends on the length that a batch is padded to.
* (3): scaled by 1 / √D as in every attention here. Theirs is not: at D = 768 the softmax chooses one token nearly
  always, and hands no gradient to the others.
* (5), (6): as in :mod:`tmrjax.methods.hvpnet`.

Reads ``input_ids``, ``attention_mask``, ``word_starts`` or ``head_start``, ``tail_start``; ``image`` [B, S, S, 3],
``regions`` [B, 3, S, S, 3], ``image_mask``, ``region_mask``; ``literal``: ``crops``, ``small_crops`` or ``regions``.
"""

from __future__ import annotations

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.base import Fusion
from tmrjax.encoders.layers import PostNormLayer
from tmrjax.encoders.open import PICTURE_ENCODERS, TEXT_ENCODERS
from tmrjax.encoders.picture.transformer import PictureTransformer
from tmrjax.inputs.base import Input
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.pictures import Pictures
from tmrjax.inputs.pieces import Pieces
from tmrjax.methods.base import Batch
from tmrjax.methods.parts.read_out import EntityReadOut, RelationReadOut, TextWithPictures
from tmrjax.methods.parts.regions import RegionTokens, resized


class FusionWeights(nn.Module):
    """W_g [D, I] and b_g [I] of (4), initialised as BERT's layers are."""

    features: int

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array]:
        """For states of a width."""
        kernel = self.param("kernel", nn.initializers.normal(0.02), (width, self.features))
        return kernel, self.param("bias", nn.initializers.zeros_init(), (self.features,))


class MKGformer(TextWithPictures, kw_only=True):
    """What both tasks share. ``text`` must be a BERT (RoBERTa and others with its layers do), ``picture`` a CLIP or ViT
    of as many layers, of the same width and with as many heads; everything else raises ValueError.

    Attributes:
        use_pictures: False leaves the vision tower out: the text encoder alone.
        literal: the released arithmetic; see the module.
        fusion_layers: F; at most one layer less than the towers have.
        region_size: pixels along a side of a region, at most those of a whole picture.
    """

    picture_folder: ClassVar[str] = "clip_encoder"

    fusion_layers: int = 4
    region_size: int = 128

    @property
    def inputs(self) -> tuple[Input, ...]:
        """Sentence, and pixels of the whole picture and of the regions."""
        text = Pieces() if self.task == "ner" else Marked()
        return (text, Pictures("pixels", "pixels", generated=False)) if self.use_pictures else (text,)

    def read(self, batch: Batch, *, train: bool) -> jax.Array:
        """(1) to (4): the text encoder's last states T [B, T, D]."""
        self.check_encoders()
        ids, valid = batch["input_ids"], batch["attention_mask"].astype(bool)
        if not self.use_pictures:
            return self.read_texts((ids, valid), train=train)[0]
        text, picture, depth = self.open_text(), self.open_picture(), self.text.num_hidden_layers
        first = depth - min(self.fusion_layers, depth - 1)
        visual, present = self.tokens(picture, batch, train=train)
        states, own = text.embed(ids, valid, train=train), None
        for index in range(depth):
            if index >= first:
                own = own._replace(mask=None) if self.literal else own
                visual = picture.layer(index, visual, train=train, prefix=own, mask=present)
                weights = FusionWeights(self.text.intermediate_size, name=f"fusion_{index}")(states.shape[-1])
                scale = 1.0 if self.literal else None
                states, own = text.fused_layer(
                    index, states, valid, Fusion(visual, present, *weights, scale=scale), train=train
                )
            else:
                visual = picture.layer(index, visual, train=train, mask=present)
                states, own = text.fused_layer(index, states, valid, Fusion(), train=train)
        if self.is_initializing():
            # The tower's last norm has no part in (1) to (4), but its weights come with the others.
            picture.read_out(visual)
        return states

    def tokens(self, picture: PictureTransformer, batch: Batch, *, train: bool) -> tuple[jax.Array, jax.Array | None]:
        """(1): v [B, S, D] and which of it counts [B, S]; None is all."""
        size = min(self.region_size, self.picture.image_size)
        if self.literal:
            crops, small = batch.get("crops"), batch.get("small_crops")
            crops = resized(batch["regions"], size) if crops is None else crops
            small = resized(batch["regions"], size // 2) if small is None else small
            first = jnp.broadcast_to(picture.class_token, (crops.shape[0], 1, self.picture.hidden_size))
            rows = [first, RegionTokens(name="region_positions")(picture, crops)]
            rows.append(RegionTokens(name="small_region_positions")(picture, small))
            return picture.begin(jnp.concatenate(rows, axis=1), train=train), None
        whole, regions = batch["image_mask"].astype(bool), batch["region_mask"].astype(bool)
        pixels = jnp.where(whole[:, None, None, None], batch["image"], 0)
        crops = resized(jnp.where(regions[..., None, None, None], batch["regions"], 0), size)
        image = picture.embed(pixels, train=train)
        others = picture.begin(RegionTokens(name="region_positions")(picture, crops), train=train)
        masks = [whole | regions.any(1), whole, regions]
        counts = 1, image.shape[1] - 1, others.shape[1] // regions.shape[1]
        masks = [
            jnp.repeat(mask.reshape(mask.shape[0], -1), count, axis=1)
            for mask, count in zip(masks, counts, strict=True)
        ]
        return jnp.concatenate([image, others], axis=1), jnp.concatenate(masks, axis=1)

    def check_encoders(self) -> None:
        """Raise ValueError where the two towers cannot be fused layer by layer."""
        text, picture = self.text, self.picture
        if TEXT_ENCODERS[type(text)].layer_type is not PostNormLayer:
            raise ValueError(f"MKGformer fuses inside of BERT's layers; a {text.kind} has others: take a BERT")
        if not self.use_pictures:
            return
        if not issubclass(PICTURE_ENCODERS.get(type(picture), object), PictureTransformer):
            raise ValueError(
                f"MKGformer fuses layer by layer with a CLIP vision tower or a ViT, not with {type(picture).__name__}: "
                "name one with --config.picture_encoder.folder"
            )
        sizes = [(one.num_hidden_layers, one.hidden_size, one.num_attention_heads) for one in (text, picture)]
        if sizes[0] != sizes[1] or sizes[0][0] < 2:
            raise ValueError(
                f"MKGformer's towers must have the same layers, width and heads, and two layers or more; the text "
                f"encoder has {sizes[0]}, the picture encoder {sizes[1]}"
            )


class EntityMKGformer(MKGformer, EntityReadOut, kw_only=True):
    """(5): emissions of words, or of word pieces in the released tag set (``literal``)."""


class RelationMKGformer(MKGformer, RelationReadOut, kw_only=True):
    """(6): logits of every relation."""


METHODS = (EntityMKGformer, RelationMKGformer)

"""TMR for entities (§3.6): encoders, two grains, two pictures, emissions for the CRF.

One model, three variants: ``paper`` (P1 to P8), ``release`` (R1 to R6, :mod:`tmrjax.release`) and ``text`` (BERT and
CRF alone). Models return ``(emissions, intermediates)``; what nobody uses is pruned by jit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.crf import CRFParams
from tmrjax.encoders.bert import BertConfig, BertEncoder
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.resnet import ResNetConfig, ResNetEncoder
from tmrjax.fusion import GRAINS, NEUTRAL_SCORES, GrainFusion, TextFusion
from tmrjax.release import ReleaseFusion

VARIANTS = ("paper", "release", "text")
NUM_REGIONS = 3

Batch = Mapping[str, jax.Array]


class CRFLayer(nn.Module):
    """The parameters of the linear-chain CRF; its arithmetic is :mod:`tmrjax.crf`."""

    num_tags: int

    @nn.compact
    def __call__(self) -> CRFParams:
        """The parameters, float32 whatever the encoder's precision is."""

        def uniform(key, shape):
            return jax.random.uniform(key, shape, minval=-0.1, maxval=0.1)

        size = self.num_tags
        return CRFParams(
            transitions=self.param("transitions", uniform, (size, size)),
            start_transitions=self.param("start_transitions", uniform, (size,)),
            end_transitions=self.param("end_transitions", uniform, (size,)),
        )


class PictureEncoder(nn.Module):
    """ResNet maps of all pictures of a post, or the same maps handed in as features (P2).

    A masked picture is replaced before anything is computed from it: its content, be it NaN, has no influence.
    """

    config: ResNetConfig | None
    dtype: jnp.dtype = jnp.float32
    batch_norm: str = "frozen"
    frozen: bool = False

    @nn.compact
    def __call__(self, batch: Batch, prefixes: tuple[str, ...], *, train: bool) -> dict[str, jax.Array]:
        """Maps ``{prefix}image`` [B, P, C] and ``{prefix}region`` [B, 3, P, C] for each prefix, masked ones zero."""
        maps, masks = {}, {}
        for prefix in prefixes:
            masks[f"{prefix}image"] = batch[f"{prefix}image_mask"][:, None]
            masks[f"{prefix}region"] = batch[f"{prefix}region_mask"]
        pixels = {}
        for name, mask in masks.items():
            picture_key = f"{name}s" if name.endswith("region") else name
            content = batch.get(f"{name}_features", batch.get(picture_key))
            if content is None:
                raise ValueError(f"the batch has neither {picture_key!r} (pixels) nor '{name}_features' (ResNet maps)")
            if name.endswith("image"):
                content = content[:, None]
            content = jnp.where(mask.reshape(mask.shape + (1,) * (content.ndim - 2)), content, 0).astype(self.dtype)
            (maps if f"{name}_features" in batch else pixels)[name] = content
        if pixels:
            if self.config is None:
                raise ValueError(f"{sorted(pixels)} came as pixels, but this model has no ResNet: it takes features")
            # One call for all pictures; post-major, so that a batch sharded over devices stays where it is.
            stacked = jnp.concatenate(list(pixels.values()), axis=1)
            batch_size, count = stacked.shape[:2]
            resnet = ResNetEncoder(self.config, self.dtype, self.batch_norm, name="resnet")
            present = jnp.concatenate([masks[name] for name in pixels], axis=1)
            encoded, _ = resnet(stacked.reshape(-1, *stacked.shape[2:]), train=train, mask=present.reshape(-1))
            encoded = encoded.reshape(batch_size, count, -1, encoded.shape[-1])
            start = 0
            for name, content in pixels.items():
                # A bias of the ResNet must not speak for a picture that is not there.
                mask = masks[name][:, :, None, None]
                maps[name] = jnp.where(mask, encoded[:, start : start + content.shape[1]], 0)
                start += content.shape[1]
        if self.frozen:
            maps = jax.lax.stop_gradient(maps)
        return {name: value[:, 0] if name.endswith("image") else value for name, value in maps.items()}


class TMRForNER(nn.Module):
    """Emissions of every tag for every word, with the CRF that reads them (Eq. 8 and 9).

    Attributes:
        bert: size of the text encoder.
        num_tags: K; 1 + 2 · entity types (``paper``, ``text``), 13 (``release``).
        resnet: size of the picture encoder; None where pictures always come as features.
        variant: "paper", "release" or "text".
        use_back_translation: False leaves the generated picture out ("w/o BT": G'* absent).
        use_scores: False replaces Eq. 4 by Eq. 2 ("w/o MDE").
        grains: both, or one for the paper's "fine only" and "coarse only".
        literal: the paper's bare sums (:mod:`tmrjax.fusion`).
        num_heads: of Eq. 7.
        dropout: on text states and on emissions' input.
        dtype: of the encoders and the fusion; emissions and CRF are float32 always.
        batch_norm: "frozen" or "train".
        freeze_text, freeze_pictures: no gradient into that encoder.
        release_length: number of positions of R5; ``release`` only.
    """

    bert: BertConfig
    num_tags: int
    resnet: ResNetConfig | None = None
    variant: str = "paper"
    use_back_translation: bool = True
    use_scores: bool = True
    grains: tuple[str, ...] = GRAINS
    literal: bool = False
    num_heads: int = 8
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32
    batch_norm: str = "frozen"
    freeze_text: bool = False
    freeze_pictures: bool = False
    release_length: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r} is none of {VARIANTS}")
        if not self.grains or not set(self.grains) <= set(GRAINS):
            raise ValueError(f"grains {self.grains!r} must be some of {GRAINS}")
        if self.variant == "release" and not self.release_length:
            raise ValueError("variant 'release' needs release_length: its weights belong to absolute positions (R5)")

    @property
    def tag_mask(self) -> str:
        """The batch key that says where tags are scored: over words, or over word pieces (R6)."""
        return "attention_mask" if self.variant == "release" else "word_mask"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Prefixes of the pictures that take part."""
        if self.variant == "text":
            return ()
        return ("", "generated_") if self.use_back_translation else ("",)

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[jax.Array, dict]:
        """Emissions of a batch (keys in DESIGN.md §3: DESIGN's names are the arguments' names).

        Returns:
            emissions float32 [B, W, K] at the first piece of each word (``release``: [B, T, K] at each piece), and
            intermediates: "crf" (CRFParams), "text_states" [B, T, D] and, with pictures, "phrase_states",
            "fine" / "coarse" / "picture" (G^f, G^c, G*) and the same with the prefix "generated_", "fused" (Ḡ).
        """
        encoder = BertEncoder(self.bert, self.dtype, name="bert")
        text_mask = batch["attention_mask"].astype(bool)
        text, _ = encoder(batch["input_ids"], text_mask, train=train)
        intermediates = {"text_states": text, "crf": CRFLayer(self.num_tags, name="crf")()}
        if self.variant == "text":
            states = jax.lax.stop_gradient(text) if self.freeze_text else text
        else:
            phrase_mask = batch["phrase_mask"].astype(bool)
            phrases, _ = encoder(batch["phrase_ids"], phrase_mask, train=train)
            intermediates["phrase_states"] = phrases
            pictures = PictureEncoder(
                self.resnet, self.dtype, self.batch_norm, self.freeze_pictures, name="picture_encoder"
            )
            maps = pictures(batch, self.prefixes, train=train)
            if self.freeze_text:
                text, phrases = jax.lax.stop_gradient((text, phrases))
            join = self._join_release if self.variant == "release" else self._join_paper
            states, joined = join(batch, text, text_mask, phrases, phrase_mask, maps, train=train)
            intermediates |= joined
        if self.variant != "release":
            states = jnp.take_along_axis(states, batch["word_starts"][..., None], axis=1)
        states = Dropout(self.dropout)(states, deterministic=not train)
        emissions = nn.Dense(self.num_tags, dtype=jnp.float32, name="emission")(states)
        return emissions, intermediates

    def _join_paper(self, batch, text, text_mask, phrases, phrase_mask, maps, *, train):
        """P3 to P7."""
        project = nn.Dense(self.bert.hidden_size, dtype=self.dtype, name="visual_projection")
        fusion = GrainFusion(self.grains, self.literal, self.dtype, name="grain_fusion")
        joined, weighted, present = {}, [], []
        for prefix in self.prefixes:
            image, regions = maps[f"{prefix}image"], maps[f"{prefix}region"].mean(2)
            scores = batch[f"{prefix}scores"]
            if not self.use_scores:
                scores = jnp.broadcast_to(jnp.asarray(NEUTRAL_SCORES, scores.dtype), scores.shape)
            masks = batch[f"{prefix}image_mask"], batch[f"{prefix}region_mask"]
            picture, there, grains = fusion(
                text, text_mask, phrases, phrase_mask, project(image), masks[0], project(regions), masks[1], scores
            )
            joined |= {f"{prefix}picture": picture} | {f"{prefix}{name}": grain for name, grain in grains.items()}
            weighted.append(picture)
            present.append(there)
        text_fusion = TextFusion(self.num_heads, self.dropout, self.dtype, name="text_fusion")
        joined["fused"] = text_fusion(text, jnp.stack(weighted, 1), jnp.stack(present, 1), train=train)
        return joined["fused"], joined

    def _join_release(self, batch, text, text_mask, phrases, phrase_mask, maps, *, train):
        """R1 to R5 up to the last linear layer."""
        del text_mask, phrase_mask, train  # the released attention reads padding too (R3)
        fusion = ReleaseFusion(self.bert.hidden_size, self.release_length, self.dtype, name="release_fusion")
        joined = {}
        for prefix in ("", "generated_"):
            if prefix in self.prefixes:
                masks = batch[f"{prefix}image_mask"], batch[f"{prefix}region_mask"]
                image, regions = maps[f"{prefix}image"], maps[f"{prefix}region"]
                scores = batch[f"{prefix}scores"] if self.use_scores else jnp.ones_like(batch[f"{prefix}scores"])
                joined[f"{prefix}picture"] = fusion(text, phrases, image, masks[0], regions, masks[1], scores)
            else:
                joined[f"{prefix}picture"] = jnp.zeros_like(joined["picture"])
        return fusion.combine(text, joined["picture"], joined["generated_picture"]), joined


_ENCODER_CONFIGS = {"bert": BertConfig, "resnet": ResNetConfig}


def model_to_dict(model: TMRForNER) -> dict[str, Any]:
    """All fields of a model as JSON; :func:`model_from_dict` builds the same model from it."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields = {name: value for name, value in fields.items() if name not in ("parent", "name")}
    for name in _ENCODER_CONFIGS:
        fields[name] = None if fields[name] is None else fields[name].to_dict()
    return fields | {"dtype": jnp.dtype(model.dtype).name, "grains": list(model.grains)}


def model_from_dict(fields: Mapping[str, Any]) -> TMRForNER:
    """A model from its fields, encoders as dicts and dtype by name; an unknown field raises TypeError."""
    fields = dict(fields)
    for name, config in _ENCODER_CONFIGS.items():
        if isinstance(fields.get(name), Mapping):
            fields[name] = config.from_dict(fields[name])
    if "dtype" in fields:
        fields["dtype"] = jnp.dtype(fields["dtype"])
    if "grains" in fields:
        fields["grains"] = tuple(fields["grains"])
    return TMRForNER(**fields)

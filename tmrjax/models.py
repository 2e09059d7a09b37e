"""TMR for entities and for relations (§3.2, §3.4, §3.5): encoders, two grains, two pictures, and what reads them.

Three variants: ``paper`` (the formulas below), ``release`` (those of :mod:`tmrjax.methods.tmr_release`) and ``text``
(BERT with a CRF, or with entity markers, alone). Models return ``(output, intermediates)``; what nobody uses is pruned
by jit.

The paper's formulas, one post at a time:

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

The batch
---------
A batch is a mapping from these names to arrays, channels last. B posts, T word pieces, W words, P phrase pieces, S the
side of a picture in pixels, C channels of the ResNet's map. Masks are True where valid.

    input_ids, attention_mask           [B, T]              [CLS] sentence [SEP]; RE: with markers around both entities
    word_starts, word_mask              [B, W]              NER, not ``release``: position of each word's first piece
    tags                                [B, W]              NER, for the loss; ``release``: [B, T]
    head_start, tail_start              [B]                 RE: position of the marker before the entity
    relation                            [B]                 RE, for the loss
    phrase_ids, phrase_mask             [B, P]              not ``text``: [CLS] phrases [SEP], nothing without phrases;
                                                            otherwise for converted checkpoints
                                                            (:func:`tmrjax.inputs.examples.phrase_ids_of`)
    image                               [B, S, S, 3]        pixels of the whole picture, or instead of them
    image_features                      [B, 49, C]          its ResNet map
    image_mask                          [B]                 whether there is a picture
    regions                             [B, 3, S, S, 3]     pixels of the regions, or instead of them
    region_features                     [B, 3, 49, C]       their ResNet maps
    region_mask                         [B, 3]              which regions there are
    scores                              [B, 3]              α; ``release`` also takes (weak, strong) [B, 2]
    generated_...                                           the seven above for the generated picture; its scores are α'
    row_mask                            [B]                 the loss: False for a row of padding

The picture keys are for ``paper`` and ``release``; those with ``generated_`` only under ``use_back_translation``.
:class:`tmrjax.inputs.collate.Collator` makes such batches. The divergence estimator's are in :mod:`tmrjax.divergence`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.crf import CRFParams
from tmrjax.encoders.dropout import Dropout
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.bert import BertConfig, BertEncoder
from tmrjax.fusion import GRAINS, NEUTRAL_SCORES, GrainFusion, TextFusion, pool_phrases
from tmrjax.methods.parts.pictures import Batch, PictureEncoder
from tmrjax.methods.tmr_release import ReleaseRelationFusion, ReleaseTagFusion

VARIANTS = ("paper", "release", "text")


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


class TMR(nn.Module, kw_only=True):
    """What both tasks share: encoders, grains, scores and the switches of the ablations.

    Attributes:
        bert: size of the text encoder.
        resnet: size of the picture encoder; None where pictures always come as features.
        variant: "paper", "release" or "text".
        use_back_translation: False leaves the generated picture out ("w/o BT": G'* absent).
        use_scores: False replaces Eq. 4 by Eq. 2 ("w/o MDE").
        grains: both, or one for the paper's "fine only" and "coarse only".
        literal: the paper's bare sums (:mod:`tmrjax.fusion`).
        dropout: on what Eq. 7 adds to the text states, and on the last layer's input. The dropout inside of BERT is
            that of its own config.json, in ``bert``.
        dtype: of the encoders and the fusion; what the model returns is float32 always.
        batch_norm: "frozen" or "train".
        freeze_text, freeze_pictures: no gradient into that encoder.
    """

    bert: BertConfig
    resnet: ResNetConfig | None = None
    variant: str = "paper"
    use_back_translation: bool = True
    use_scores: bool = True
    grains: tuple[str, ...] = GRAINS
    literal: bool = False
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32
    batch_norm: str = "frozen"
    freeze_text: bool = False
    freeze_pictures: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise ValueError(f"variant {self.variant!r} is none of {VARIANTS}")
        if not self.grains or not set(self.grains) <= set(GRAINS):
            raise ValueError(f"grains {self.grains!r} must be some of {GRAINS}")

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Prefixes of the pictures that take part."""
        if self.variant == "text":
            return ()
        return ("", "generated_") if self.use_back_translation else ("",)

    @property
    def frozen(self) -> tuple[str, ...]:
        """Modules whose parameters never change."""
        frozen = {"bert": self.freeze_text, "picture_encoder": self.freeze_pictures}
        return tuple(name for name, is_frozen in frozen.items() if is_frozen)

    def _encode(self, batch: Batch, *, train: bool, phrase_mask: jax.Array | None = None):
        """(T^w, T^p or None, maps of the pictures); one BERT reads text and phrases."""
        encoder = BertEncoder(self.bert, self.dtype, name="bert")
        text, _ = encoder(batch["input_ids"], batch["attention_mask"].astype(bool), train=train)
        phrases, maps = None, {}
        if self.variant != "text":
            phrases, _ = encoder(batch["phrase_ids"], phrase_mask, train=train)
            pictures = PictureEncoder(
                self.resnet, self.dtype, self.batch_norm, self.freeze_pictures, name="picture_encoder"
            )
            maps = pictures(batch, self.prefixes, train=train)
        if self.freeze_text:
            text, phrases = jax.lax.stop_gradient((text, phrases))
        return text, phrases, maps

    def _weigh(self, batch: Batch, text, phrases, maps):
        """Eq. 1, 2, 4: G* and G'* [B, 2, D], which of them are there [B, 2], and the intermediates by name."""
        project = nn.Dense(self.bert.hidden_size, dtype=self.dtype, name="visual_projection")
        fusion = GrainFusion(self.grains, self.literal, self.dtype, name="grain_fusion")
        text_mask, phrase_mask = batch["attention_mask"].astype(bool), batch["phrase_mask"].astype(bool)
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
        return jnp.stack(weighted, 1), jnp.stack(present, 1), joined

    def _weigh_release(self, batch: Batch, fusion, text, phrases, maps) -> dict[str, jax.Array]:
        """u and u' (:mod:`tmrjax.methods.tmr_release`); the latter is zero without back-translation."""
        joined = {}
        for prefix in ("", "generated_"):
            if prefix in self.prefixes:
                masks = batch[f"{prefix}image_mask"], batch[f"{prefix}region_mask"]
                image, regions = maps[f"{prefix}image"], maps[f"{prefix}region"]
                scores = batch[f"{prefix}scores"] if self.use_scores else jnp.ones_like(batch[f"{prefix}scores"])
                joined[f"{prefix}picture"] = fusion(text, phrases, image, masks[0], regions, masks[1], scores)
            else:
                joined[f"{prefix}picture"] = jnp.zeros_like(joined["picture"])
        return joined


class TMRForNER(TMR, kw_only=True):
    """Emissions of every tag for every word, with the CRF that reads them (Eq. 8 and 9).

    Attributes:
        num_tags: K; 1 + 2 · entity types (``paper``, ``text``), 13 (``release``).
        num_heads: of Eq. 7.
        release_length: number of positions of E(u), max_seq; ``release`` only.
    """

    num_tags: int
    num_heads: int = 8
    release_length: int | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.variant == "release" and not self.release_length:
            raise ValueError("variant 'release' needs release_length: its weights belong to absolute positions")

    @property
    def tag_mask(self) -> str:
        """The batch key that says where tags are scored: over words, or over word pieces (``release``)."""
        return "attention_mask" if self.variant == "release" else "word_mask"

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[jax.Array, dict]:
        """Emissions of a batch; its keys are in the module's docstring.

        Returns:
            emissions float32 [B, W, K] at the first piece of each word (``release``: [B, T, K] at each piece), and
            intermediates: "crf" (CRFParams), "text_states" [B, T, D] and, with pictures, "phrase_states",
            "fine" / "coarse" / "picture" (G^f, G^c, G*) and the same with the prefix "generated_", "fused" (Ḡ).
        """
        phrase_mask = None if self.variant == "text" else batch["phrase_mask"].astype(bool)
        text, phrases, maps = self._encode(batch, train=train, phrase_mask=phrase_mask)
        intermediates = {"text_states": text, "crf": CRFLayer(self.num_tags, name="crf")()}
        states = text
        if self.variant == "paper":
            pictures, present, joined = self._weigh(batch, text, phrases, maps)
            text_fusion = TextFusion(self.num_heads, self.dropout, self.dtype, name="text_fusion")
            states = text_fusion(text, pictures, present, train=train)
            intermediates |= {"phrase_states": phrases, **joined, "fused": states}
        elif self.variant == "release":
            fusion = ReleaseTagFusion(self.bert.hidden_size, self.dtype, self.release_length, name="release_fusion")
            joined = self._weigh_release(batch, fusion, text, phrases, maps)
            states = fusion.combine(text, joined["picture"], joined["generated_picture"])
            intermediates |= {"phrase_states": phrases, **joined}
        if self.variant != "release":
            states = jnp.take_along_axis(states, batch["word_starts"][..., None], axis=1)
        states = Dropout(self.dropout)(states, deterministic=not train)
        emissions = nn.Dense(self.num_tags, dtype=jnp.float32, name="emission")(states)
        return emissions, intermediates


class TMRForRE(TMR, kw_only=True):
    """Logits of every relation between a marked head and a marked tail (Eq. 10 and 11).

    Attributes:
        num_relations: R, ``None`` included.
    """

    num_relations: int

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[jax.Array, dict]:
        """Logits of a batch; its keys are in the module's docstring.

        Eq. 10: g = [T_head; T_tail; phrase part; G* + G'*] (4d), logits = g W + b. T_head and T_tail are the states at
        the markers before the entities; the phrase part is Σ_k M^p_k T^p_k (``literal``) or that sum divided by the
        number of pieces, 0 without phrases. ``text``: g = [T_head; T_tail] (2d). ``release``: 6d → 2d → R.

        Returns:
            logits float32 [B, R], and intermediates: "text_states" [B, T, D], "representation" (g, before dropout) and,
            with pictures, "phrase_states", "fine" / "coarse" / "picture" and the same with the prefix "generated_".
        """
        # The authors' phrase mask is all zeros, which attends to every position alike: a mask of ones.
        phrase_mask = None
        if self.variant != "text":
            phrase_mask = batch["phrase_mask"].astype(bool)
            phrase_mask = jnp.ones_like(phrase_mask) if self.variant == "release" else phrase_mask
        text, phrases, maps = self._encode(batch, train=train, phrase_mask=phrase_mask)
        rows = jnp.arange(len(text))
        head, tail = text[rows, batch["head_start"]], text[rows, batch["tail_start"]]
        intermediates = {"text_states": text}
        representation = jnp.concatenate([head, tail], axis=-1)
        if self.variant == "paper":
            pictures, _, joined = self._weigh(batch, text, phrases, maps)
            pooled = pool_phrases(phrases, phrase_mask, literal=self.literal)
            representation = jnp.concatenate([head, tail, pooled, pictures.sum(1)], axis=-1)
            intermediates |= {"phrase_states": phrases, **joined}
        elif self.variant == "release":
            fusion = ReleaseRelationFusion(self.bert.hidden_size, self.dtype, name="release_fusion")
            joined = self._weigh_release(batch, fusion, text, phrases, maps)
            pictures = joined["picture"], joined["generated_picture"]
            representation = fusion.combine(head, tail, phrases, *pictures)
            intermediates |= {"phrase_states": phrases, **joined}
        intermediates["representation"] = representation
        representation = Dropout(self.dropout)(representation, deterministic=not train)
        return nn.Dense(self.num_relations, dtype=jnp.float32, name="classifier")(representation), intermediates


MODELS = {"ner": TMRForNER, "re": TMRForRE}
_ENCODER_CONFIGS = {"bert": BertConfig, "resnet": ResNetConfig}


def model_to_dict(model: TMR) -> dict[str, Any]:
    """All fields of a model as JSON; :func:`model_from_dict` builds the same model from it."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    fields = {name: value for name, value in fields.items() if name not in ("parent", "name")}
    for name in _ENCODER_CONFIGS:
        fields[name] = None if fields[name] is None else fields[name].to_dict()
    return fields | {"dtype": jnp.dtype(model.dtype).name, "grains": list(model.grains)}


def model_from_dict(task: str, fields: Mapping[str, Any]) -> TMR:
    """The model of a task, one of MODELS, from its fields: encoders as dicts, dtype by name.

    An unknown field raises TypeError.
    """
    fields = dict(fields)
    for name, config in _ENCODER_CONFIGS.items():
        if isinstance(fields.get(name), Mapping):
            fields[name] = config.from_dict(fields[name])
    if "dtype" in fields:
        fields["dtype"] = jnp.dtype(fields["dtype"])
    if "grains" in fields:
        fields["grains"] = tuple(fields["grains"])
    return MODELS[task](**fields)

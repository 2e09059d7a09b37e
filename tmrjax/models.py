"""TMR under the names that scripts use: ``(scores, intermediates)`` of a batch, one class a task.

The classes here are faces of the methods in :mod:`tmrjax.methods`: ``variant`` is ``paper``
(:mod:`tmrjax.methods.tmr`), ``release`` (:mod:`tmrjax.methods.tmr_release`) or ``text``
(:mod:`tmrjax.methods.bert_crf`, :mod:`tmrjax.methods.mtb`). Parameters have the names of the method's.

The batch
---------
A batch is a mapping from these names to arrays, channels last. B posts, T word pieces, W words, P phrase pieces, S the
side of a picture in pixels, C channels of the picture encoder. Masks are True where valid.

    input_ids, attention_mask           [B, T]              [CLS] sentence [SEP]; RE: with markers around both entities
    word_starts, word_mask              [B, W]              NER, not ``release``: position of each word's first piece
    tags                                [B, W]              NER, for the loss; ``release``: [B, T]
    head_start, tail_start              [B]                 RE: position of the marker before the entity
    relation                            [B]                 RE, for the loss
    phrase_ids, phrase_mask             [B, P]              not ``text``: [CLS] phrases [SEP], nothing without phrases;
                                                            otherwise for converted checkpoints
                                                            (:func:`tmrjax.inputs.phrases.phrase_ids_of`)
    image                               [B, S, S, 3]        pixels of the whole picture, or instead of them
    image_features                      [B, 49, C]          its states, the ResNet's map
    image_mask                          [B]                 whether there is a picture
    regions                             [B, 3, S, S, 3]     pixels of the regions, or instead of them
    region_features                     [B, 3, 49, C]       their maps, or
    region_pooled                       [B, 3, C]           the mean over each map, which is all that ``paper`` reads
    region_mask                         [B, 3]              which regions there are
    scores                              [B, 3]              α; ``release`` also takes (weak, strong) [B, 2]
    generated_...                                           the same for the generated picture; its scores are α'
    row_mask                            [B]                 the loss: False for a row of padding

The picture keys are for ``paper`` and ``release``; those with ``generated_`` only under ``use_back_translation``.
Floating pixels are normalised already; uint8 pixels are for :meth:`tmrjax.tasks.system.System.prepare`.
:class:`tmrjax.inputs.collate.Collator` makes such batches. The divergence estimator's are in :mod:`tmrjax.divergence`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.fusion import GRAINS
from tmrjax.methods import find_method
from tmrjax.methods.base import Batch, Method

# Variant of a face -> module of tmrjax.methods, by task.
VARIANTS = {
    "paper": {"ner": "tmr", "re": "tmr"},
    "release": {"ner": "tmr_release", "re": "tmr_release"},
    "text": {"ner": "bert_crf", "re": "mtb"},
}
# What only some of the variants have.
_TMR_ONLY = ("use_back_translation", "use_scores", "grains", "literal", "num_heads")


class _Face(nn.Module, kw_only=True):
    """The fields of all variants, and the method that they stand for."""

    task: ClassVar[str]

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
            raise ValueError(f"variant {self.variant!r} is none of {tuple(VARIANTS)}")
        self.method()  # raises where fields do not fit

    def _fields(self) -> dict[str, Any]:
        """The fields of the method, except for its number of labels."""
        kind = find_method(VARIANTS[self.variant][self.task], self.task)
        shared = ("dropout", "dtype", "batch_norm", "freeze_text", "freeze_pictures")
        names = [*shared, *(name for name in _TMR_ONLY if hasattr(kind, name) and hasattr(self, name))]
        fields = {name: getattr(self, name) for name in names}
        return {"kind": kind, "text": self.bert, "picture": self.resnet, **fields}

    def method(self) -> Method:
        """The method that this model stands for; it has the same variables."""
        fields = self._fields() | self._sizes()
        return fields.pop("kind")(**fields, parent=None)

    def _sizes(self) -> dict[str, int]:
        raise NotImplementedError

    def _outputs(self, batch: Batch, train: bool):
        method = self.method().clone(parent=self, name="method")
        nn.share_scope(self, method)
        return method(batch, train=train)


class TMRForNER(_Face, kw_only=True):
    """Emissions of every tag for every word, with the CRF that reads them.

    Attributes:
        bert: sizes of the text encoder; any text encoder's config.
        resnet: sizes of the picture encoder; None where pictures always come as features.
        num_tags: K; 1 + 2 · entity types (``paper``, ``text``), 13 (``release``).
        num_heads: of Eq. 7.
        release_length: number of positions of E(u), max_seq; ``release`` only.

    The other fields are those of :class:`tmrjax.methods.tmr.TMR`.
    """

    task: ClassVar[str] = "ner"
    num_tags: int
    num_heads: int = 8
    release_length: int | None = None

    def __post_init__(self):
        if self.variant == "release" and not self.release_length:
            raise ValueError("variant 'release' needs release_length: its weights belong to absolute positions")
        super().__post_init__()

    @property
    def tag_mask(self) -> str:
        """The batch key that says where tags are scored: over words, or over word pieces (``release``)."""
        return "attention_mask" if self.variant == "release" else "word_mask"

    def _sizes(self) -> dict[str, int]:
        sizes = {"num_labels": self.num_tags}
        return sizes | ({"max_pieces": self.release_length} if self.variant == "release" else {})

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Emissions float32 [B, W, K] (``release``: [B, T, K]), and the method's states with "crf" (CRFParams)."""
        outputs = self._outputs(batch, train)
        return outputs.scores, {**outputs.states, "crf": outputs.crf}


class TMRForRE(_Face, kw_only=True):
    """Logits of every relation between a marked head and a marked tail (Eq. 10 and 11).

    Attributes:
        num_relations: R, ``None`` included.

    The other fields are those of :class:`TMRForNER`.
    """

    task: ClassVar[str] = "re"
    num_relations: int

    def _sizes(self) -> dict[str, int]:
        return {"num_labels": self.num_relations}

    @nn.compact
    def __call__(self, batch: Batch, *, train: bool) -> tuple[jax.Array, dict[str, Any]]:
        """Logits float32 [B, R], and the method's states."""
        outputs = self._outputs(batch, train)
        return outputs.scores, dict(outputs.states)

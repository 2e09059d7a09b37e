"""Entities: a method with all it needs to find them."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from tmrjax.heads import crf_head
from tmrjax.heads.crf_head import CRFHead
from tmrjax.heads.span_probabilities import SpanTags, span_probabilities
from tmrjax.inputs.base import Example
from tmrjax.inputs.labels import RELEASE_TAGS, Tags
from tmrjax.inputs.lost import count_words
from tmrjax.inputs.pieces import windows_of
from tmrjax.tasks.report import entity_report
from tmrjax.tasks.system import System
from tmrjax.text.tags import OUTSIDE, Span, TagSet, allow_only, restore_tags, spans_from_tags

logger = logging.getLogger(__name__)


class Prediction(NamedTuple):
    """Tags of all words of a post (O where a word was cut or has no piece), its strict spans and their probabilities.

    A probability is exact under the CRF: the share of all tag sequences, by weight, that have this very entity.
    """

    tags: list[str]
    spans: list[Span]
    probabilities: list[float]


@dataclasses.dataclass(frozen=True)
class Tagger(System):
    """See the module. ``labels`` are entity types.

    ``constrained``: decode under IOB2 (ours; the released code does not).
    """

    constrained: bool = True

    task: ClassVar[str] = "ner"

    def __post_init__(self):
        super().__post_init__()
        if self.method.num_labels != len(self.tags):
            raise ValueError(
                f"the model has {self.method.num_labels} tags, but its tag set {len(self.tags)}: {self.tags}"
            )

    @functools.cached_property
    def tag_set(self) -> TagSet:
        """The BIO tags of the entity types."""
        return TagSet(self.labels)

    @functools.cached_property
    def tags(self) -> tuple[str, ...]:
        """The tags that the CRF runs over."""
        return RELEASE_TAGS if self.text.piece_tags else self.tag_set.tags

    @property
    def head(self) -> CRFHead:
        """The CRF."""
        return CRFHead(self.tags, self.constrained, "attention_mask" if self.text.piece_tags else "word_mask")

    @property
    def gold(self) -> Tags:
        """Tags of words, or of word pieces."""
        return Tags(self.labels, self.fitted[0].specials)

    def to_meta(self) -> dict[str, Any]:
        """As JSON, the tokenizer included."""
        return super().to_meta() | {"constrained": self.constrained}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any], **fields: Any) -> Tagger:
        """The tagger of a checkpoint's JSON."""
        return super().from_meta(meta, constrained=meta["constrained"], **fields)

    def training_rows(self, examples: Sequence[Example]) -> list[Example]:
        """The examples, and each window of a long post as an example of its own."""
        rows = [row for example in examples for row in self._windows(example, training=True)]
        left_out = sum(len(e.pieces.words) for e in examples) - sum(len(row.pieces.words) for row in rows)
        if left_out:
            logger.info("%d words of entities longer than the overlap of two windows are not trained on", left_out)
        return rows

    def rows(self, example: Example) -> list[Example]:
        """The post itself, or its windows."""
        return self._windows(example, training=False)

    def _windows(self, example: Example, *, training: bool) -> list[Example]:
        if not self.fitted[0].windows:
            return [example]
        return windows_of(example, self.text, training=training)

    def report(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> dict[str, Any]:
        """Strict and lenient scores (:func:`tmrjax.tasks.report.entity_report`) and counts of words."""
        gold = [list(example.record.tags) for example in examples]
        scores = entity_report(gold, [prediction.tags for prediction in predictions])
        return scores | {"words": count_words(examples)}

    def _scores(self, output, rows: Mapping[int, Example]) -> dict[int, np.ndarray]:
        """Emissions [own words, K] of windows."""
        emissions = np.asarray(output["emissions"])
        return {row: emissions[row, : len(example.pieces.words)] for row, example in rows.items()}

    def _joined(self, output, scores: Sequence[np.ndarray]) -> dict[str, Any]:
        """One post's emissions under the CRF as a whole, its length padded to a power of two: a few static shapes."""
        emissions = np.concatenate(scores)
        words = len(emissions)
        length = max(64, 1 << (words - 1).bit_length())
        emissions = np.pad(emissions, ((0, length - words), (0, 0)))[None]
        mask = (np.arange(length) < words)[None]
        params = jax.device_get(output["crf"])
        return {"tags": crf_head.decode(emissions, mask, params), "emissions": emissions, "mask": mask, "crf": params}

    def prediction_rows(self, examples: Sequence[Example], predictions: Sequence[Prediction]) -> Iterator[dict]:
        """{"id", "tokens", "gold": [{start, end, label}], "predicted": [{start, end, label, probability}]}, by words.

        Both are strict IOB2 spans; ``predictions`` were made with ``probabilities=True``.
        """
        for example, prediction in zip(examples, predictions, strict=True):
            record = example.record
            found = zip(prediction.spans, prediction.probabilities, strict=True)
            yield {
                "id": record.id,
                "tokens": list(record.tokens),
                "gold": [span._asdict() for span in spans_from_tags(record.tags, strict=True)],
                "predicted": [{**span._asdict(), "probability": probability} for span, probability in found],
            }

    def _decode(self, output, rows: Mapping[int, Example], *, probabilities: bool) -> dict[int, Prediction]:
        tags = np.asarray(output["tags"])
        words = {row: self._word_tags(tags[row], example) for row, example in rows.items()}
        spans = {row: spans_from_tags(word_tags, strict=True) for row, word_tags in words.items()}
        found = {row: [] for row in rows}
        if probabilities:
            found = self._span_probabilities(output, {r: [(rows[r], span) for span in spans[r]] for r in rows})
        return {row: Prediction(words[row], spans[row], found[row]) for row in rows}

    def _positions(self, example: Example) -> list[int]:
        """Where the CRF scores the kept words: the words themselves, or their first pieces (``release``)."""
        return example.pieces.word_starts if self.text.piece_tags else list(range(len(example.pieces.words)))

    def _word_tags(self, row: np.ndarray, example: Example) -> list[str]:
        indices, of_words = row.tolist(), self._tags_of_words
        tags = [of_words[indices[position]] for position in self._positions(example)]
        return restore_tags(tags, example.pieces.words, len(example.record.tokens))

    @functools.cached_property
    def _tags_of_words(self) -> list[str]:
        """PAD, X, [CLS] and [SEP] of the released tag set are no entities: the released code lets them become some."""
        known = set(self.tag_set.tags)
        return [tag if tag in known else OUTSIDE for tag in self.tags]

    def _span_probabilities(self, output, spans: Mapping[int, list]) -> dict[int, list[float]]:
        """p(span) = Z(sequences with this span) / Z, all spans of a batch at once."""
        flat = [(row, example, span) for row, found in spans.items() for example, span in found]
        probabilities: dict[int, list[float]] = {row: [] for row in spans}
        if not flat:
            return probabilities
        emissions, mask, params = (jax.device_get(output[name]) for name in ("emissions", "mask", "crf"))
        if self.temperature != 1:
            emissions, params = jax.tree.map(lambda scores: scores / self.temperature, (emissions, params))
        asked = [self._span_tags(row, span, example) for row, example, span in flat]
        values = span_probabilities(emissions, mask, params, asked)
        for (row, _, _), value in zip(flat, values.tolist(), strict=True):
            probabilities[row].append(value)
        return probabilities

    def _span_tags(self, row: int, span: Span, example: Example) -> SpanTags:
        """The tags under which ``span`` is this very entity, from its first word to the one behind it."""
        words, positions = example.pieces.words, self._positions(example)
        first, last = (bisect.bisect_left(words, word) for word in (span.start, span.end))
        behind = positions[last] + 1 if last < len(positions) else positions[last - 1] + 1
        allowed = np.ones((behind - positions[first], len(self.tags)), bool)
        allow_only(span, words, [position - positions[first] for position in positions], self.tags, allowed)
        return SpanTags(row, positions[first], allowed)
